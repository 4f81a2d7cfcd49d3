"""From requests to orders, from orders to vLLM's sampling parameters, and from what vLLM answers to completions.

The same for the engine in this process and for servers, so that both sample alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentrl.chat.template import Tokenizer
from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import Completion, Request, Sampling, StopCause
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.entropy import NO_LOGPROB, entropy_from_top, most_probable

_TEMPERATURES = (0.01, 2.0)
"""vLLM refuses higher ones and silently raises lower ones."""
_SEED_BITS = (1 << 63) - 1
"""vLLM's seeds are signed, and -1 means none."""


class OrderDesk:
    """Writes orders for one model, and reads what comes of them.

    Args:
        tokenizer: Of the model.
        end_of_turn_ids: Tokens that end a turn.
        vocab_size: Width of the model's output.
        context_length: Longest sequence in tokens.
        num_top: How many of the most probable tokens are asked for at each position, to estimate the entropy.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_of_turn_ids: Iterable[int],
        *,
        vocab_size: int,
        context_length: int,
        num_top: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_of_turn_ids)
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._num_top = num_top
        self._stop_ids: dict[tuple[str, ...], frozenset[int]] = {}

    def order(self, request: Request, version: int) -> Order:
        """What an engine is asked for.

        Args:
            request: What the rollout asked for.
            version: Of the weights at this moment.

        Raises:
            PolicyError: The sequence would be longer than the model's context.
            ConfigError: A temperature that vLLM cannot sample at.
        """
        if len(request.token_ids) + request.max_tokens > self._context_length:
            raise PolicyError(
                f"A sequence of {len(request.token_ids)} tokens plus {request.max_tokens} new ones exceeds the model's "
                f"context of {self._context_length}. Lower rollout.max_episode_tokens."
            )
        check_sampling(request.sampling)
        return Order(
            token_ids=request.token_ids,
            max_tokens=request.max_tokens,
            stop=request.stop,
            stop_token_ids=tuple(sorted(self._end_ids | self._stops(request.stop))),
            seed=request.seed,
            sampling=request.sampling,
            num_top=self._num_top,
            version=version,
        )

    def completion(self, request: Request, sampled: Sampled) -> Completion:
        """What the rollout gets.

        Log-probabilities of greedy decoding are 0, with those at temperature 1 as the raw ones, and `policy_version` is
        the oldest that had a part in the turn. Two things are less than what `TransformersPolicy` gives: entropies are
        lower bounds (`entropy_from_top`), and where top-p or top-k cut the distribution they are those of what was left
        and there are no raw log-probabilities, since vLLM reports one distribution only. Trainers must not be given
        such turns.
        """
        greedy = request.sampling.temperature == 0.0
        return Completion(
            sequence=request.sequence,
            token_ids=sampled.token_ids,
            logprobs=[0.0] * len(sampled.token_ids) if greedy else sampled.logprobs,
            raw_logprobs=sampled.logprobs if greedy else None,
            entropies=[entropy_from_top(top, self._vocab_size) for top in sampled.top],
            cause=self._cause(request, sampled),
            policy_version=min(sampled.versions),
        )

    def _cause(self, request: Request, sampled: Sampled) -> StopCause:
        """The order of precedence is `TransformersPolicy`'s; vLLM knows tokens that stop, but not what for."""
        last = sampled.token_ids[-1]
        if last in self._end_ids:
            return "end_of_turn"
        return "stop_string" if last in self._stops(request.stop) else sampled.cause

    def _stops(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Those stop strings that are one token: such a turn ends in the engine's core, without a token too many."""
        if stop not in self._stop_ids:
            spelled = [(text, list(self._tokenizer.encode(text, add_special_tokens=False))) for text in stop]
            self._stop_ids[stop] = frozenset(
                ids[0]
                for text, ids in spelled
                if len(ids) == 1 and self._tokenizer.decode(ids, skip_special_tokens=False) == text
            )
        return self._stop_ids[stop]


def check_sampling(sampling: Sampling) -> None:
    """Whether vLLM can sample so.

    Raises:
        ConfigError: A temperature at which it cannot.
    """
    lowest, highest = _TEMPERATURES
    if sampling.temperature and not lowest <= sampling.temperature <= highest:
        raise ConfigError(
            f"vLLM samples at temperature 0 (greedy) or from {lowest:g} to {highest:g}, got {sampling.temperature!r}. "
            "Use such a temperature, or policy.engine: transformers."
        )


def sampling_fields(order: Order) -> dict[str, Any]:
    """The fields of `vllm.SamplingParams` for an order; they have the same names over HTTP.

    Nothing but the order's own tokens and strings ends a turn, not even the end-of-text token of the model's config:
    `TransformersPolicy` does not know it either. Stop strings are compared with text in which special tokens are shown,
    since a call's end marker may be one.
    """
    greedy = order.sampling.temperature == 0.0
    return {
        "temperature": order.sampling.temperature,
        "top_p": 1.0 if greedy else order.sampling.top_p,
        "top_k": 0 if greedy else order.sampling.top_k,
        "seed": order.seed & _SEED_BITS,
        "max_tokens": order.max_tokens,
        "stop": list(order.stop),
        "stop_token_ids": list(order.stop_token_ids),
        "ignore_eos": True,
        "detokenize": bool(order.stop),
        "skip_special_tokens": False,
        "logprobs": order.num_top + 1,
    }


def from_output(output: Any, order: Order) -> Sampled:
    """Reads a `vllm.RequestOutput` that is finished, or None if there was none.

    Raises:
        EngineLostError: The request was broken off.
        InfrastructureError: vLLM failed at this request.
        BrokenModelError: It sampled from NaN.
    """
    if output is None:
        raise EngineLostError("vLLM ended a request without an answer.")
    turn = output.outputs[0]
    return sampled_turn(
        order,
        token_ids=list(turn.token_ids),
        tables=[{token: entry.logprob for token, entry in table.items()} for table in turn.logprobs or ()],
        finish_reason=turn.finish_reason,
        stop_reason=turn.stop_reason,
        versions=[span.version for span in turn.weight_versions or ()],
        num_cached=output.num_cached_tokens or 0,
    )


def sampled_turn(
    order: Order,
    *,
    token_ids: list[int],
    tables: Sequence[Mapping[int, float]],
    finish_reason: str | None,
    stop_reason: int | str | None,
    versions: Sequence[str | None],
    num_cached: int,
) -> Sampled:
    """Checks and translates an answer.

    Args:
        order: What was asked for.
        token_ids: Sampled ones.
        tables: For each of them, log-probabilities by token, its own included.
        finish_reason: In vLLM's words.
        stop_reason: The string or token that stopped it, if any.
        versions: Names of the weights that sampled the turn, oldest first. Unless it is a number it is a name that
            vLLM gave before any update, and then the order's version is the one.
        num_cached: Tokens of the prompt that were not computed.

    Raises:
        EngineLostError: The request was broken off.
        InfrastructureError: vLLM failed at this request, or answered something else.
        BrokenModelError: It sampled from NaN.
    """
    if finish_reason == "abort":
        raise EngineLostError("vLLM broke a request off.")
    if finish_reason not in ("stop", "length") or not token_ids or len(tables) != len(token_ids):
        raise InfrastructureError(
            f"vLLM answered a request for {order.max_tokens} tokens with {len(token_ids)}, with log-probabilities of "
            f"{len(tables)} of them, and with the end {finish_reason!r}."
        )
    logprobs = [table.get(token, math.nan) for token, table in zip(token_ids, tables, strict=True)]
    for place, logprob in enumerate(logprobs):
        if not (math.isfinite(logprob) and logprob > NO_LOGPROB):
            raise BrokenModelError(
                f"vLLM reports {logprob} as the log-probability of the token it sampled at place {place}: the model's "
                "logits are NaN. Check the weights, lower the learning rate, or use float32 or bfloat16."
            )
    cause: StopCause = "stop_string" if isinstance(stop_reason, str) else "end_of_turn"
    numbers = [version_number(version, order.version) for version in versions] or [order.version]
    return Sampled(
        token_ids=token_ids,
        logprobs=logprobs,
        top=[most_probable(table.values(), order.num_top) for table in tables],
        cause="length" if finish_reason == "length" else cause,
        versions=(numbers[0], numbers[-1]),
        num_cached=num_cached,
    )


def version_number(name: str | None, default: int) -> int:
    """The number of the weights that vLLM calls by this name; `default` before the first update."""
    return int(name) if name is not None and name.isdecimal() else default
