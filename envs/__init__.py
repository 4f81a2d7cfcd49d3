"""Tool-use environments: every one is a real `gymnasium.Env`."""

from agentrl.envs.episode import CallRecord, Episode
from agentrl.envs.registration import make, register
from agentrl.envs.spaces import TextSpace
from agentrl.envs.tool_env import ToolEnv

__all__ = ["CallRecord", "Episode", "TextSpace", "ToolEnv", "make", "register"]
