"""Attention in blocks equals attention under the dense ancestor mask, and stays out of everything else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from tree_cases import agent_tree, assert_same_gradients, gradients, random_tree, tiny_model

from agentrl.trainers import tree_attention
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.packing import pack_trees
from agentrl.trainers.tree_attention import QueryBlocks, cut_blocks

FAMILIES = ["llama", "qwen3", "gpt_neox", "granite", "gpt2"]  # grouped heads or not, and a scale of its own
TREES = [agent_tree(prompt=24), agent_tree(prompt=20), random_tree(3)]  # two rows, the last tree behind the second


@pytest.fixture
def block_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes blocks small enough for small trees, and lists the queries of every block that is computed."""
    monkeypatch.setattr(tree_attention, "_BLOCK_TOKENS", 8)
    calls: list[int] = []
    real = tree_attention.scaled_dot_product_attention

    def count(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(query.shape[1] * query.shape[2] // 4)  # four heads; those that share keys come as one
        return real(query, *args, **kwargs)

    monkeypatch.setattr(tree_attention, "scaled_dot_product_attention", count)
    return calls


def dense_mask(blocks: QueryBlocks) -> torch.Tensor:
    """[N, N] bool: the pairs that the blocks leave visible."""
    mask = torch.zeros(sum(blocks.sizes), sum(blocks.sizes), dtype=torch.bool)
    start = 0
    for size, keys, bias in zip(blocks.sizes, blocks.keys.split(blocks.num_keys), blocks.biases, strict=True):
        mask[start : start + size, keys] = bias[0, 0] == 0
        start += size
    return mask


def test_blocks_of_a_small_tree() -> None:
    packed = pack_trees([agent_tree(prompt=4, samples=2, turn=2)])  # 4 tokens, then twice 2 + 3 + 2
    blocks = cut_blocks(packed, torch.float32)
    # All 18 tokens fit into one block of 192, which sees all of its 18 tokens.
    assert (blocks.sizes, blocks.num_keys, blocks.num_scores) == ([18], [18], 18 * 18)


@pytest.mark.parametrize("block_tokens", [1, 3, 8, 64])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_hide_exactly_what_the_mask_hides(seed: int, block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "_BLOCK_TOKENS", block_tokens)
    packed = pack_trees([random_tree(seed), random_tree(seed + 50), random_tree(seed + 90)])
    blocks = cut_blocks(packed, torch.float64)
    assert max(blocks.sizes) <= block_tokens
    expected = torch.block_diag(*packed.attention_mask[:, 0].int()).bool()
    assert torch.equal(dense_mask(blocks), expected)
    if block_tokens == 1:  # then nothing hidden is computed
        assert blocks.num_scores == expected.sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_those_under_the_dense_mask(family: str, block_calls: list[int]) -> None:
    model = tiny_model(family)
    dense = TokenScorer(model)
    model.set_attn_implementation("sdpa")
    expected = dense.score(TREES)
    expected_gradients = gradients(model, expected.logprobs.square().sum())
    assert block_calls == []
    scores = TokenScorer(model).score(TREES)
    num_layers, num_queries = 2, pack_trees(TREES).token_ids.numel()
    assert sum(block_calls) == num_layers * num_queries
    assert (scores.logprobs - expected.logprobs).abs().max() <= 1e-5
    assert (scores.entropies - expected.entropies).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, scores.logprobs.square().sum()), expected_gradients, relative=1e-5)


def test_blocks_survive_gradient_checkpointing(block_calls: list[int]) -> None:
    model = tiny_model()
    scorer = TokenScorer(model)
    expected = gradients(model, scorer.score(TREES).logprobs.square().sum())
    per_pass = len(block_calls)
    model.train()  # checkpointing is only done in training; this model has no dropout
    model.gradient_checkpointing_enable({"use_reentrant": False})
    given = gradients(model, scorer.score(TREES).logprobs.square().sum())
    assert len(block_calls) == 3 * per_pass  # before; now; and again in the backward pass
    assert_same_gradients(given, expected, relative=1e-6)


def test_blocks_are_used_where_they_save_work(block_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "_BLOCK_TOKENS", 64)
    scorer = TokenScorer(tiny_model())
    scorer.score([agent_tree(samples=1)])  # one chain: the model's own causal attention
    # Blocks of 50 and 50 + 5 + 5 queries: 50 * 50 + 60 * 110 = 9100 scores of 110 * 110 = 12100 are not worth it.
    scorer.score([agent_tree(prompt=100, samples=2, turn=1)])
    assert block_calls == []
    # Blocks of 10 + 19 + 19, 57 and 57: 48 * 48 + 2 * 57 * (10 + 57) = 9942 scores of 162 * 162 = 26244 are.
    scorer.score([agent_tree(prompt=10, samples=8, turn=8)])
    assert block_calls == [48, 57, 57] * 2  # in each of two layers


def test_blocks_are_forgotten_with_their_mask(block_calls: list[int]) -> None:
    scorer = TokenScorer(tiny_model())
    with torch.no_grad():
        scorer.score(TREES)
    assert len(tree_attention._PREPARED) == 0


def test_generation_and_saved_folder_do_not_change(tmp_path: Path) -> None:
    model = tiny_model()
    prompt = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])}
    prompt["attention_mask"] = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    before = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    TokenScorer(model)
    assert model.config._attn_implementation == tree_attention.NAME
    assert torch.equal(model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0), before)
    model.save_pretrained(tmp_path)
    assert tree_attention.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
