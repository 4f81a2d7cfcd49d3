"""The in-process engine on `transformers`: continuous batching with a key/value row per live sequence.

A sequence keeps its row between turns, and a fork copies it, so no token goes through the model twice. The rows of
sequences that are generating stand first and form one batch; a sequence that waits for a tool stands behind them.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby, takewhile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.chat.template import Tokenizer
from agentrl.errors import PolicyError
from agentrl.policies.core import Completion, Request, SequenceId, StopCause
from agentrl.policies.live_sequence import LiveSequence, RowTable
from agentrl.policies.sampler import Draw, draw_tokens
from agentrl.policies.stopping import StopMatcher

_PREFILL_TOKENS = 16_384  # of one forward pass, padding included; bounds its memory


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
                "Use another model."
            )
        self.model = model
        self.version = 0
        self.context_length = int(model.config.max_position_embeddings)
        self.counters = Counters()
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_of_turn_ids)
        self._rows = RowTable()
        self._sequences: dict[SequenceId, LiveSequence] = {}
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
        sequence = self._sequences.setdefault(request.sequence, LiveSequence(request.sequence, []))
        if sequence.request is not None:
            raise PolicyError(f"Sequence {request.sequence} has a request in flight already.")
        if request.token_ids[: len(sequence.token_ids)] != sequence.token_ids:
            raise PolicyError(f"Request for sequence {request.sequence} does not extend the tokens it had before.")
        sequence.begin(request)
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
        copy = LiveSequence(child, source.token_ids[:num_tokens], parent=parent)
        self._sequences[child] = copy
        if source.cached >= num_tokens:
            self._copy_from_parent(copy)

    def release(self, sequence: SequenceId) -> None:
        """Forgets a sequence and cancels its request, if any."""
        gone = self._sequences.pop(sequence, None)
        if gone is None:
            return
        if self._rows.is_active(gone):
            self._rows.deactivate(gone)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._rows.free(gone)
        if not self._sequences:
            self._rows.clear()  # the update that follows a rollout needs the memory

    def weights_changed(self) -> None:
        """Counts a weight update and drops everything computed with the old weights.

        Raises:
            PolicyError: A sequence is still generating; its tokens would come from two policies.
        """
        if self._rows.num_active or self._waiting:
            raise PolicyError("The weights changed while sequences were generating.")
        self.version += 1
        self._rows.clear()
        for sequence in self._sequences.values():
            sequence.cached, sequence.parent = 0, None
            sequence.logits.clear()

    def yield_memory(self) -> AbstractContextManager[None]:
        """Nothing to yield: what is trained is what samples, and a rollout leaves no rows behind."""
        return nullcontext()

    def metrics(self) -> dict[str, float]:
        """Nothing beyond what rollouts tell."""
        return {}

    def close(self) -> None:
        """Nothing runs beside this object."""

    # Admission and prefill -------------------------------------------------------------------------------------------

    def _admit(self) -> Iterator[Completion]:
        """Computes the given tokens of waiting sequences, parents before the forks that need them."""
        while self._waiting:
            ready = [self._sequences[i] for i in self._waiting if not self._waits_for_parent(self._sequences[i])]
            self._waiting = [i for i in self._waiting if self._waits_for_parent(self._sequences[i])]
            for sequence in ready:
                if sequence.parent is not None:
                    self._copy_from_parent(sequence)
            self._prefill([sequence for sequence in ready if not sequence.has_next_logits])
            for sequence in ready:
                if not self._rows.is_active(sequence):
                    self._rows.activate(sequence)
            logits = torch.stack([s.logits[len(s.token_ids)] for s in ready])
            yield from self._sample(ready, logits)

    def _waits_for_parent(self, sequence: LiveSequence) -> bool:
        """Whether the parent is about to compute the shared tokens; a parent that is gone cannot help any more."""
        parent = self._sequences.get(sequence.parent) if sequence.parent is not None else None
        return parent is not None and parent.cached == 0 and parent.id in self._waiting

    def _prefill(self, sequences: list[LiveSequence]) -> None:
        for sequence in sequences:
            # A row that is complete but whose next-token logits were not kept computes its last token again.
            sequence.cached = min(sequence.cached, len(sequence.token_ids) - 1)
        by_width = sorted(sequences, key=_width)
        for _, bucket in groupby(by_width, key=lambda sequence: sequence.num_new.bit_length()):
            group = list(bucket)
            size = max(1, _PREFILL_TOKENS // group[-1].num_new)
            for start in range(0, len(group), size):
                self._prefill_group(group[start : start + size])

    def _prefill_group(self, group: list[LiveSequence]) -> None:
        """One forward pass over new tokens of several sequences, padded on the left.

        Padding repeats a sequence's first new token at its own column, which writes the same keys and values again:
        nothing else is touched, and the last position is the last token of every row.
        """
        first = self._rows.num_active
        for sequence in group:
            self._rows.activate(sequence)
        width = group[-1].num_new
        offsets = torch.arange(width)
        columns = torch.stack([s.cached + (offsets - (width - s.num_new)).clamp_min(0) for s in group])
        ids = torch.tensor([[s.token_ids[s.cached]] * (width - s.num_new) + s.token_ids[s.cached :] for s in group])
        logits = self._forward(first, ids, columns)
        for sequence, row in zip(group, logits, strict=True):
            self.counters.prefilled_tokens += sequence.num_new
            sequence.cached = len(sequence.token_ids)
            sequence.keep_logits(row)

    # Decoding --------------------------------------------------------------------------------------------------------

    def _decode(self) -> Iterator[Completion]:
        """Feeds the last sampled token of every generating sequence and draws the next one."""
        active = self._rows.active()
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
        self._rows.kv.open_window(first, columns, length)
        visible = torch.arange(length, device=device)[None, None, :] <= columns[:, :, None]
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=device)
        mask.masked_fill_(~visible, torch.finfo(self.model.dtype).min)
        self.counters.forward_passes += 1
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask[:, None],
            position_ids=columns,
            past_key_values=self._rows.kv,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _sample(self, sequences: list[LiveSequence], logits: Tensor) -> list[Completion]:
        finished: list[Completion] = []
        kinds = [sequence.active_request.sampling for sequence in sequences]
        for sampling in dict.fromkeys(kinds):
            index = [i for i, kind in enumerate(kinds) if kind == sampling]
            group = [sequences[i] for i in index]
            uniforms = torch.tensor([sequence.next_uniform() for sequence in group], device=logits.device)
            draw = draw_tokens(logits if len(index) == len(sequences) else logits[index], uniforms, sampling)
            finished.extend(self._record(group, draw))
        return finished

    def _record(self, group: list[LiveSequence], draw: Draw) -> Iterator[Completion]:
        columns = zip(
            group,
            draw.tokens.tolist(),
            draw.logprobs.tolist(),
            draw.raw_logprobs.tolist(),
            draw.entropies.tolist(),
            strict=True,
        )
        for sequence, token, logprob, raw, entropy in columns:
            sequence.append(token, logprob, raw, entropy)
            self.counters.sampled_tokens += 1
            cause = self._stop_cause(sequence, token)
            if cause is not None:
                self._rows.deactivate(sequence)
                yield sequence.finish(cause, self.version)

    def _stop_cause(self, sequence: LiveSequence, token: int) -> StopCause | None:
        request = sequence.active_request
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

    def _copy_from_parent(self, sequence: LiveSequence) -> None:
        """Takes over what the parent has computed of the shared tokens; the rest is prefilled."""
        parent = self._sequences.get(sequence.parent) if sequence.parent is not None else None
        sequence.parent = None
        if parent is None or parent.row is None:
            return
        pairs = zip(sequence.token_ids, parent.token_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._rows.take_over(parent, sequence, min(shared, parent.cached))


def _width(sequence: LiveSequence) -> int:
    return sequence.num_new
