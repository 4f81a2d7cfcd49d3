"""What has happened in an episode so far: the view that reward functions and oracles get."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

from agentrl.messages import JsonDict, MalformedCall, Message, ToolCall
from agentrl.tools.core import ToolResult
from agentrl.trajectory import StopReason


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One tool call and its result."""

    turn: int
    call: ToolCall | MalformedCall
    result: ToolResult


EpisodeSummary: TypeAlias = JsonDict


@dataclass(slots=True)
class Episode:
    """A running or finished episode in message space.

    Example:
        Episode(messages=[system, user, assistant with a call, tool, assistant], calls=[CallRecord(0, ...)],
                num_turns=2, answer="408", stop_reason=StopReason.ANSWERED)
    """

    messages: list[Message] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    reward_parts: dict[str, float] = field(default_factory=dict)
    """Of a finished episode: named parts whose sum is its return; empty where the reward is a plain number."""
    num_turns: int = 0
    answer: str | None = None
    """Text of the final turn without its thinking; None while there is none."""
    stop_reason: StopReason | None = None

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.stop_reason is not None

    def results(self, tool: str | None = None) -> list[ToolResult]:
        """Results in order of the calls, of one tool or of all."""
        return [record.result for record in self.calls if tool in (None, record.result.tool)]

    def summary(self, success: bool) -> EpisodeSummary:
        """The JSON-clean digest that `info["result"]` carries when the episode ends."""
        return {
            "success": success,
            "stop_reason": self.stop_reason,
            "answer": self.answer,
            "num_turns": self.num_turns,
            "turn_rewards": list(self.turn_rewards),
            "reward_parts": dict(self.reward_parts),
            "tool_calls": dict(Counter(record.result.tool for record in self.calls)),
            "tool_errors": dict(Counter(record.result.tool for record in self.calls if not record.result.ok)),
        }


def observation_key(episode: Episode) -> str:
    """Names a state by what the agent was told last: the results of its latest calls, or the task at the beginning.

    Two states with the same observation have the same key, as in GiGPO (arXiv:2505.10978, section 4.2), whatever led
    to them. For `ToolEnv.state_key`, where the observation tells what there is to know of the state.
    """
    turns = [number for number, message in enumerate(episode.messages) if message["role"] == "assistant"]
    observation = episode.messages[turns[-1] + 1 :] if turns else episode.messages
    return hashlib.blake2b(json.dumps(observation, sort_keys=True).encode(), digest_size=8).hexdigest()
