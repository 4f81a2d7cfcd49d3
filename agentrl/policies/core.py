"""What a policy is to a rollout: requests go in, finished completions come out, live sequences can be forked.

The protocol is a pump (`submit` … `poll`), the shape that in-process engines, vLLM and HTTP endpoints all have,
so that one scheduler drives them all and a slow episode never holds up another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from agentrl.errors import ConfigError, InfrastructureError

SequenceId: TypeAlias = int
StopCause: TypeAlias = Literal["end_of_turn", "stop_string", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy decoding.

    Raises:
        ConfigError: A value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < 1e3:
            raise ConfigError(f"temperature must be at least 0 and finite, got {self.temperature!r}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p!r}.")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or positive, got {self.top_k!r}.")

    @property
    def truncates(self) -> bool:
        """Whether the distribution sampled from differs from the model's at this temperature."""
        return self.temperature == 0.0 or self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Continue one sequence until it stops.

    Example:
        Request(sequence=7, token_ids=[1, 40, 12], max_tokens=64, stop=("</tool_call>",), seed=8812)
    """

    sequence: SequenceId
    """Names the live sequence, so that an engine can find what it has cached for it."""
    token_ids: list[int]
    """The whole sequence so far; what an engine has seen before is not computed again."""
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end the turn; the tokens that complete one are kept."""
    seed: int = 0
    """Names the random stream: the n-th token drawn depends on (seed, n) alone."""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled for a request; all lists have one entry per sampled token."""

    sequence: SequenceId
    token_ids: list[int]
    logprobs: list[float]
    raw_logprobs: list[float] | None
    entropies: list[float]
    cause: StopCause
    policy_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that could not be answered, through no fault of the model: its episode is invalid, others go on."""

    sequence: SequenceId
    error: InfrastructureError


class Policy(Protocol):
    """An engine that samples from a language model."""

    version: int
    """Weight updates so far; stamped on every completion."""
    context_length: int
    """Longest sequence in tokens the model accepts."""

    def submit(self, request: Request) -> None:
        """Queues a request; a sequence has at most one in flight."""
        ...

    def poll(self) -> Sequence[Completion | Failure]:
        """Makes progress and returns what finished, possibly nothing. Blocks at most for one engine step."""
        ...

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> None:
        """Lets `child` begin with the first `num_tokens` tokens of `parent`, without computing them again."""
        ...

    def release(self, sequence: SequenceId) -> None:
        """Forgets a sequence, cancelling its request if one is in flight."""
        ...
