"""One trajectory while it is being rolled out, and how it plays a turn."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import gymnasium

from agentrl.envs.tool_env import ToolEnv
from agentrl.errors import ConfigError, ForkError
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
    state_key: str | None = None
    """Of the state that it led to, if the environment names its states."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How an episode starts: what the environment tells before the first turn."""

    task_id: str
    messages: Sequence[Message]
    tools: Sequence[JsonDict]
    """Schemas."""
    state_key: str | None = None


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
    """All tokens so far as the policy has them: those of the path, and a hint if it was given one."""
    turn: int = 0
    fork_of: int | None = None
    first_moment: int = 1
    """The earliest turn at which it may branch; for a branch, the one after the turn that it resampled."""
    baseline: float | None = None
    """Opening entropy of its first turn; a branch takes over its parent's."""
    lead: float = 0.0
    """Opening entropy of the latest turn."""
    streak: int = 0
    """Its latest moments in a row at which the rule would branch; a branch takes over its parent's."""
    rewards: list[float] = field(default_factory=list)
    state_key: str | None = None
    """Of the state in which the next turn is taken."""
    state_keys: list[str | None] = field(default_factory=list)
    """Of the states in which its turns were taken."""
    episode: str | None = None
    """What the journal calls it."""

    def copy(self) -> "Track":
        """The same position, for a branch to start from; lists are not shared."""
        return replace(
            self, token_ids=list(self.token_ids), rewards=list(self.rewards), state_keys=list(self.state_keys)
        )

    @property
    def next_moment(self) -> int:
        """The earliest turn still to come at which it may branch."""
        return max(self.turn, self.first_moment)


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
    key = info.get("state_key")
    stop = None
    if terminated or truncated:
        default = StopReason.TERMINATED if terminated else StopReason.MAX_TURNS
        stop = StopReason(result["stop_reason"]) if result.get("stop_reason") else default
    return TurnOutcome(messages=messages, reward=float(reward), stop_reason=stop, result=result, state_key=key)


def finished_leaf(
    outcome: TurnOutcome,
    segment: int,
    rewards: Sequence[float],
    *,
    state_keys: Sequence[str | None] = (),
    fork_of: int | None = None,
    root: int = 0,
) -> Leaf:
    """The leaf of a trajectory whose environment has ended it.

    Args:
        outcome: Of its last turn.
        segment: Its last segment.
        rewards: Of all its turns.
        state_keys: Of the states in which its turns were taken.
        fork_of: Where it left its parent's path.
        root: Which trajectory from the prompt it belongs to.

    Raises:
        ConfigError: The environment names some of its states only.
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
        root=root,
        state_keys=_named_states(state_keys),
        reward_parts=dict(outcome.result.get("reward_parts", {})),
    )


def _named_states(keys: Sequence[str | None]) -> list[str]:
    named = [key for key in keys if key is not None]
    if named and len(named) < len(keys):
        raise ConfigError(
            f"The environment named {len(named)} of the {len(keys)} states of an episode. state_key must give a key "
            "for every state, or None for every state."
        )
    return named


def invalid_leaf(error: Exception, segment: int, num_turns: int, *, fork_of: int | None = None, root: int = 0) -> Leaf:
    """The leaf of a trajectory that infrastructure ended.

    Args:
        error: What failed.
        segment: Its last segment.
        num_turns: Turns before that.
        fork_of: Where it left its parent's path.
        root: Which trajectory from the prompt it belongs to.
    """
    return Leaf(
        segment=segment,
        stop_reason=StopReason.INVALID,
        reward=0.0,
        success=False,
        num_turns=num_turns,
        error=f"{type(error).__name__}: {error}",
        fork_of=fork_of,
        root=root,
    )


def open_episode(env: gymnasium.Env[str, str], task: int) -> Opening:
    """Resets an environment to a task of its split."""
    if isinstance(env.unwrapped, ToolEnv):
        _, info = env.reset(options={"task": task})
        return Opening(str(info["task_id"]), list(info["messages"]), list(info["tools"]), info.get("state_key"))
    observation, info = env.reset(seed=task)
    return Opening(f"seed-{task}", [user_message(observation)], [], info.get("state_key"))


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
