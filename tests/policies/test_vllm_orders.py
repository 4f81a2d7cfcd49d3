"""Requests to orders to sampling parameters, and answers to completions, against `TransformersPolicy`'s rules."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import Request, Sampling
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.orders import OrderDesk, from_output, sampling_fields

CALL_END = 4  # "</tool_call>" is one token of the byte tokenizer, "<|im_end|>" is 2
END = 2
STOP = ("</tool_call>",)


@pytest.fixture
def desk(byte_tokenizer: Any) -> OrderDesk:
    return OrderDesk(byte_tokenizer, [END, 0], vocab_size=261, context_length=100, num_top=3)


def request(**changes: Any) -> Request:
    return Request(**({"sequence": 7, "token_ids": [9, 9], "max_tokens": 5, "stop": STOP, "seed": 8} | changes))


def sampled(*token_ids: int, **changes: Any) -> Sampled:
    parts: dict[str, Any] = {
        "token_ids": list(token_ids),
        "logprobs": [-0.5] * len(token_ids),
        "top": [[math.log(0.5)] * 2] * len(token_ids),
        "cause": "end_of_turn",
        "versions": (3, 3),
        "num_cached": 0,
    }
    return Sampled(**parts | changes)


def output(**changes: Any) -> Any:
    """What vLLM gives in process for two tokens; the first was sampled from outside the most probable."""
    entry = {7: -5.0, 1: -0.1, 2: -2.5, 3: -9.0}
    tables = [{i: SimpleNamespace(logprob=p) for i, p in entry.items()} for _ in range(2)]
    spans = [SimpleNamespace(version="3"), SimpleNamespace(version="4")]
    turn = {
        "token_ids": (7, 1),
        "logprobs": tables,
        "finish_reason": "stop",
        "stop_reason": 2,
        "weight_versions": spans,
    }
    return SimpleNamespace(outputs=[SimpleNamespace(**turn | changes)], num_cached_tokens=32)


def test_an_order_has_every_token_that_stops(desk: OrderDesk) -> None:
    order = desk.order(request(), version=3)
    assert (order.stop, order.stop_token_ids, order.version, order.num_top) == (STOP, (0, END, CALL_END), 3, 3)
    assert desk.order(request(stop=()), version=3).stop_token_ids == (0, END)
    assert desk.order(request(stop=("ab",)), version=3).stop_token_ids == (0, END)  # two tokens: left to the front end


def test_a_special_token_that_decodes_to_something_else_does_not_stop(desk: OrderDesk) -> None:
    """An encoder that swallows or adds a space must not make a token stop that is not the string."""

    class Odd:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [17]

        def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
            return " </tool_call>"

    odd: Any = Odd()
    other = OrderDesk(odd, [END], vocab_size=261, context_length=100, num_top=3)
    assert other.order(request(), version=0).stop_token_ids == (END,)


def test_the_fields_of_vllm(desk: OrderDesk) -> None:
    fields = sampling_fields(desk.order(request(sampling=Sampling(temperature=0.7, top_p=0.9, top_k=5)), version=0))
    assert fields == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 8,
        "max_tokens": 5,
        "stop": ["</tool_call>"],
        "stop_token_ids": [0, 2, 4],
        "ignore_eos": True,
        "detokenize": True,
        "skip_special_tokens": False,
        "logprobs": 4,
    }
    assert not sampling_fields(desk.order(request(stop=()), version=0))["detokenize"]
    greedy = sampling_fields(desk.order(request(sampling=Sampling(temperature=0.0, top_p=0.5, top_k=2)), version=0))
    assert (greedy["temperature"], greedy["top_p"], greedy["top_k"]) == (0.0, 1.0, 0)


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1])
def test_a_seed_is_never_negative_nor_too_large(desk: OrderDesk, seed: int) -> None:
    """-1 would mean no seed at all, and more than 63 bits are refused."""
    assert 0 <= sampling_fields(desk.order(request(seed=seed), version=0))["seed"] < 1 << 63


@pytest.mark.parametrize("temperature", [2.01, 100.0, 0.009])
def test_temperatures_that_vllm_would_change_are_refused(desk: OrderDesk, temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"0\.01 to 2"):
        desk.order(request(sampling=Sampling(temperature=temperature)), version=0)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 2.0])
def test_temperatures_that_vllm_takes(desk: OrderDesk, temperature: float) -> None:
    assert (
        desk.order(request(sampling=Sampling(temperature=temperature)), version=0).sampling.temperature == temperature
    )


def test_a_prompt_that_does_not_fit(desk: OrderDesk) -> None:
    """vLLM would take it and end early."""
    desk.order(request(token_ids=[1] * 95), version=0)
    with pytest.raises(PolicyError, match="96 tokens plus 5 new ones exceeds the model's context of 100"):
        desk.order(request(token_ids=[1] * 96), version=0)


@pytest.mark.parametrize(
    ("last", "said", "cause"),
    [
        (END, "length", "end_of_turn"),
        (END, "stop_string", "end_of_turn"),
        (CALL_END, "end_of_turn", "stop_string"),
        (CALL_END, "length", "stop_string"),
        (50, "stop_string", "stop_string"),
        (50, "length", "length"),
    ],
)
def test_the_cause_is_that_of_the_other_engine(desk: OrderDesk, last: int, said: Any, cause: str) -> None:
    """End-of-turn before stop strings before the length, whatever vLLM calls it."""
    assert desk.completion(request(), sampled(60, last, cause=said)).cause == cause


def test_a_call_end_is_an_ordinary_token_without_the_stop_string(desk: OrderDesk) -> None:
    assert desk.completion(request(stop=()), sampled(CALL_END, cause="length")).cause == "length"


def test_a_completion(desk: OrderDesk) -> None:
    """Entropies: 0.5, 0.5, nothing left: log 2."""
    completion = desk.completion(request(), sampled(60, END, versions=(3, 5)))
    assert (completion.sequence, completion.token_ids, completion.policy_version) == (7, [60, END], 3)
    assert (completion.logprobs, completion.raw_logprobs) == ([-0.5, -0.5], None)
    assert completion.entropies == pytest.approx([math.log(2)] * 2)


def test_greedy_is_certain_and_raw_is_what_vllm_reports(desk: OrderDesk) -> None:
    completion = desk.completion(request(sampling=Sampling(temperature=0.0)), sampled(60, END))
    assert (completion.logprobs, completion.raw_logprobs) == ([0.0, 0.0], [-0.5, -0.5])


def test_truncation_has_no_raw_logprobs(desk: OrderDesk) -> None:
    completion = desk.completion(request(sampling=Sampling(top_k=2)), sampled(60, END))
    assert (completion.logprobs, completion.raw_logprobs) == ([-0.5, -0.5], None)


def order() -> Order:
    return Order(
        token_ids=[1], max_tokens=5, stop=(), stop_token_ids=(2,), seed=0, sampling=Sampling(), num_top=3, version=3
    )


def test_an_output_of_the_engine_in_process() -> None:
    turn = from_output(output(), order())
    assert (turn.token_ids, turn.logprobs, turn.versions, turn.num_cached) == ([7, 1], [-5.0, -0.1], (3, 4), 32)
    assert turn.top == [[-0.1, -2.5, -5.0]] * 2
    assert turn.cause == "end_of_turn"
    assert from_output(output(stop_reason="ab"), order()).cause == "stop_string"
    assert from_output(output(finish_reason="length", stop_reason=None), order()).cause == "length"


@pytest.mark.parametrize("spans", [None, [], [SimpleNamespace(version="default")]])
def test_versions_without_a_number_are_the_order_s(spans: Any) -> None:
    assert from_output(output(weight_versions=spans), order()).versions == (3, 3)


@pytest.mark.parametrize("value", [math.nan, -math.inf, -9999.0, math.inf])
def test_nan_is_an_error_and_no_probability(value: float) -> None:
    tables = [{7: SimpleNamespace(logprob=-0.1)}, {1: SimpleNamespace(logprob=value)}]
    with pytest.raises(BrokenModelError, match="at place 1"):
        from_output(output(logprobs=tables), order())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"finish_reason": "abort"}, EngineLostError),
        ({"finish_reason": "error"}, InfrastructureError),
        ({"finish_reason": "repetition"}, InfrastructureError),
        ({"token_ids": ()}, InfrastructureError),
        ({"logprobs": None}, InfrastructureError),
    ],
)
def test_answers_that_are_no_turn(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        from_output(output(**changes), order())
    assert raised.type is error


def test_no_output_at_all() -> None:
    with pytest.raises(EngineLostError):
        from_output(None, order())
