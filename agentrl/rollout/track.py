"""One trajectory while it is being rolled out, and how it plays a turn."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import gymnasium

from agentrl.envs.tool_env import ToolEnv
from agentrl.errors import ForkError
from agentrl.messages import JsonDict, Message
from agentrl.messages import user as user_message
from agentrl.policies.core import SequenceId
from agentrl.rollout.branching import TrackKey
from agentrl.trajectory import Leaf, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOutcome:
    """What the environment answered to a turn."""

    messages: tuple[Message, ...]
    reward: float
    stop_reason: StopReason | None
    result: JsonDict
    """`ToolEnv`'s digest of a finished episode; empty for other environments and while it runs."""


@dataclass(slots=True)
class Track:
    """A live trajectory.

    Example:
        Track(key=(3, 1, 0), sequence=17, env=..., segment=5, num_tokens=143, turn=1) is the first branch of the
        fourth trajectory, made after its first tool result.
    """

    key: TrackKey
    sequence: SequenceId
    env: gymnasium.Env[str, str]
    segment: int
    """Last segment of the path so far."""
    token_ids: list[int]
    """All tokens of the path so far."""
    turn: int = 0
    fork_of: int | None = None
    first_turn: int = 0
    """The turn it resampled; its moments come later."""
    baseline: float | None = None
    """Opening entropy of its first turn; a branch takes over its parent's."""
    lead: float = 0.0
    """Opening entropy of the latest turn."""
    rewards: list[float] = field(default_factory=list)

    def copy(self) -> "Track":
        """The same position, for a branch to start from; lists are not shared."""
        return replace(self, token_ids=list(self.token_ids), rewards=list(self.rewards))

    @property
    def next_moment(self) -> int:
        """The earliest turn at which it may branch."""
        return max(1, self.turn, self.first_turn + 1 if self.fork_of is not None else 0)


def play_turn(env: gymnasium.Env[str, str], text: str, *, truncate: bool) -> TurnOutcome:
    """Gives a turn to an environment; runs in a worker thread where tools may block.

    Args:
        env: Any Gymnasium environment of text; a `ToolEnv` also tells messages and details.
        text: The turn.
        truncate: The token budget is spent: end the episode with this turn unfinished.
    """
    inner = env.unwrapped
    if isinstance(inner, ToolEnv):
        step = inner.truncate(text) if truncate else env.step(text)
        observation, reward, terminated, truncated, info = step
        messages = tuple(info["messages"])
        result: JsonDict = info.get("result", {})
    elif truncate:
        return TurnOutcome(messages=(), reward=0.0, stop_reason=StopReason.MAX_TOKENS, result={})
    else:
        observation, reward, terminated, truncated, info = env.step(text)
        messages, result = (user_message(observation),), {}
    stop = None
    if terminated or truncated:
        default = StopReason.TERMINATED if terminated else StopReason.MAX_TURNS
        stop = StopReason(result["stop_reason"]) if result.get("stop_reason") else default
    return TurnOutcome(messages=messages, reward=float(reward), stop_reason=stop, result=result)


def finished_leaf(outcome: TurnOutcome, segment: int, rewards: Sequence[float], *, fork_of: int | None = None) -> Leaf:
    """The leaf of a trajectory whose environment has ended it.

    Args:
        outcome: Of its last turn.
        segment: Its last segment.
        rewards: Of all its turns.
        fork_of: Where it left its parent's path.
    """
    assert outcome.stop_reason is not None
    reward = float(sum(rewards))
    return Leaf(
        segment=segment,
        stop_reason=outcome.stop_reason,
        reward=reward,
        success=bool(outcome.result.get("success", reward >= 1.0)),
        turn_rewards=list(rewards),
        num_turns=int(outcome.result.get("num_turns", len(rewards))),
        tool_calls=dict(outcome.result.get("tool_calls", {})),
        tool_errors=dict(outcome.result.get("tool_errors", {})),
        answer=outcome.result.get("answer"),
        fork_of=fork_of,
    )


def invalid_leaf(error: Exception, segment: int, num_turns: int, *, fork_of: int | None = None) -> Leaf:
    """The leaf of a trajectory that infrastructure ended.

    Args:
        error: What failed.
        segment: Its last segment.
        num_turns: Turns before that.
        fork_of: Where it left its parent's path.
    """
    return Leaf(
        segment=segment,
        stop_reason=StopReason.INVALID,
        reward=0.0,
        success=False,
        num_turns=num_turns,
        error=f"{type(error).__name__}: {error}",
        fork_of=fork_of,
    )


def opening_messages(env: gymnasium.Env[str, str], task: int) -> tuple[str, Sequence[Message], Sequence[JsonDict]]:
    """Resets an environment to a task of its split.

    Returns:
        The task's id, the opening messages, the tools' schemas.
    """
    if isinstance(env.unwrapped, ToolEnv):
        observation, info = env.reset(options={"task": task})
        return str(info["task_id"]), info["messages"], info["tools"]
    observation, _ = env.reset(seed=task)
    return f"seed-{task}", (user_message(observation),), ()


def blocks(env: gymnasium.Env[str, str]) -> bool:
    """Whether a step may take long, so that it belongs into a thread."""
    return not (isinstance(env.unwrapped, ToolEnv) and env.unwrapped.inline)


def fork_env(env: gymnasium.Env[str, str]) -> gymnasium.Env[str, str]:
    """An independent copy of a half-finished episode, wrappers included.

    Raises:
        ForkError: The environment is no `ToolEnv`, or one of its tools cannot be copied.
    """
    if isinstance(env, gymnasium.Wrapper):
        inner = fork_env(env.env)
        clone = copy.copy(env)
        clone.__dict__ = copy.deepcopy({name: value for name, value in vars(env).items() if name != "env"})
        clone.env = inner
        return clone
    if isinstance(env, ToolEnv):
        return env.fork()
    raise ForkError(
        f"{type(env).__name__} cannot be forked, so trajectories cannot branch in it. Derive it from "
        "agentrl.ToolEnv, or use a recipe without branching (grpo)."
    )
