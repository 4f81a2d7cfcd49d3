"""The engine against plain forward passes over whole sequences, one at a time."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agentrl.errors import PolicyError
from agentrl.policies.core import Completion, Request, Sampling
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.seeding import generator

END = 2
TOLERANCE = 1e-4  # float32, other order of summation


@pytest.fixture
def policy(tiny_llama: Any, byte_tokenizer: Any) -> TransformersPolicy:
    return TransformersPolicy(tiny_llama, byte_tokenizer, [END])


def finish(policy: TransformersPolicy, count: int) -> dict[int, Completion]:
    """Polls until `count` requests are answered."""
    done: dict[int, Completion] = {}
    for _ in range(1000):
        done.update({completion.sequence: completion for completion in policy.poll()})
        if len(done) == count:
            return done
    raise AssertionError(f"only {len(done)} of {count} finished")


def request(sequence: int, token_ids: list[int], seed: int = 0, **changes: Any) -> Request:
    return Request(sequence=sequence, token_ids=token_ids, seed=seed, **{"max_tokens": 12, **changes})


def next_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([token_ids])).logits[0, -1]
    return logits.double()


def plain_sample(model: Any, token_ids: list[int], seed: int, num_tokens: int) -> Iterator[tuple[int, float, float]]:
    """Token, log-probability and entropy, recomputing everything at each step."""
    stream = generator(seed, "tokens")
    ids = list(token_ids)
    for _ in range(num_tokens):
        probabilities = torch.softmax(next_logits(model, ids), -1)
        token = int((probabilities.cumsum(0) > stream.random()).nonzero()[0])
        entropy = -sum(p * math.log(p) for p in probabilities.tolist() if p > 0)
        yield token, math.log(probabilities[token]), entropy
        ids.append(token)
        if token == END:
            return


def test_a_batch_of_ragged_requests_equals_plain_sampling(policy: TransformersPolicy) -> None:
    prompts = {i: [5 + (7 * i + j) % 200 for j in range(1 + 9 * i)] for i in range(6)}
    for i, prompt in prompts.items():
        policy.submit(request(i, prompt, seed=100 + i))
    done = finish(policy, len(prompts))
    for i, prompt in prompts.items():
        expected = list(plain_sample(policy.model, prompt, 100 + i, 12))
        assert done[i].token_ids == [token for token, _, _ in expected]
        assert done[i].logprobs == pytest.approx([logprob for _, logprob, _ in expected], abs=TOLERANCE)
        assert done[i].entropies == pytest.approx([entropy for _, _, entropy in expected], abs=TOLERANCE)
        assert done[i].raw_logprobs is None


def test_turns_that_join_wait_and_leave_equal_plain_sampling(policy: TransformersPolicy) -> None:
    """Three sequences of three turns each, with results of different length in between, in a shuffled schedule."""
    texts = {i: [10 + i, 20 + i, 30 + i] for i in range(3)}
    for i in texts:
        policy.submit(request(i, texts[i], seed=i, max_tokens=3 + 4 * i))
    turns = dict.fromkeys(texts, 0)
    while any(turn < 3 for turn in turns.values()):
        for completion in policy.poll():
            i = completion.sequence
            expected = list(plain_sample(policy.model, texts[i], 10 * turns[i] + i, 3 + 4 * i))
            assert completion.token_ids == [token for token, _, _ in expected]
            assert completion.logprobs == pytest.approx([logprob for _, logprob, _ in expected], abs=TOLERANCE)
            turns[i] += 1
            texts[i] = texts[i] + completion.token_ids + [40 + 3 * i + j for j in range(2 + 5 * i)]
            if turns[i] < 3:
                policy.submit(request(i, texts[i], seed=10 * turns[i] + i, max_tokens=3 + 4 * i))


def test_every_unique_token_goes_through_the_model_once(policy: TransformersPolicy) -> None:
    """Eight samples of a 50-token prompt, forked before the prompt was computed; one of them forked again."""
    prompt = [5 + j for j in range(50)]
    policy.submit(request(0, prompt, seed=0))
    for i in range(1, 8):
        policy.fork(0, i, len(prompt))
        policy.submit(request(i, prompt, seed=i))
    done = finish(policy, 8)
    sampled = sum(len(completion.token_ids) for completion in done.values())
    # The prompt once; of every sample all tokens but the last, which nothing has needed yet.
    assert policy.counters.prefilled_tokens == 50
    assert policy.counters.decoded_tokens == sampled - 8

    longer = prompt + done[3].token_ids + [9, 9, 9]
    policy.submit(request(3, longer, seed=50))
    policy.poll()
    policy.fork(3, 100, len(longer))
    policy.submit(request(100, longer, seed=51))
    more = finish(policy, 2)
    # Three new tokens and the last sampled one, once for both.
    assert policy.counters.prefilled_tokens == 50 + 4
    assert policy.counters.decoded_tokens == sampled - 8 + sum(len(c.token_ids) - 1 for c in more.values())
    for i, seed in ((3, 50), (100, 51)):
        assert more[i].token_ids == [token for token, _, _ in plain_sample(policy.model, longer, seed, 12)]


def test_a_fork_in_the_past_of_a_sequence_that_went_on(policy: TransformersPolicy) -> None:
    prompt = [5 + j for j in range(20)]
    policy.submit(request(0, prompt, seed=1))
    first = finish(policy, 1)[0]
    middle = prompt + first.token_ids[:4]
    policy.fork(0, 1, len(middle))
    policy.release(0)
    before = policy.counters.prefilled_tokens
    policy.submit(request(1, middle, seed=2))
    again = finish(policy, 1)[1]
    assert again.token_ids == [token for token, _, _ in plain_sample(policy.model, middle, 2, 12)]
    assert policy.counters.prefilled_tokens == before + 1  # the last token, whose next-token logits were not kept


def test_sampling_does_not_depend_on_what_else_runs(policy: TransformersPolicy, byte_tokenizer: Any) -> None:
    prompt = [5 + j for j in range(30)]
    policy.submit(request(0, prompt, seed=4))
    for i in range(1, 5):
        policy.submit(request(i, [50 * i], seed=i))
    together = finish(policy, 5)[0]
    alone = TransformersPolicy(policy.model, byte_tokenizer, [END])
    alone.submit(request(77, prompt, seed=4))
    assert finish(alone, 1)[77].token_ids == together.token_ids


def test_weights_changed_drops_every_cached_value(policy: TransformersPolicy, tiny_llama: Any) -> None:
    prompt = [5 + j for j in range(20)]
    policy.submit(request(0, prompt, seed=1))
    first = finish(policy, 1)[0]
    original = tiny_llama.model.layers[0].self_attn.v_proj.weight.data.clone()
    try:
        tiny_llama.model.layers[0].self_attn.v_proj.weight.data.mul_(-3.0)
        policy.weights_changed()
        longer = prompt + first.token_ids + [7]
        policy.submit(request(0, longer, seed=2))
        second = finish(policy, 1)[0]
        expected = list(plain_sample(tiny_llama, longer, 2, 12))
        assert second.token_ids == [token for token, _, _ in expected]
        assert second.logprobs == pytest.approx([logprob for _, logprob, _ in expected], abs=TOLERANCE)
        assert (first.policy_version, second.policy_version) == (0, 1)
    finally:
        tiny_llama.model.layers[0].self_attn.v_proj.weight.data.copy_(original)


def test_weights_must_not_change_in_the_middle_of_a_turn(policy: TransformersPolicy) -> None:
    policy.submit(request(0, [5, 6, 7]))
    policy.poll()
    with pytest.raises(PolicyError, match="while sequences were generating"):
        policy.weights_changed()


def test_stop_strings_that_span_tokens(policy: TransformersPolicy, byte_tokenizer: Any) -> None:
    """Wherever two given bytes come out in a row, the turn ends there, and not before."""
    prompt = [5 + j for j in range(20)]
    free = [token for token, _, _ in plain_sample(policy.model, prompt, 9, 40)]
    stop = byte_tokenizer.decode(free[5:7], skip_special_tokens=False)
    text = byte_tokenizer.decode(free, skip_special_tokens=False)
    policy.submit(request(0, prompt, seed=9, stop=(stop,), max_tokens=40))
    completion = finish(policy, 1)[0]
    assert completion.cause == "stop_string"
    said = byte_tokenizer.decode(completion.token_ids, skip_special_tokens=False)
    assert said == text[: text.index(stop) + len(stop)]


def test_causes_of_an_end(policy: TransformersPolicy) -> None:
    policy.submit(request(0, [5, 6], max_tokens=1))
    assert finish(policy, 1)[0].cause == "length"
    ends = TransformersPolicy(policy.model, policy._tokenizer, range(600))
    ends.submit(request(0, [5, 6], max_tokens=5))
    completion = finish(ends, 1)[0]
    assert (completion.cause, len(completion.token_ids)) == ("end_of_turn", 1)


def test_greedy_and_truncated_requests_share_a_batch(policy: TransformersPolicy) -> None:
    prompt = [5 + j for j in range(10)]
    policy.submit(request(0, prompt, sampling=Sampling(temperature=0.0)))
    policy.submit(request(1, prompt, seed=3, sampling=Sampling(top_k=2)))
    done = finish(policy, 2)
    ids = list(prompt)
    for token in done[0].token_ids:
        assert token == int(next_logits(policy.model, ids).argmax())
        ids.append(token)
    assert done[0].logprobs == [0.0] * len(done[0].token_ids)
    ids = list(prompt)
    assert done[1].raw_logprobs is not None
    for token, logprob, raw in zip(done[1].token_ids, done[1].logprobs, done[1].raw_logprobs, strict=True):
        full = torch.log_softmax(next_logits(policy.model, ids), -1)
        best = full.topk(2)
        assert token in best.indices
        assert raw == pytest.approx(float(full[token]), abs=TOLERANCE)
        assert logprob == pytest.approx(float(full[token] - torch.logsumexp(best.values, 0)), abs=TOLERANCE)
        ids.append(token)


def test_wrong_requests_are_refused(policy: TransformersPolicy) -> None:
    policy.submit(request(0, [5, 6, 7]))
    with pytest.raises(PolicyError, match="in flight"):
        policy.submit(request(0, [5, 6, 7]))
    finish(policy, 1)
    with pytest.raises(PolicyError, match="does not extend"):
        policy.submit(request(0, [5, 6, 8]))
    with pytest.raises(PolicyError, match="exceeds the model's context of 2048"):
        policy.submit(request(1, [5] * 2048))
    with pytest.raises(PolicyError, match="unknown or shorter"):
        policy.fork(55, 56, 1)


def test_release_cancels_what_is_in_flight(policy: TransformersPolicy) -> None:
    policy.submit(request(0, [5, 6, 7]))
    policy.submit(request(1, [8, 9], seed=5))
    policy.poll()
    policy.release(0)
    done = finish(policy, 1)
    assert done[1].token_ids == [token for token, _, _ in plain_sample(policy.model, [8, 9], 5, 12)]
    policy.weights_changed()  # nothing is generating any more


def test_a_model_with_sliding_windows_is_refused(tiny_llama: Any, byte_tokenizer: Any) -> None:
    tiny_llama.config.layer_types = ["full_attention", "sliding_attention"]
    try:
        with pytest.raises(PolicyError, match="full attention in every layer"):
            TransformersPolicy(tiny_llama, byte_tokenizer, [END])
    finally:
        tiny_llama.config.layer_types = None
