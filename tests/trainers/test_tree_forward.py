"""Packed trees, padded paths and plain one-by-one computation give the same numbers and the same gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from tree_cases import (
    FAMILIES,
    agent_tree,
    assert_same_gradients,
    gradients,
    plain_scores,
    random_tree,
    tiny_model,
)

from agentrl.errors import ConfigError
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.packing import num_packed_tokens, pack_trees, pad_paths
from agentrl.trajectory import Leaf, StopReason, Tree

SHAPES = {
    "bushy": [random_tree(1), random_tree(2), random_tree(3)],
    "deep": [random_tree(seed, max_depth=9) for seed in (4, 5)],
    "flat": [random_tree(6, max_depth=1), agent_tree(prompt=5, samples=4, turn=1)],
    "chain": [agent_tree(samples=1)],
}


def layouts(scorer: TokenScorer, trees: list[Tree], **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities and entropies, packed and padded, gathered as the plain reference lists them."""
    batch = lay_out_paths(trees)
    index = batch.token_index[batch.mask]
    scores = [scorer.score_packed(layout(trees), **options) for layout in (pack_trees, pad_paths)]
    assert all(len(score.logprobs) == int(index.max()) + 1 for score in scores)  # the same tokens count
    return [(score.logprobs[index], score.entropies[index]) for score in scores]


def weighted(values: Tensor, seed: int = 0) -> Tensor:
    """A loss in which every entry has another weight."""
    generator = torch.Generator().manual_seed(seed)
    return (values * torch.randn(len(values), generator=generator, dtype=values.dtype)).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_plain_computation(family: str, shape: str) -> None:
    model, trees = tiny_model(family), SHAPES[shape]
    expected, expected_entropies = plain_scores(model, trees, temperature=0.8)
    expected_gradients = gradients(model, weighted(expected))
    scorer = TokenScorer(model)
    assert scorer.packs
    for logprobs, entropies in layouts(scorer, trees, temperature=0.8):
        assert (logprobs - expected).abs().max() <= 1e-5
        assert (entropies - expected_entropies).abs().max() <= 1e-5
        assert not entropies.requires_grad
        assert_same_gradients(gradients(model, weighted(logprobs)), expected_gradients, relative=1e-5)


@pytest.mark.parametrize("seed", range(10, 30))
def test_random_trees_in_float64(seed: int) -> None:
    model = tiny_model("gpt2", dtype=torch.float64)  # the others compute norms in float32 whatever their dtype
    trees = [random_tree(seed), random_tree(seed + 1000)]
    expected, expected_entropies = plain_scores(model, trees)
    expected_gradients = gradients(model, weighted(expected))
    for logprobs, entropies in layouts(TokenScorer(model), trees):
        assert (logprobs - expected).abs().max() <= 1e-12
        assert (entropies - expected_entropies).abs().max() <= 1e-12
        assert_same_gradients(gradients(model, weighted(logprobs)), expected_gradients, relative=1e-11)


def test_another_mask_or_other_positions_would_be_noticed() -> None:
    scorer, trees = TokenScorer(tiny_model()), SHAPES["bushy"]
    packed = pack_trees(trees)
    right = scorer.score_packed(packed).logprobs
    length = packed.token_ids.shape[1]
    # One more than the length: the causal mask, but not taken for a plain text, so that positions stay right.
    causal = replace(packed, subtree_end=torch.full_like(packed.subtree_end, length + 1))
    in_a_line = replace(packed, position_ids=torch.arange(length).expand_as(packed.position_ids))
    for wrong in (causal, in_a_line):
        assert (scorer.score_packed(wrong).logprobs - right).abs().max() > 1e-2


def test_every_unique_token_goes_through_the_model_once() -> None:
    model, trees = tiny_model(), SHAPES["deep"]
    scorer = TokenScorer(model)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    packed = scorer.pack(trees)
    scorer.score_packed(packed)
    padding = packed.token_ids.numel() - sum(num_packed_tokens(tree) for tree in trees)
    assert seen == [sum(num_packed_tokens(tree) for tree in trees) + padding]


def test_invalid_trajectories_change_nothing() -> None:
    scorer, tree = TokenScorer(tiny_model()), agent_tree()
    expected = scorer.score([tree]).logprobs
    extra = tree.add(0, "assistant", 0, [7, 8, 9])
    tree.leaves.append(Leaf(extra.id, StopReason.INVALID, 0.0, False))
    assert torch.equal(scorer.score([tree]).logprobs, expected)
    gone = agent_tree()
    gone.leaves = [replace(leaf, stop_reason=StopReason.INVALID) for leaf in gone.leaves]
    assert torch.equal(scorer.score([gone, tree]).logprobs, expected)


@pytest.mark.parametrize("max_tokens", [1, 60, 120])
def test_micro_batches_add_up_to_the_same_gradient(max_tokens: int) -> None:
    model = tiny_model("gpt2", dtype=torch.float64)
    scorer = TokenScorer(model)
    trees = [random_tree(seed) for seed in range(40, 46)]

    def loss_of(part: list[Tree], numbers: list[int]) -> Tensor:
        batch = lay_out_paths(part)
        logprobs = scorer.score(part).logprobs[batch.token_index]
        weights = torch.tensor(numbers, dtype=torch.float64)[batch.group] + 1.0
        return (logprobs.square() * batch.mask * weights[:, None]).sum()

    expected = gradients(model, loss_of(trees, list(range(6))))
    parts = scorer.split(trees, max_tokens)
    assert len(parts) > 1
    model.zero_grad()
    for part in parts:
        loss_of([trees[i] for i in part], part).backward()  # type: ignore[no-untyped-call]
    given = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_same_gradients(given, expected, relative=1e-12)


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        self.numel = max([self.numel, *(tensor.numel() for tensor in made if isinstance(tensor, Tensor))])
        return result


def wide_model() -> PreTrainedModel:
    """A vocabulary that dwarfs everything else."""
    model = tiny_model()
    model.resize_token_embeddings(4000)
    return model


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    model, tree = wide_model(), agent_tree(prompt=4, samples=8, turn=16)
    num_logits = 8 * 2 * 16 * 4000
    results, sizes = [], []
    for max_logits in (num_logits, 32 * 4000):
        scorer = TokenScorer(model, max_logits=max_logits)
        with Largest() as largest:
            logprobs = scorer.score([tree]).logprobs
            results.append((logprobs.detach(), gradients(model, weighted(logprobs))))
        sizes.append(largest.numel)
    assert sizes == [num_logits, 32 * 4000]  # 32 * 4000 are 32 tokens' logits, and the embedding with its gradient
    (whole, whole_gradients), (chunked, chunked_gradients) = results
    assert (chunked - whole).abs().max() <= 1e-6
    assert_same_gradients(chunked_gradients, whole_gradients, relative=1e-5)


def test_logits_are_not_kept_for_the_backward_pass() -> None:
    model, tree = wide_model(), agent_tree()
    largest_kept = []
    for max_logits in (2**24, 16 * 4000):
        scorer = TokenScorer(model, max_logits=max_logits)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            scorer.score([tree])
        largest_kept.append(max(tensor.numel() for tensor in kept))
    assert largest_kept[0] == 6 * 2 * 10 * 4000  # in one chunk all 120 tokens' logits are kept
    assert largest_kept[1] < 16 * 4000  # in chunks not even one chunk's


def test_lora_adapters_are_scored_and_trained() -> None:
    trees = SHAPES["bushy"]
    base, _ = plain_scores(tiny_model(), trees)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    expected, _ = plain_scores(model, trees)
    expected_gradients = gradients(model, weighted(expected))
    scorer = TokenScorer(model)
    assert scorer.packs
    logprobs, _ = layouts(scorer, trees)[0]
    assert (logprobs - expected).abs().max() <= 1e-5
    assert all("lora" in name for name in expected_gradients)
    assert_same_gradients(gradients(model, weighted(logprobs)), expected_gradients, relative=1e-5)
    with model.disable_adapter(), torch.no_grad():
        reference, _ = layouts(scorer, trees)[0]
    assert (reference - base).abs().max() <= 1e-5
    assert (reference - expected).abs().max() > 1e-2  # the adapter does something


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="positive temperature, got 0"):
        TokenScorer(tiny_model()).score([agent_tree()], temperature=0.0)
