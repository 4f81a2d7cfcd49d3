"""Tool-use environments: every one is a real `gymnasium.Env`. Importing this package registers them."""

from agentrl.envs.answers import extract_answer, last_number
from agentrl.envs.arithmetic import ArithmeticEnv
from agentrl.envs.code_interpreter import CodeInterpreterEnv
from agentrl.envs.contract import EnvContract
from agentrl.envs.dataset import DatasetEnv
from agentrl.envs.deep_research import DeepResearchEnv
from agentrl.envs.episode import CallRecord, Episode, observation_key
from agentrl.envs.multi_hop_search import MultiHopSearchEnv
from agentrl.envs.procedural import ProceduralEnv
from agentrl.envs.registration import make, register
from agentrl.envs.rewards import REWARDS, RewardFunction, make_reward
from agentrl.envs.spaces import TextSpace
from agentrl.envs.tool_env import ToolEnv

__all__ = [
    "REWARDS",
    "ArithmeticEnv",
    "CallRecord",
    "CodeInterpreterEnv",
    "DatasetEnv",
    "DeepResearchEnv",
    "EnvContract",
    "Episode",
    "MultiHopSearchEnv",
    "ProceduralEnv",
    "RewardFunction",
    "TextSpace",
    "ToolEnv",
    "extract_answer",
    "last_number",
    "make",
    "make_reward",
    "observation_key",
    "register",
]
