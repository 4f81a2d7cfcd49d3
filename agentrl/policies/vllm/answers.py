"""Reads what a vLLM server answers to `/inference/v1/generate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.policies.vllm.engine import Order, Sampled
from agentrl.policies.vllm.orders import sampled_turn

_SHOWN = 200


def read_answer(answer: Any, order: Order, versions: Sequence[str] = ()) -> Sampled:
    """The turn in an answer.

    Args:
        answer: Decoded.
        order: What was asked for.
        versions: Of the weights that sampled the turn, oldest first (see `sampled_turn`).

    Raises:
        EngineLostError: The request was broken off.
        InfrastructureError: It is something else, or vLLM failed at this request.
        BrokenModelError: It was sampled from NaN.
    """
    try:
        (choice,) = answer["choices"]
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        parts: dict[str, Any] = {
            "token_ids": [int(token) for token in choice["token_ids"]],
            "tables": [_table(entry) for entry in (choice["logprobs"] or {}).get("content") or ()],
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
            "versions": versions,
            "num_cached": int(details.get("cached_tokens") or 0),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InfrastructureError(
            f"It answered with something else than a turn: {str(answer)[:_SHOWN]!r} ({type(error).__name__} {error})."
        ) from error
    return sampled_turn(order, **parts)


def weight_names(answer: Any) -> list[str]:
    """Names of the weights that sampled the turn, oldest first; empty if the answer has none."""
    try:
        return [str(span["version"]) for span in answer["choices"][0].get("weight_versions") or ()]
    except (KeyError, IndexError, TypeError, AttributeError):
        return []


def _table(entry: Mapping[str, Any]) -> dict[int, float]:
    """Log-probabilities by token; the sampled one's is there once, be it among the most probable or not."""
    table = {int(other["token_id"]): float(other["logprob"]) for other in entry.get("top_logprobs") or ()}
    return {**table, int(entry["token_id"]): float(entry["logprob"])}
