"""SFT's step, which is also STaR's, against the plain computation: -mean log p over what was done."""

import math

import pytest
import torch
from test_update import exact_model, gradients_of, settings_of
from torch import Tensor
from tree_cases import assert_same_gradients, random_tree

from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.supervised import imitation_step
from agentrl.trajectory import Tree

pytestmark = pytest.mark.usefixtures("gradients_stay")


def plain_loss(model: torch.nn.Module, trees: list[Tree]) -> Tensor:
    """Path by path; a token that trajectories share is met on the first of them only."""
    terms: list[Tensor] = []
    for tree in trees:
        met: set[tuple[int, int]] = set()
        for leaf in tree.valid_leaves:
            ids = tree.token_ids(leaf.segment)
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
            place = 0
            for segment in tree.path(leaf.segment):
                for i, action in enumerate(segment.action_mask):
                    if action and (segment.id, i) not in met:
                        met.add((segment.id, i))
                        terms.append(scores[place - 1, ids[place]])
                    place += 1
    return -torch.stack(terms).mean()


@pytest.mark.parametrize("max_tokens", [10**6, 60, 1])
def test_a_step_equals_the_plain_computation(max_tokens: int) -> None:
    """Branches, tool results, forced endings and invalid trajectories; however the batch is cut."""
    trees = [random_tree(seed) for seed in (1, 2, 3, 4)]
    plain = exact_model()
    loss = plain_loss(plain, trees)
    loss.backward()
    model = exact_model()
    settings = settings_of(max_tokens_per_micro_batch=max_tokens)
    optimizer = MasterAdamW(list(model.parameters()), settings)
    metrics = imitation_step(TokenScorer(model), optimizer, trees, settings)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same_gradients(gradients_of(model), gradients_of(plain), relative=1e-6)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients_of(plain).values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert norm > 0.1
