"""FlexAttention's blocks are those of the ancestor mask, and attention by them is attention under the dense mask.

PyTorch computes FlexAttention's gradients on GPUs only; its plain program, which the kernels are made from, computes
them anywhere once the check of the device is out of the way.
"""

import warnings
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations import flex_attention as integration
from tree_cases import agent_tree, assert_same_gradients, gradients, random_tree, tiny_model

from agentrl.trainers import flex_masks, tree_attention
from agentrl.trainers.flex_masks import takes_block_masks, tree_block_mask
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.packing import PackedTrees, pack_trees

TREES = [agent_tree(prompt=24), agent_tree(prompt=20), random_tree(3)]  # two rows, the last tree behind the second


@pytest.fixture
def flex_calls(monkeypatch: pytest.MonkeyPatch) -> list[BlockMask]:
    """Lets FlexAttention run on this CPU, uncompiled and with gradients, and lists the masks that it is called with."""
    calls: list[BlockMask] = []

    def plain(*args: Any, training: bool, block_mask: BlockMask, **kwargs: Any) -> Any:
        calls.append(block_mask)
        return flex_attention.flex_attention(*args, block_mask=block_mask, **kwargs)

    monkeypatch.setattr(flex_masks, "_DEVICES", ("cpu",))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain)
    flex_masks._passes_trial.cache_clear()
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    yield calls
    flex_masks._passes_trial.cache_clear()


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
        BLOCK_SIZE=flex_masks._BLOCK_TOKENS,
    )


def test_blocks_of_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_masks, "_BLOCK_TOKENS", 4)
    packed = pack_trees([agent_tree(prompt=4, samples=2, turn=2)])  # 4 tokens, then twice 2 + 3 + 2: 0-3, 4-10, 11-17
    # Block 0: the prompt. 1: 4-7, first sample. 2: 8-10 of the first, 11 of the second. 3: 12-15 of the second.
    # 4: 16 and 17, which see all of the prompt, and of 3; but it is not full itself, so nothing counts as whole.
    expected = [({0}, set()), ({1}, {0}), ({1, 2}, {0}), ({2, 3}, {0}), ({0, 2, 3, 4}, set())]
    assert blocks(tree_block_mask(packed)) == expected


@pytest.mark.parametrize("block_tokens", [2, 5, 16, 64])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_those_that_trying_finds(seed: int, block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_masks, "_BLOCK_TOKENS", block_tokens)
    packed = pack_trees([random_tree(seed), random_tree(seed + 50), random_tree(seed + 90)])
    assert blocks(tree_block_mask(packed)) == blocks(by_trying(packed))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "granite"])
def test_values_and_gradients_equal_those_under_the_dense_mask(
    family: str, flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex_masks, "_BLOCK_TOKENS", 16)
    model = tiny_model(family)
    scorer = TokenScorer(model)
    model.set_attn_implementation("sdpa")
    expected = scorer.score(TREES)
    expected_gradients = gradients(model, expected.logprobs.square().sum())
    assert flex_calls == []
    scores = TokenScorer(model).score(TREES)
    assert [mask.shape[-1] for mask in flex_calls].count(pack_trees(TREES).token_ids.shape[1]) == 2  # once a layer
    assert (scores.logprobs - expected.logprobs).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, scores.logprobs.square().sum()), expected_gradients, relative=1e-5)


def test_a_mask_that_hides_too_little_does_not_pass_the_trial(
    flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tree_block_mask

    def causal(packed: PackedTrees) -> BlockMask:
        length = packed.subtree_end.shape[1]
        ends = torch.full_like(packed.subtree_end, length)
        return whole(
            PackedTrees(token_ids=ends, position_ids=ends, subtree_end=ends, row=ends, column=ends, target=ends)
        )

    model = tiny_model()
    assert takes_block_masks(model)
    flex_masks._passes_trial.cache_clear()
    monkeypatch.setattr(flex_masks, "tree_block_mask", causal)
    with pytest.warns(UserWarning, match="it differs from sdpa by .* with a dense mask"):
        assert not takes_block_masks(model)


def test_where_it_does_not_run_the_dense_mask_is_used(
    flex_calls: list[BlockMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    model = tiny_model()
    monkeypatch.setattr(flex_masks, "_DEVICES", ())
    expected = TokenScorer(model).score(TREES).logprobs
    monkeypatch.setattr(flex_masks, "_DEVICES", ("cpu",))
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", no_compiler)
    with pytest.warns(UserWarning, match=r"raised RuntimeError \(Cannot find a working triton installation\)"):
        given = TokenScorer(model).score(TREES).logprobs
    assert torch.equal(given, expected)


def test_dropout_in_attention_keeps_the_dense_mask(flex_calls: list[BlockMask]) -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.1
    assert not takes_block_masks(model)
    assert tree_attention._mask(model, pack_trees(TREES)).shape[-1] == pack_trees(TREES).token_ids.shape[1]
    assert flex_calls == []
