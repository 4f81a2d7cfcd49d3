"""The in-process engine on `transformers`: continuous batching with a key/value row per live sequence.

A sequence keeps its row between turns, and a fork copies it, so no token goes through the model twice. The rows of
sequences that are generating stand first and form one batch; a sequence that waits for a tool stands behind them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.chat.template import Tokenizer
from agentrl.errors import PolicyError
from agentrl.policies.core import Completion, Request, Sampling, SequenceId, StopCause
from agentrl.policies.kv_rows import KVRows
from agentrl.policies.sampler import Draw, draw_tokens
from agentrl.policies.stopping import StopMatcher
from agentrl.seeding import generator

_PREFILL_TOKENS = 16_384  # of one forward pass, padding included; bounds its memory


@dataclass(slots=True)
class _Sequence:
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


@dataclass(slots=True)
class Counters:
    """What went through the model since the engine was made."""

    prefilled_tokens: int = 0
    """Given tokens: prompts, tool results, glue, and the last sampled token of a turn that goes on."""
    decoded_tokens: int = 0
    """Sampled tokens fed back one by one."""
    sampled_tokens: int = 0
    forward_passes: int = 0


class TransformersPolicy:
    """A causal language model that samples in this process, on a CPU or one GPU (see `policies.core.Policy`).

    Args:
        model: A `transformers` causal LM whose layers all use full attention.
        tokenizer: Its tokenizer.
        end_of_turn_ids: Tokens that end a turn.

    Raises:
        PolicyError: The model has layers that cannot keep a row per sequence.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, end_of_turn_ids: Iterable[int]) -> None:
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise PolicyError(
                f"The transformers engine needs full attention in every layer; this model has {sorted(kinds)}. "
                "Use another model, or the vllm engine."
            )
        self.model = model
        self.version = 0
        self.context_length = int(model.config.max_position_embeddings)
        self.counters = Counters()
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_of_turn_ids)
        self._kv = KVRows()
        self._rows: list[SequenceId | None] = []
        self._num_active = 0
        self._sequences: dict[SequenceId, _Sequence] = {}
        self._waiting: list[SequenceId] = []
        self._matchers: dict[tuple[str, ...], StopMatcher] = {}

    # Policy protocol -------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            PolicyError: The request does not extend what the sequence had, or is longer than the model's context.
        """
        if len(request.token_ids) + request.max_tokens > self.context_length:
            raise PolicyError(
                f"A sequence of {len(request.token_ids)} tokens plus {request.max_tokens} new ones exceeds the model's "
                f"context of {self.context_length}. Lower rollout.max_episode_tokens."
            )
        sequence = self._sequences.setdefault(request.sequence, _Sequence(request.sequence, []))
        if sequence.request is not None:
            raise PolicyError(f"Sequence {request.sequence} has a request in flight already.")
        if request.token_ids[: len(sequence.token_ids)] != sequence.token_ids:
            raise PolicyError(f"Request for sequence {request.sequence} does not extend the tokens it had before.")
        sequence.token_ids = list(request.token_ids)
        sequence.request = request
        sequence.stream = generator(request.seed, "tokens")
        sequence.logprobs, sequence.raw_logprobs, sequence.entropies = [], [], []
        self._waiting.append(request.sequence)

    @torch.inference_mode()
    def poll(self) -> list[Completion]:
        """Prefills what was submitted, then advances every generating sequence by one token.

        Raises:
            PolicyError: The device is out of memory, or the model returned NaN.
        """
        self.model.eval()
        try:
            finished = list(self._admit())
            finished.extend(self._decode())
        except torch.OutOfMemoryError as error:
            raise PolicyError("The device ran out of memory. Lower rollout.max_concurrent_episodes.") from error
        except ValueError as error:
            raise PolicyError(str(error)) from error
        return finished

    def fork(self, parent: SequenceId, child: SequenceId, num_tokens: int) -> None:
        """Lets `child` begin with the first `num_tokens` tokens of `parent`: one copy of a row, no computation.

        Raises:
            PolicyError: The parent is unknown or shorter than that.
        """
        source = self._sequences.get(parent)
        if source is None or len(source.token_ids) < num_tokens:
            raise PolicyError(f"Cannot fork {num_tokens} tokens of sequence {parent}: it is unknown or shorter.")
        copy = _Sequence(child, source.token_ids[:num_tokens], parent=parent)
        self._sequences[child] = copy
        if source.cached >= num_tokens:
            self._copy_from_parent(copy)

    def release(self, sequence: SequenceId) -> None:
        """Forgets a sequence and cancels its request, if any."""
        gone = self._sequences.pop(sequence, None)
        if gone is None:
            return
        if gone.request is not None and sequence not in self._waiting:
            self._deactivate(gone)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if gone.row is not None:
            self._rows[gone.row] = None

    def weights_changed(self) -> None:
        """Counts a weight update and drops everything computed with the old weights.

        Raises:
            PolicyError: A sequence is still generating; its tokens would come from two policies.
        """
        if self._num_active or self._waiting:
            raise PolicyError("The weights changed while sequences were generating.")
        self.version += 1
        self._kv.clear()
        self._rows.clear()
        for sequence in self._sequences.values():
            sequence.cached, sequence.row, sequence.parent = 0, None, None
            sequence.logits.clear()

    # Admission and prefill -------------------------------------------------------------------------------------------

    def _admit(self) -> Iterator[Completion]:
        """Computes the given tokens of waiting sequences, parents before the forks that need them."""
        while self._waiting:
            ready = [self._sequences[i] for i in self._waiting if not self._waits_for_parent(self._sequences[i])]
            self._waiting = [i for i in self._waiting if self._waits_for_parent(self._sequences[i])]
            for sequence in ready:
                if sequence.parent is not None:
                    self._copy_from_parent(sequence)
            self._prefill([s for s in ready if not self._has_logits(s)])
            for sequence in ready:
                if sequence.row is None or sequence.row >= self._num_active:
                    self._activate(sequence)
            ready.sort(key=_row_of)
            logits = torch.stack([s.logits[len(s.token_ids)] for s in ready])
            yield from self._sample(ready, logits)

    def _waits_for_parent(self, sequence: _Sequence) -> bool:
        """Whether the parent is about to compute the shared tokens; a parent that is gone cannot help any more."""
        parent = self._sequences.get(sequence.parent) if sequence.parent is not None else None
        return parent is not None and parent.cached == 0 and parent.id in self._waiting

    def _has_logits(self, sequence: _Sequence) -> bool:
        return sequence.cached == len(sequence.token_ids) and sequence.cached in sequence.logits

    def _prefill(self, sequences: list[_Sequence]) -> None:
        for sequence in sequences:
            # A row that is complete but whose next-token logits were not kept computes its last token again.
            sequence.cached = min(sequence.cached, len(sequence.token_ids) - 1)
        by_width = sorted(sequences, key=_num_new)
        for _, bucket in groupby(by_width, key=lambda sequence: _num_new(sequence).bit_length()):
            group = list(bucket)
            size = max(1, _PREFILL_TOKENS // _num_new(group[-1]))
            for start in range(0, len(group), size):
                self._prefill_group(group[start : start + size])

    def _prefill_group(self, group: list[_Sequence]) -> None:
        """One forward pass over new tokens of several sequences, padded on the left.

        Padding repeats a sequence's first new token at its own column, which writes the same keys and values again:
        nothing else is touched, and the last position is the last token of every row.
        """
        first = self._num_active
        for sequence in group:
            self._activate(sequence)
        width = _num_new(group[-1])
        offsets = torch.arange(width)
        columns = torch.stack([s.cached + (offsets - (width - _num_new(s))).clamp_min(0) for s in group])
        ids = torch.tensor([[s.token_ids[s.cached]] * (width - _num_new(s)) + s.token_ids[s.cached :] for s in group])
        logits = self._forward(first, ids, columns)
        for sequence, row in zip(group, logits, strict=True):
            self.counters.prefilled_tokens += _num_new(sequence)
            sequence.cached = len(sequence.token_ids)
            opening = min(sequence.logits, default=sequence.cached)
            sequence.logits = {n: kept for n, kept in sequence.logits.items() if n == opening}
            sequence.logits[sequence.cached] = row

    # Decoding --------------------------------------------------------------------------------------------------------

    def _decode(self) -> Iterator[Completion]:
        """Feeds the last sampled token of every generating sequence and draws the next one."""
        active = [self._sequences[i] for i in self._rows[: self._num_active] if i is not None]
        if not active:
            return
        ids = torch.tensor([[s.token_ids[-1]] for s in active])
        columns = torch.tensor([[s.cached] for s in active])
        logits = self._forward(0, ids, columns)
        self.counters.decoded_tokens += len(active)
        for sequence in active:
            sequence.cached += 1
        yield from self._sample(active, logits)

    def _forward(self, first: int, ids: Tensor, columns: Tensor) -> Tensor:
        """Logits [R, V] after the last column of `ids`, for rows [first, first + R)."""
        device = self.model.device
        length = int(columns.max()) + 1
        columns = columns.to(device)
        self._kv.open_window(first, columns, length)
        visible = torch.arange(length, device=device)[None, None, :] <= columns[:, :, None]
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=device)
        mask.masked_fill_(~visible, torch.finfo(self.model.dtype).min)
        self.counters.forward_passes += 1
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask[:, None],
            position_ids=columns,
            past_key_values=self._kv,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _sample(self, sequences: list[_Sequence], logits: Tensor) -> list[Completion]:
        finished: list[Completion] = []
        keyed = [(s.request.sampling if s.request else Sampling(), i) for i, s in enumerate(sequences)]
        for sampling in dict.fromkeys(sampling for sampling, _ in keyed):
            index = [i for key, i in keyed if key == sampling]
            group = [sequences[i] for i in index]
            uniforms = torch.tensor([_next_uniform(s) for s in group], device=logits.device)
            draw = draw_tokens(logits if len(index) == len(sequences) else logits[index], uniforms, sampling)
            finished.extend(self._record(group, draw))
        return finished

    def _record(self, group: list[_Sequence], draw: Draw) -> Iterator[Completion]:
        columns = zip(
            group,
            draw.tokens.tolist(),
            draw.logprobs.tolist(),
            draw.raw_logprobs.tolist(),
            draw.entropies.tolist(),
            strict=True,
        )
        for sequence, token, logprob, raw, entropy in columns:
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.raw_logprobs.append(raw)
            sequence.entropies.append(entropy)
            self.counters.sampled_tokens += 1
            cause = self._stop_cause(sequence, token)
            if cause is not None:
                yield self._finish(sequence, cause)

    def _stop_cause(self, sequence: _Sequence, token: int) -> StopCause | None:
        request = sequence.request
        assert request is not None
        if token in self._end_ids:
            return "end_of_turn"
        if request.stop:
            matcher = self._matchers.get(request.stop)
            if matcher is None:
                matcher = StopMatcher(self._tokenizer, request.stop, int(self.model.config.vocab_size))
                self._matchers[request.stop] = matcher
            if matcher.candidates[token] and matcher.matches(sequence.token_ids[len(request.token_ids) :]):
                return "stop_string"
        return "length" if len(sequence.logprobs) >= request.max_tokens else None

    def _finish(self, sequence: _Sequence, cause: StopCause) -> Completion:
        request = sequence.request
        assert request is not None
        sequence.request = None
        self._deactivate(sequence)
        return Completion(
            sequence=sequence.id,
            token_ids=sequence.token_ids[len(request.token_ids) :],
            logprobs=sequence.logprobs,
            raw_logprobs=sequence.raw_logprobs if request.sampling.truncates else None,
            entropies=sequence.entropies,
            cause=cause,
            policy_version=self.version,
        )

    # Rows ------------------------------------------------------------------------------------------------------------

    def _activate(self, sequence: _Sequence) -> None:
        """Moves a sequence's row to the end of the generating block."""
        if sequence.row is None:
            sequence.row = self._free_row()
            self._rows[sequence.row] = sequence.id
        self._exchange(sequence.row, self._num_active)
        self._num_active += 1

    def _deactivate(self, sequence: _Sequence) -> None:
        assert sequence.row is not None
        self._num_active -= 1
        self._exchange(sequence.row, self._num_active)

    def _free_row(self) -> int:
        for row in range(self._num_active, len(self._rows)):
            if self._rows[row] is None:
                return row
        self._rows.append(None)
        return len(self._rows) - 1

    def _exchange(self, first: int, second: int) -> None:
        """Exchanges two rows, copying only what is there."""
        if first == second:
            return
        one, other = (self._sequences.get(i) if (i := self._rows[row]) is not None else None for row in (first, second))
        lengths = [s.cached if s else 0 for s in (one, other)]
        if min(lengths):
            self._kv.swap_rows(first, second, max(lengths))
        elif lengths[0]:
            self._kv.copy_row(first, second, lengths[0])
        elif lengths[1]:
            self._kv.copy_row(second, first, lengths[1])
        self._rows[first], self._rows[second] = self._rows[second], self._rows[first]
        for sequence, row in ((one, second), (other, first)):
            if sequence is not None:
                sequence.row = row

    def _copy_from_parent(self, sequence: _Sequence) -> None:
        """Takes over what the parent has computed of the shared tokens; the rest is prefilled."""
        parent = self._sequences.get(sequence.parent) if sequence.parent is not None else None
        sequence.parent = None
        if parent is None or parent.row is None:
            return
        shared = next(
            (i for i, (a, b) in enumerate(zip(sequence.token_ids, parent.token_ids, strict=False)) if a != b),
            min(len(sequence.token_ids), len(parent.token_ids)),
        )
        length = min(shared, parent.cached)
        sequence.row = self._free_row()
        self._rows[sequence.row] = sequence.id
        self._kv.copy_row(parent.row, sequence.row, length)
        sequence.cached = length
        sequence.logits = {n: logits for n, logits in parent.logits.items() if n == length}


def _num_new(sequence: _Sequence) -> int:
    return len(sequence.token_ids) - sequence.cached


def _row_of(sequence: _Sequence) -> int:
    assert sequence.row is not None
    return sequence.row


def _next_uniform(sequence: _Sequence) -> float:
    assert sequence.stream is not None
    return float(sequence.stream.random())
