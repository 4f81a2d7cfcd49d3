"""FlexAttention's blocks are those of the ancestor mask, and attention by them is attention under the dense mask.

PyTorch computes FlexAttention's gradients on GPUs only; its plain program, which the kernels are made from, computes
them anywhere once the check of the device is out of the way.
"""

from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations import flex_attention as integration
from tree_cases import agent_tree, assert_same_gradients, gradients, plain_scores, random_tree, tiny_model

from agentrl.trainers import flex_masks, forward, tree_attention
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.flex_masks import tree_block_mask
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.packing import PackedTrees, pack_trees
from agentrl.trainers.tree_attention import FLEX_NAME

TREES = [agent_tree(prompt=24), agent_tree(prompt=20), random_tree(3)]  # two rows, the last tree behind the second


@pytest.fixture
def flex_calls(monkeypatch: pytest.MonkeyPatch) -> list[BlockMask]:
    """Lets FlexAttention run on this CPU, uncompiled and with gradients, and lists the masks that it is called with."""
    calls: list[BlockMask] = []

    def plain(*args: Any, training: bool, block_mask: BlockMask, **kwargs: Any) -> Any:
        calls.append(block_mask)
        return flex_attention.flex_attention(*args, block_mask=block_mask, **kwargs)

    monkeypatch.setattr(forward, "FLEX_DEVICES", ("cpu",))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain)
    return calls


def blocks(mask: BlockMask) -> list[tuple[set[int], set[int]]]:
    """For every row and every block of queries: the blocks of keys that are seen in part, and those seen as a whole."""
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    listed = []
    for num, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        pairs = zip(num.flatten().tolist(), indices.flatten(0, 2).tolist(), strict=True)
        listed.append([set(chosen[:count]) for count, chosen in pairs])
    return list(zip(*listed, strict=True))


def by_trying(packed: PackedTrees) -> BlockMask:
    """PyTorch's own way to the same mask."""
    visible = packed.attention_mask[:, 0]
    num_rows, length, _ = visible.shape
    return create_block_mask(
        lambda row, head, query, key: visible[row, query, key],
        num_rows,
        None,
        length,
        length,
        device="cpu",
        BLOCK_SIZE=flex_masks.BLOCK_TOKENS,
    )


def test_blocks_of_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_masks, "BLOCK_TOKENS", 4)
    packed = pack_trees([agent_tree(prompt=4, samples=2, turn=2)])  # 4 tokens, then twice 2 + 3 + 2: 0-3, 4-10, 11-17
    # Block 0: the prompt. 1: 4-7, first sample. 2: 8-10 of the first, 11 of the second. 3: 12-15 of the second.
    # 4: 16 and 17, which see all of the prompt, and of 3; but it is not full itself, so nothing counts as whole.
    expected = [({0}, set()), ({1}, {0}), ({1, 2}, {0}), ({2, 3}, {0}), ({0, 2, 3, 4}, set())]
    assert blocks(tree_block_mask(packed.subtree_end)) == expected


@pytest.mark.parametrize("block_tokens", [2, 5, 16, 64])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_those_that_trying_finds(seed: int, block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_masks, "BLOCK_TOKENS", block_tokens)
    packed = pack_trees([random_tree(seed), random_tree(seed + 50), random_tree(seed + 90)])
    assert blocks(tree_block_mask(packed.subtree_end)) == blocks(by_trying(packed))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "granite"])
def test_values_and_gradients_equal_those_under_the_dense_mask(
    family: str, flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex_masks, "BLOCK_TOKENS", 16)
    monkeypatch.setattr(tree_attention, "BLOCK_TOKENS", 16)
    model = tiny_model(family)
    scorer = TokenScorer(model)
    model.set_attn_implementation("sdpa")
    flex_calls.clear()
    expected = scorer.score(TREES)
    expected_gradients = gradients(model, expected.logprobs.square().sum())
    assert flex_calls == []
    scores = TokenScorer(model).score(TREES)
    assert [mask.shape[-1] for mask in flex_calls].count(pack_trees(TREES).token_ids.shape[1]) == 2  # once a layer
    assert (scores.logprobs - expected.logprobs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, scores.logprobs.square().sum()), expected_gradients, relative=1e-5)


@pytest.mark.parametrize("gradients_on", [True, False])
def test_it_is_tried_with_gradients_whoever_asks(gradients_on: bool, flex_calls: list[BlockMask]) -> None:
    model = tiny_model()
    with torch.set_grad_enabled(gradients_on):
        TokenScorer(model)
    assert model.config._attn_implementation == FLEX_NAME
    TokenScorer(model)
    assert model.config._attn_implementation == FLEX_NAME
    assert len(flex_calls) == 2  # two layers, tried once
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_difference(dtype: torch.dtype, flex_calls: list[BlockMask]) -> None:
    model = tiny_model(dtype=dtype)
    TokenScorer(model)
    assert model.config._attn_implementation == FLEX_NAME


def test_frozen_models_are_tried_without_a_gradient(flex_calls: list[BlockMask]) -> None:
    model = tiny_model().requires_grad_(False)
    TokenScorer(model)
    assert model.config._attn_implementation == FLEX_NAME


def test_a_mask_that_hides_too_little_is_found_out(
    flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def causal(subtree_end: torch.Tensor) -> BlockMask:
        return tree_block_mask(torch.full_like(subtree_end, subtree_end.shape[1]))

    monkeypatch.setattr(tree_attention, "tree_block_mask", causal)
    assert_refused("its values are not those under the dense mask")


def test_gradients_that_are_wrong_are_found_out(flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch) -> None:
    real = integration.compile_friendly_flex_attention

    def without_gradient(query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return real(query.detach(), *arguments, **options)

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", without_gradient)
    assert_refused("its gradients are not those under the dense mask")


def test_where_it_does_not_run_the_dense_mask_is_used(
    flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", no_compiler)
    assert_refused(r"it raised RuntimeError \(Cannot find a working triton installation\)")


def test_a_model_that_looks_into_its_mask_keeps_the_dense_one(flex_calls: list[BlockMask]) -> None:
    assert_refused(r"it raised AttributeError \('BlockMask' object has no attribute 'ndim'\)", "gpt2")


def test_dropout_in_attention_keeps_the_dense_mask(flex_calls: list[BlockMask]) -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.1
    with pytest.warns(UserWarning, match="dropout in its attention"):
        TokenScorer(model)
    assert model.config._attn_implementation == tree_attention.NAME
    assert flex_calls == []


def assert_refused(reason: str, family: str = "llama") -> None:
    """The dense mask is used, with a warning; values are those of single trajectories."""
    model = tiny_model(family)
    if family == "gpt2":
        model.config.attn_pdrop = 0.0
    with pytest.warns(UserWarning, match=rf"cannot use FlexAttention on cpu: {reason}\. Token trees go through sdpa"):
        scorer = TokenScorer(model)
    assert model.config._attn_implementation == tree_attention.NAME
    batch = lay_out_paths(TREES)
    with torch.no_grad():
        given = scorer.score(TREES).logprobs[batch.token_index[batch.mask]]
        expected, _ = plain_scores(model, TREES)
    assert (given - expected).abs().max() <= 1e-5
