"""One optimizer step of the Updater against a plain computation, path by path, without trees or packing."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from tree_cases import random_tree, tiny_model

from agentrl.errors import PolicyError
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.kl import KLPenalty
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater
from agentrl.trajectory import Leaf, StopReason, Tree

TEMPERATURE = 0.8


def path_logprobs(model: Any, tree: Tree, leaf: Leaf, temperature: float = TEMPERATURE) -> Tensor:
    """Log-probabilities of the sampled tokens of one trajectory, from one plain forward pass over it."""
    ids = tree.token_ids(leaf.segment)
    mask = [m for segment in tree.path(leaf.segment) for m in segment.action_mask]
    logits = model(input_ids=torch.tensor([ids])).logits[0] / temperature
    table = torch.log_softmax(logits.float(), -1)
    return torch.stack([table[i - 1, ids[i]] for i in range(1, len(ids)) if mask[i]])


def scored_trees(model: Any, count: int, rewards: Callable[[], float]) -> list[Tree]:
    """Random trees whose stored log-probabilities are those of `model`, so that ratios start at 1."""
    trees = []
    for seed in range(count):
        tree = random_tree(seed)
        for leaf in tree.leaves:
            leaf.reward = rewards()
            at = 0
            with torch.no_grad():
                values = path_logprobs(model, tree, leaf).tolist()
            for segment in tree.path(leaf.segment):
                for i, action in enumerate(segment.action_mask):
                    if action:
                        segment.logprobs[i] = values[at]
                        at += 1
        trees.append(tree)
    return trees


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.fixture
def trees(model: Any) -> list[Tree]:
    rng = random.Random(7)
    return scored_trees(model, 4, lambda: float(rng.random() < 0.5))


def updater(model: Any, recipe: Recipe, reference: Any = None, **changes: Any) -> Updater:
    settings = OptimizerSettings(**{"learning_rate": 1e-2, "max_grad_norm": 1e9, **changes})
    return Updater(recipe, settings, TokenScorer(model), temperature=TEMPERATURE, total_updates=10, reference=reference)


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def grpo(**changes: Any) -> Recipe:
    return replace(RECIPES["grpo"], kl=None, **changes)


def plain_loss(model: Any, trees: list[Tree], reference: Any = None, beta: float = 0.0) -> Tensor:
    """GRPO at ratio 1: mean over trajectories of mean over tokens of -A (value) with gradient -A * dlogp, plus k3."""
    losses = []
    for tree in trees:
        rewards = torch.tensor([leaf.reward for leaf in tree.valid_leaves])
        spread = rewards.std() if len(rewards) > 1 else torch.tensor(0.0)
        for leaf, reward in zip(tree.valid_leaves, rewards, strict=True):
            constant = len(rewards) < 2 or bool((rewards == rewards[0]).all())
            advantage = torch.tensor(0.0) if constant else (reward - rewards.mean()) / (spread + 1e-6)
            new = path_logprobs(model, tree, leaf)
            token = -(new - new.detach()).exp() * advantage
            if reference is not None:
                gap = path_logprobs(reference, tree, leaf).detach() - new
                token = token + beta * (gap.exp() - 1 - gap)
            losses.append(token.mean())
    return torch.stack(losses).mean()


def test_a_step_equals_the_plain_computation(model: Any, trees: list[Tree]) -> None:
    twin = copy.deepcopy(model)
    metrics = updater(model, grpo()).update(trees, number=0, seed=0)
    loss = plain_loss(twin, trees)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0, betas=(0.9, 0.999))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e9)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["logprob_drift"] < 1e-5
    optimizer.step()
    # AdamW's first step is about lr * sign(gradient), which magnifies rounding where a gradient is almost zero.
    differing = ((weights(model) - weights(twin)).abs() > 1e-4).float().mean()
    assert differing < 0.002


def test_the_reference_is_scored_on_the_right_tokens(model: Any, trees: list[Tree]) -> None:
    frozen, twin = tiny_model(), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    scorer = TokenScorer(frozen)
    recipe = replace(RECIPES["grpo"], kl=KLPenalty(coef=0.3))
    metrics = updater(
        model, recipe, reference=lambda part: scorer.score(part, temperature=TEMPERATURE).logprobs
    ).update(trees, number=0, seed=0)
    loss = plain_loss(twin, trees, frozen, beta=0.3)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e9)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["kl_reference"] > 0.01


def test_micro_batches_do_not_change_the_gradient(model: Any, trees: list[Tree]) -> None:
    norms = []
    for bound in (1, 200, 100_000):
        twin = copy.deepcopy(model)
        metrics = updater(twin, grpo(), max_tokens_per_micro_batch=bound).update(trees, number=0, seed=0)
        norms.append((metrics["loss"], metrics["grad_norm"], metrics["num_tokens"]))
    for loss, norm, num_tokens in norms[1:]:
        assert loss == pytest.approx(norms[0][0], abs=1e-5)
        assert norm == pytest.approx(norms[0][1], rel=1e-5)
        assert num_tokens == norms[0][2]


def test_every_trajectory_is_trained_on_once_per_epoch(model: Any, trees: list[Tree]) -> None:
    """Four groups in two mini-batches and three epochs: six steps, with all tokens counted three times."""
    recipe = grpo(aggregation=TokenMean())
    tokens = sum(sum(s.action_mask) for tree in trees for leaf in tree.valid_leaves for s in tree.path(leaf.segment))
    metrics = updater(model, recipe, mini_batches=2, epochs=3).update(trees, number=0, seed=0)
    assert metrics["num_tokens"] * 6 == tokens * 3  # the metric is the mean over six steps


def test_invalid_trajectories_and_empty_groups_change_nothing(model: Any, trees: list[Tree]) -> None:
    twin = copy.deepcopy(model)
    updater(model, grpo()).update(trees, number=0, seed=0)
    dead = Tree("dead")
    dead.add(None, "prompt", 0, [1, 2, 3])
    dead.leaves.append(Leaf(0, StopReason.INVALID, 5.0, False))
    updater(twin, grpo()).update([dead, *trees], number=0, seed=0)
    assert torch.equal(weights(model), weights(twin))


def test_equal_rewards_leave_the_weights_alone(model: Any) -> None:
    before = weights(model)
    metrics = updater(model, grpo()).update(scored_trees(model, 2, lambda: 1.0), number=0, seed=0)
    assert metrics["grad_norm"] == 0.0
    assert torch.equal(weights(model), before)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(model: Any, trees: list[Tree]) -> None:
    before = weights(model)
    worker = updater(model, grpo())
    worker.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(PolicyError, match="gradient norm is nan"):
        worker.update(trees, number=0, seed=0)
    assert torch.equal(weights(model), before)


def test_bfloat16_weights_move_like_float32_ones(trees: list[Tree]) -> None:
    """The bfloat16 model is trained through float32 copies, so its weights are the rounded copies."""
    model = tiny_model(dtype=torch.bfloat16)
    before = weights(model).float()
    worker = updater(model, grpo(), learning_rate=1e-5)
    for number in range(3):
        worker.update(trees, number=number, seed=0)
    copies = worker.optimizer.state_dict()["masters"]
    assert len(copies) == len(worker.parameters)
    moved = torch.cat([copies[i].flatten() for i in sorted(copies)]) - before
    assert float(moved.abs().max()) > 1e-6
    for index, parameter in enumerate(worker.parameters):
        assert torch.equal(parameter, copies[index].to(torch.bfloat16))
