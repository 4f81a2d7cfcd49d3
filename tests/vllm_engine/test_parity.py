"""The same model in both engines: tokens, log-probabilities, entropies, and where turns end."""

import pytest
import torch
from live_engine import NUM_TOP, LiveEngine, by_transformers, exact_distribution, largest_gap, make_order, questions

from agentrl.policies.core import Completion, Request, Sampling
from agentrl.policies.loading import LoadedModel
from agentrl.policies.vllm.entropy import entropy_from_top
from agentrl.policies.vllm.orders import OrderDesk

pytestmark = pytest.mark.vllm

CLOSE = 1e-3
GREEDY = Sampling(temperature=0.0)


def by_vllm(live: LiveEngine, loaded: LoadedModel, requests: list[Request]) -> list[Completion]:
    desk = OrderDesk(
        loaded.tokenizer, loaded.chat.end_ids, vocab_size=loaded.vocab_size, context_length=1024, num_top=NUM_TOP
    )
    sampled = live.sample(*(desk.order(request, 0) for request in requests))
    return [desk.completion(request, turn) for request, turn in zip(requests, sampled, strict=True)]


def test_the_process_is_as_it_was_before_the_engine_was_started(live: LiveEngine) -> None:
    assert live.changed == []


def test_greedy_turns_are_equal(live: LiveEngine, loaded: LoadedModel) -> None:
    requests = [
        Request(sequence=i, token_ids=ids, max_tokens=48, sampling=GREEDY)
        for i, ids in enumerate(questions(loaded, 16))
    ]
    ours, theirs = by_vllm(live, loaded, requests), by_transformers(loaded, requests)
    assert [(turn.token_ids, turn.cause) for turn in ours] == [(turn.token_ids, turn.cause) for turn in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprobs == other.logprobs == [0.0] * len(other.token_ids)
        assert mine.raw_logprobs == pytest.approx(other.raw_logprobs, abs=CLOSE)
        gaps = torch.tensor(other.entropies) - torch.tensor(mine.entropies)
        assert gaps.min() > -CLOSE
        assert gaps.mean() < 0.02


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(live: LiveEngine, loaded: LoadedModel, temperature: float) -> None:
    prompts = questions(loaded, 16)
    sampling = Sampling(temperature=temperature)
    turns = live.sample(*(make_order(p, sampling=sampling, seed=i, max_tokens=48) for i, p in enumerate(prompts)))
    gaps = [largest_gap(loaded.model, p, turn, temperature) for p, turn in zip(prompts, turns, strict=True)]
    assert max(gaps) < CLOSE
    wrong = [largest_gap(loaded.model, p, turn, temperature + 0.3) for p, turn in zip(prompts, turns, strict=True)]
    assert max(wrong) > 0.1  # the comparison can tell


def test_the_estimated_entropy_is_a_lower_bound_near_the_exact_one(live: LiveEngine, loaded: LoadedModel) -> None:
    for seed, prompt in enumerate(questions(loaded, 8)):
        [turn] = live.sample(make_order(prompt, seed=seed, max_tokens=48))
        exact = exact_distribution(loaded.model, prompt, turn.token_ids)
        entropies = -(exact.exp() * exact).sum(-1)
        estimates = torch.tensor([entropy_from_top(top, loaded.vocab_size) for top in turn.top])
        rest = 1 - exact.exp().topk(NUM_TOP).values.sum(-1)
        # H - estimate = r * (entropy of the rest's own distribution) <= r * log(V - k)
        bound = rest * torch.log(torch.tensor(float(loaded.vocab_size - NUM_TOP)))
        assert (estimates <= entropies + CLOSE).all()
        assert (entropies - estimates <= bound + CLOSE).all()


def test_a_seed_names_the_tokens_whatever_else_is_sampled(live: LiveEngine, loaded: LoadedModel) -> None:
    prompts = questions(loaded, 12)
    together = live.sample(*(make_order(p, seed=40 + i) for i, p in enumerate(prompts)))
    alone = [live.sample(make_order(p, seed=40 + i))[0] for i, p in enumerate(prompts)]
    assert [turn.token_ids for turn in together] == [turn.token_ids for turn in alone]


@pytest.mark.parametrize("stop", [("</tool_call>",), ("=",), ("1", "2", "3"), ("never there",)])
def test_stop_strings_keep_the_same_tokens(live: LiveEngine, loaded: LoadedModel, stop: tuple[str, ...]) -> None:
    requests = [
        Request(sequence=i, token_ids=ids, max_tokens=40, stop=stop, sampling=GREEDY)
        for i, ids in enumerate(questions(loaded, 6))
    ]
    ours, theirs = by_vllm(live, loaded, requests), by_transformers(loaded, requests)
    assert [(turn.token_ids, turn.cause) for turn in ours] == [(turn.token_ids, turn.cause) for turn in theirs]


def test_the_next_turn_finds_the_prefix_of_the_one_before(live: LiveEngine, loaded: LoadedModel) -> None:
    prompt = (questions(loaded, 1)[0] * 6)[:128]
    [first] = live.sample(make_order(prompt, version=100, max_tokens=32))  # a salt that no other test has used
    assert first.num_cached == 0
    longer = [*prompt, *first.token_ids, 5, 6, 7]
    [second] = live.sample(make_order(longer, version=100))
    assert second.num_cached == 128  # four blocks of 32; the fifth was not full before the last sampled token
    assert largest_gap(loaded.model, longer, second) < CLOSE


def test_what_vllm_refuses_is_an_error_of_that_request_alone(live: LiveEngine, loaded: LoadedModel) -> None:
    from agentrl.errors import InfrastructureError

    with pytest.raises(InfrastructureError, match="out of vocabulary"):
        live.sample(make_order([10**6]))
    assert live.sample(make_order([5, 6, 7]))[0].token_ids


def test_more_prompts_than_one_step_computes(live: LiveEngine, loaded: LoadedModel) -> None:
    # 32 prompts of 302 tokens, no two of which begin alike, are 9,664: vLLM computes 2,048 or 4,096 in a step.
    words = sorted(set(questions(loaded, 1)[0]))
    text = [words[i * i % len(words)] for i in range(300)]
    prompts = [[words[i % len(words)], words[i // len(words)], *text] for i in range(32)]
    together = live.sample(*(make_order(p, seed=i, max_tokens=4) for i, p in enumerate(prompts)))
    alone = [live.sample(make_order(p, seed=i, max_tokens=4, version=1))[0] for i, p in enumerate(prompts)]
    assert [turn.token_ids for turn in together] == [turn.token_ids for turn in alone]
