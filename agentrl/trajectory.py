"""The data model: episodes of one task form a token tree.

A **segment** is a run of tokens with one origin. A **path** from the root to a leaf is one trajectory. Every
token is stored once; ARPO's branches and the plain samples of one prompt share their common prefix.

Example: two samples of a prompt, the second one branched again after its tool result::

    0 prompt ── 1 assistant ── 2 environment ── 3 assistant          leaf A
             └─ 4 assistant ── 5 environment ── 6 assistant          leaf B
                                             └─ 7 assistant          leaf C
"""

import enum
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentrl.errors import DataError

Origin: TypeAlias = Literal["prompt", "assistant", "environment"]


class StopReason(enum.StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    """The model gave a final answer: a turn without a tool call."""
    TERMINATED = "terminated"
    """The environment ended the episode itself."""
    MAX_TURNS = "max_turns"
    """The environment's turn limit was reached before an answer."""
    MAX_TOKENS = "max_tokens"
    """The token budget of the episode ran out."""
    INVALID = "invalid"
    """Infrastructure failed; the episode says nothing about the policy and is left out of statistics."""

    @property
    def is_truncation(self) -> bool:
        """Whether a limit cut the episode short."""
        return self in (StopReason.MAX_TURNS, StopReason.MAX_TOKENS)


@dataclass(slots=True)
class Segment:
    """A run of tokens with one origin.

    Example:
        Segment(id=1, parent=0, origin="assistant", turn=0, token_ids=[5, 9, 2], action_mask=[1, 1, 1],
                logprobs=[-0.1, -0.7, -0.01], entropies=[0.3, 1.1, 0.02], policy_version=12)
    """

    id: int
    parent: int | None
    origin: Origin
    turn: int
    """Index of the assistant turn this belongs to; an environment segment has the turn it answers."""
    token_ids: list[int]
    action_mask: list[int]
    """1 where the policy sampled the token, 0 for everything else."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probabilities under the distribution sampled from (temperature, top-p, top-k applied); 0.0 if not sampled."""
    raw_logprobs: list[float] | None = None
    """The same before top-p and top-k, kept only where they differ."""
    entropies: list[float] = field(default_factory=list)
    """Entropy in nats of the full-vocabulary distribution at the sampling temperature; 0.0 where the mask is 0."""
    policy_version: int = 0
    """Number of weight updates the sampling policy had seen."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if not self.logprobs:
            self.logprobs = [0.0] * n
        if not self.entropies:
            self.entropies = [0.0] * n
        lengths = {n, len(self.action_mask), len(self.logprobs), len(self.entropies)}
        if self.raw_logprobs is not None:
            lengths.add(len(self.raw_logprobs))
        assert len(lengths) == 1, f"segment {self.id}: fields of different length {sorted(lengths)}"


@dataclass(slots=True)
class Leaf:
    """What the environment said about one trajectory, attached to its last segment."""

    segment: int
    stop_reason: StopReason
    reward: float
    """Return of the episode: the sum of its step rewards."""
    success: bool
    turn_rewards: list[float] = field(default_factory=list)
    num_turns: int = 0
    tool_calls: dict[str, int] = field(default_factory=dict)
    """Calls per tool name."""
    tool_errors: dict[str, int] = field(default_factory=dict)
    """Calls per tool name whose result was an error, timeouts included."""
    answer: str | None = None
    error: str | None = None
    """Of an invalid episode: what failed."""
    fork_of: int | None = None
    """Segment after which this trajectory left its parent's path; None for one sampled from the prompt."""
    root: int = 0
    """Which trajectory sampled from the prompt this one is, or was branched from, counted from 0 in its tree."""
    state_keys: list[str] = field(default_factory=list)
    """One for each turn: what the environment calls the state in which it was taken; empty if it does not say.

    Turns with equal keys were taken in the same state (GiGPO, arXiv:2505.10978, section 4.2)."""
    reward_parts: dict[str, float] = field(default_factory=dict)
    """Named parts whose sum is the return; empty where the environment gives a plain number."""
    episode: str | None = None
    """What the journal of the run calls it; None where there is no journal."""

    @property
    def valid(self) -> bool:
        """False where infrastructure failed, so that the episode must not enter any statistic."""
        return self.stop_reason is not StopReason.INVALID


@dataclass(slots=True)
class Tree:
    """All episodes of one task, every token stored once."""

    task_id: str
    segments: list[Segment] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(self, parent: int | None, origin: Origin, turn: int, token_ids: list[int], **tokens: Any) -> Segment:
        """Appends a segment; `tokens` are the per-token fields of `Segment`."""
        tokens.setdefault("action_mask", [int(origin == "assistant")] * len(token_ids))
        segment = Segment(len(self.segments), parent, origin, turn, token_ids, **tokens)
        self.segments.append(segment)
        return segment

    def path(self, segment: int) -> list[Segment]:
        """The segments from the root to `segment`, both included."""
        nodes: list[Segment] = []
        current: int | None = segment
        while current is not None:
            nodes.append(self.segments[current])
            current = nodes[-1].parent
        return nodes[::-1]

    def token_ids(self, segment: int) -> list[int]:
        """All tokens from the root to the end of `segment`."""
        return [token for node in self.path(segment) for token in node.token_ids]

    def in_path_order(self) -> "Tree":
        """The same tree with segments numbered as they are met on the paths of the leaves, in their order.

        However the episodes happened to run, equal episodes then give an equal tree. Segments on no path are dropped.
        """
        numbers: dict[int, int] = {}
        for leaf in self.leaves:
            for segment in self.path(leaf.segment):
                numbers.setdefault(segment.id, len(numbers))
        segments = [
            replace(self.segments[old], id=new, parent=None if parent is None else numbers[parent])
            for old, new in numbers.items()
            for parent in [self.segments[old].parent]
        ]
        leaves = [
            replace(
                leaf, segment=numbers[leaf.segment], fork_of=None if leaf.fork_of is None else numbers[leaf.fork_of]
            )
            for leaf in self.leaves
        ]
        return replace(self, segments=segments, leaves=leaves)

    @property
    def valid_leaves(self) -> list[Leaf]:
        """The leaves that count."""
        return [leaf for leaf in self.leaves if leaf.valid]

    @property
    def num_tokens(self) -> int:
        """Unique tokens."""
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def num_path_tokens(self) -> int:
        """Tokens counted once per trajectory that contains them."""
        return sum(len(self.token_ids(leaf.segment)) for leaf in self.leaves)

    def to_json(self) -> dict[str, Any]:
        """A JSON-clean dictionary; non-finite numbers become None."""
        data: dict[str, Any] = _finite(asdict(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Tree":
        """The inverse of `to_json`."""
        segments = [Segment(**segment) for segment in data["segments"]]
        leaves = [Leaf(**{**leaf, "stop_reason": StopReason(leaf["stop_reason"])}) for leaf in data["leaves"]]
        return cls(data["task_id"], segments, leaves, dict(data["metadata"]))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_trees(path: Path, trees: Iterable[Tree]) -> None:
    """Appends trees to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(tree.to_json(), separators=(",", ":")) + "\n" for tree in trees)


def read_trees(path: Path) -> Iterator[Tree]:
    """Reads what `write_trees` wrote.

    Raises:
        DataError: A row is not a tree; the message names the row.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Tree.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, row {number} is not a trajectory tree: {error!r}") from error
