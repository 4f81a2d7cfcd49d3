"""Replayed groups: which, for how long, the same after a resume, and with the ratio of the policy that sampled them."""

import itertools
import json
from collections import Counter

import pytest
import torch
from tree_cases import random_tree, tiny_model

from agentrl.trainers import RECIPES
from agentrl.trainers.batch import used_segments
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.replay import ReplayedRollouts
from agentrl.trainers.rollouts import EpisodeSource, Harvest
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater
from agentrl.trajectory import Tree


class Numbered(EpisodeSource):
    """Three new groups per update, named by update and place."""

    def __init__(self) -> None:
        self.position = 0

    def sample(self, seed: int) -> Harvest:
        trees = [random_tree(self.position + i) for i in range(3)]
        for i, tree in enumerate(trees):
            tree.task_id = f"{self.position // 3}-{i}"
        self.position += 3
        return Harvest(trees, trees, {"fresh": 1.0})


def names(harvest: Harvest) -> list[str]:
    return [tree.task_id for tree in harvest.kept]


def test_earlier_groups_come_after_the_fresh_ones_and_are_forgotten_in_time() -> None:
    source = ReplayedRollouts(Numbered(), groups=2, max_age=2)
    harvests = [source.sample(seed) for seed in range(30)]
    assert names(harvests[0]) == ["0-0", "0-1", "0-2"]
    ages: Counter[int] = Counter()
    for number, harvest in enumerate(harvests[1:], 1):
        assert names(harvest)[:3] == [f"{number}-{i}" for i in range(3)]
        replayed = [int(name.split("-")[0]) for name in names(harvest)[3:]]
        assert len(replayed) == 2 == harvest.metrics["replayed_groups"]
        assert len(set(names(harvest))) == 5
        ages.update(number - update for update in replayed)
        assert harvest.metrics["replay_age"] == sum(number - update for update in replayed) / 2
        assert [tree.task_id for tree in harvest.trees] == [f"{number}-{i}" for i in range(3)]
        assert harvest.metrics["fresh"] == 1.0
    assert set(ages) == {1, 2}
    assert source.position == 90


def test_fewer_than_asked_where_there_are_no_more() -> None:
    source = ReplayedRollouts(Numbered(), groups=5, max_age=1)
    assert [len(source.sample(seed).kept) for seed in range(3)] == [3, 6, 6]


def test_a_resumed_source_goes_on_alike() -> None:
    source = ReplayedRollouts(Numbered(), groups=2, max_age=3)
    for seed in range(4):
        source.sample(seed)
    resumed = ReplayedRollouts(Numbered(), groups=2, max_age=3)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    resumed.position = source.position
    for seed in range(4, 9):
        ours, theirs = source.sample(seed), resumed.sample(seed)
        assert [tree.to_json() for tree in ours.kept] == [tree.to_json() for tree in theirs.kept]
        assert ours.metrics == theirs.metrics


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_the_ratio_is_to_the_policy_that_sampled(moved: float) -> None:
    """Episodes sampled before the weights moved by `moved` drift by what the move changed, and only then."""
    model = tiny_model()
    scorer = TokenScorer(model)
    trees = [_sampled_by(scorer, random_tree(seed)) for seed in (1, 2)]
    with torch.no_grad():
        for parameter in itertools.islice(model.parameters(), 1):
            parameter.mul_(1.0 + moved)
    updater = Updater(RECIPES["grpo_trl"], OptimizerSettings(), scorer, temperature=1.0, total_updates=1)
    drift = updater.update(trees, number=0, seed=0)["logprob_drift"]
    assert (drift > 1e-3) if moved else (drift < 1e-6)


def _sampled_by(scorer: TokenScorer, tree: Tree) -> Tree:
    values = iter(scorer.score([tree]).logprobs.tolist())
    for segment in used_segments(tree):
        segment.logprobs = [next(values) if action else 0.0 for action in segment.action_mask]
    return tree
