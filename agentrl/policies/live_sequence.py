"""What the in-process engine knows of a live sequence, and the rows that sequences occupy."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from agentrl.policies.core import Completion, Request, SequenceId, StopCause
from agentrl.policies.kv_rows import KVRows
from agentrl.seeding import generator


@dataclass(slots=True)
class LiveSequence:
    """Tokens, how far they are computed, and the request that is being answered.

    Example:
        LiveSequence(id=3, token_ids=[5, 9, 2], cached=2, row=0): the last token was sampled and not fed yet.
    """

    id: SequenceId
    token_ids: list[int]
    """All tokens, sampled ones included."""
    cached: int = 0
    """Tokens whose keys and values are in the row."""
    row: int | None = None
    parent: SequenceId | None = None
    """Set while the tokens of a fork are still to be computed, by the parent."""
    logits: dict[int, Tensor] = field(default_factory=dict)
    """Next-token logits after the opening and after the latest prefill: where forks begin."""
    request: Request | None = None
    stream: np.random.Generator | None = None
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def begin(self, request: Request) -> None:
        """Takes up a request."""
        self.token_ids = list(request.token_ids)
        self.request = request
        self.stream = generator(request.seed, "tokens")
        self.logprobs, self.raw_logprobs, self.entropies = [], [], []

    def next_uniform(self) -> float:
        """The next number of the request's own random stream."""
        assert self.stream is not None
        return float(self.stream.random())

    def append(self, token: int, logprob: float, raw_logprob: float, entropy: float) -> None:
        """Takes a sampled token."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.raw_logprobs.append(raw_logprob)
        self.entropies.append(entropy)

    def finish(self, cause: StopCause, version: int) -> Completion:
        """Ends the request."""
        request = self.active_request
        self.request = None
        return Completion(
            sequence=self.id,
            token_ids=self.token_ids[len(request.token_ids) :],
            logprobs=self.logprobs,
            raw_logprobs=self.raw_logprobs if request.sampling.truncates else None,
            entropies=self.entropies,
            cause=cause,
            policy_version=version,
        )

    def keep_logits(self, logits: Tensor) -> None:
        """Remembers next-token logits at the end of what is cached, besides those of the opening."""
        opening = min(self.logits, default=self.cached)
        self.logits = {n: kept for n, kept in self.logits.items() if n == opening}
        self.logits[self.cached] = logits

    @property
    def active_request(self) -> Request:
        """The request that is being answered."""
        assert self.request is not None
        return self.request

    @property
    def num_new(self) -> int:
        """Tokens that have yet to go through the model."""
        return len(self.token_ids) - self.cached

    @property
    def has_next_logits(self) -> bool:
        """Whether the next token can be drawn without running the model."""
        return not self.num_new and self.cached in self.logits


class RowTable:
    """Which sequence is in which row; those that generate stand first, so that they form one batch without copies."""

    def __init__(self) -> None:
        self.kv = KVRows()
        self.num_active = 0
        self._rows: list[LiveSequence | None] = []

    def active(self) -> list[LiveSequence]:
        """The generating sequences, by row."""
        return [sequence for sequence in self._rows[: self.num_active] if sequence is not None]

    def activate(self, sequence: LiveSequence) -> None:
        """Moves a sequence to the end of the generating block, giving it a row if it has none."""
        self._exchange(self._place(sequence), self.num_active)
        self.num_active += 1

    def deactivate(self, sequence: LiveSequence) -> None:
        """Moves a sequence behind the generating block."""
        assert sequence.row is not None
        self.num_active -= 1
        self._exchange(sequence.row, self.num_active)

    def is_active(self, sequence: LiveSequence) -> bool:
        """Whether it stands in the generating block."""
        return sequence.row is not None and sequence.row < self.num_active

    def take_over(self, parent: LiveSequence, child: LiveSequence, length: int) -> None:
        """Copies the first `length` columns of the parent's row into a row for the child."""
        assert parent.row is not None
        self.kv.copy_row(parent.row, self._place(child), length)
        child.cached = length
        child.logits = {n: logits for n, logits in parent.logits.items() if n == length}

    def free(self, sequence: LiveSequence) -> None:
        """Gives a row back."""
        if sequence.row is not None:
            self._rows[sequence.row] = None
            sequence.row = None

    def clear(self) -> None:
        """Drops every row."""
        for sequence in self._rows:
            if sequence is not None:
                sequence.row = None
        self._rows.clear()
        self.kv.clear()

    def _place(self, sequence: LiveSequence) -> int:
        if sequence.row is None:
            free = (row for row in range(self.num_active, len(self._rows)) if self._rows[row] is None)
            sequence.row = next(free, len(self._rows))
            self._rows[sequence.row : sequence.row + 1] = [sequence]
        return sequence.row

    def _exchange(self, first: int, second: int) -> None:
        """Exchanges two rows, copying only what is there."""
        if first == second:
            return
        one, other = self._rows[first], self._rows[second]
        lengths = [sequence.cached if sequence else 0 for sequence in (one, other)]
        if min(lengths):
            self.kv.swap_rows(first, second, max(lengths))
        elif lengths[0]:
            self.kv.copy_row(first, second, lengths[0])
        elif lengths[1]:
            self.kv.copy_row(second, first, lengths[1])
        self._rows[first], self._rows[second] = other, one
        for sequence, row in ((one, second), (other, first)):
            if sequence is not None:
                sequence.row = row
