"""Updates of every on-policy recipe from trees: what may not change them is how trees are laid out and cut up.

`test_metamorphic` has the same on tensors; here log-probabilities come from a model, and gradients go into its weights.
"""

import copy
import math
import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import pytest
import torch
from test_metamorphic import ON_POLICY, VARIANTS
from test_update import exact_model, gradients_of, sampled_trees, scores_of, settings_of
from torch import Tensor
from tree_cases import assert_same_gradients

from agentrl.trainers import Recipe
from agentrl.trainers.batch import GREEDY_REWARD, used_segments
from agentrl.trainers.critic import Critic
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.mini_batches import Part
from agentrl.trainers.packing import num_packed_tokens, num_padded_tokens
from agentrl.trainers.update import Updater
from agentrl.trajectory import Tree

pytestmark = pytest.mark.usefixtures("gradients_stay")


class FixedValues(Critic):
    """A critic that need not learn: what is expected before a token is a function of the token."""

    warmup_updates = 0

    def __init__(self) -> None:
        pass

    def values(self, trees: list[Tree]) -> Tensor:
        used = [segment for tree in trees for segment in used_segments(tree)]
        sampled = [token for s in used for token, action in zip(s.token_ids, s.action_mask, strict=True) if action]
        return torch.sin(torch.tensor(sampled, dtype=torch.float64))

    def scale_learning_rate(self, factor: float) -> None:
        pass

    def step(self, parts: Sequence[Part], recipe: Recipe) -> dict[str, float]:
        return {}


def dressed(tree: Tree, seed: int) -> Tree:
    """With entropies, rewards of turns, states, trees within the group and a greedy episode."""
    rng = random.Random(seed)
    for segment in tree.segments:
        segment.entropies = [rng.uniform(0.0, 2.0) * action for action in segment.action_mask]
    starts: list[int] = []
    for leaf in tree.leaves:
        path = tree.path(leaf.segment)
        turns = max(segment.turn for segment in path) + 1
        leaf.turn_rewards = [rng.randint(-8, 8) / 8 for _ in range(turns)]
        leaf.reward = sum(leaf.turn_rewards)
        leaf.success = rng.random() < 0.5
        leaf.state_keys = [rng.choice("ab") for _ in range(turns)]
        first = path[1].id
        starts += [first] if first not in starts else []
        leaf.root = starts.index(first)
    tree.metadata[GREEDY_REWARD] = rng.uniform(-1.0, 1.0)
    return tree


MODEL = exact_model()
REFERENCE = exact_model()
with torch.no_grad():
    REFERENCE.lm_head.weight.mul_(1.1)
TREES = [dressed(tree, seed) for seed, tree in enumerate(sampled_trees(MODEL, [2, 3, 7]))]


class Updated(NamedTuple):
    """The loss of an update, the gradients of the weights, and in how many pieces they were computed."""

    loss: float
    gradients: dict[str, Tensor]
    pieces: int


def update(name: str, trees: list[Tree], *, packs: bool, max_tokens: int) -> Updated:
    recipe = VARIANTS[name]
    model = copy.deepcopy(MODEL)
    scorer = TokenScorer(model)
    scorer.packs = packs
    updater = Updater(
        recipe,
        settings_of(max_tokens_per_micro_batch=max_tokens),
        scorer,
        temperature=1.0,
        total_updates=1,
        reference=scores_of(REFERENCE),
        critic=FixedValues() if recipe.needs_critic else None,
    )
    calls: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)
    metrics = updater.update(trees, number=0, seed=0)
    return Updated(metrics["loss"], gradients_of(model), len(calls))


@cache
def at_once(name: str) -> Updated:
    """All groups as packed trees in one piece."""
    return update(name, TREES, packs=True, max_tokens=10**6)


@pytest.mark.parametrize("packs", [True, False], ids=["trees", "paths"])
@pytest.mark.parametrize("name", VARIANTS)
def test_trees_and_paths_give_one_gradient(name: str, packs: bool) -> None:
    """Every token once or every path by itself, all groups together or one after the other."""
    expected = at_once(name)
    given = update(name, TREES, packs=packs, max_tokens=1)
    assert (expected.pieces, given.pieces) == (1, len(TREES))
    assert given.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-9)
    assert_same_gradients(given.gradients, expected.gradients, relative=1e-6)
    assert any(gradient.abs().max() > 1e-5 for gradient in expected.gradients.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_recorded_at_tool_tokens_does_not_matter(name: str) -> None:
    """Log-probabilities and entropies of tokens that nobody sampled: not a number, and not one bit changes."""
    noisy = copy.deepcopy(TREES)
    for tree in noisy:
        for segment in tree.segments:
            for values in (segment.logprobs, segment.entropies):
                values[:] = [x if action else math.nan for x, action in zip(values, segment.action_mask, strict=True)]
    expected, given = at_once(name), update(name, noisy, packs=True, max_tokens=10**6)
    assert given.loss == expected.loss
    assert all(torch.equal(given.gradients[key], gradient) for key, gradient in expected.gradients.items())


def test_the_trees_hold_what_they_promise() -> None:
    """Branches below the first turn, several turns and trees, invalid trajectories, tokens that nobody sampled."""
    assert len(VARIANTS) > len(ON_POLICY) > 30
    assert sum(map(num_padded_tokens, TREES)) > 1.2 * sum(map(num_packed_tokens, TREES))
    leaves = [leaf for tree in TREES for leaf in tree.leaves]
    assert any(not leaf.valid for leaf in leaves)
    assert max(len(leaf.turn_rewards) for leaf in leaves) > 2
    for tree in TREES:
        assert len({leaf.root for leaf in tree.valid_leaves}) > 1
        assert any(not all(segment.action_mask) for segment in tree.segments[1:])
    assert any(len({leaf.root for leaf in tree.valid_leaves}) < len(tree.valid_leaves) for tree in TREES)
