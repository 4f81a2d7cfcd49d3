"""Weights in bfloat16 are trained through float32 copies, in a real update on real trees."""

import random

import torch
from tree_cases import random_tree, tiny_model

from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater


def test_bfloat16_weights_are_the_rounded_copies_and_the_copies_move() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    before = [parameter.detach().float().clone() for parameter in model.parameters()]
    trees = [random_tree(seed) for seed in range(3)]
    rng = random.Random(7)
    for tree in trees:
        for leaf in tree.leaves:
            leaf.reward = rng.random()
    settings = OptimizerSettings(learning_rate=1e-5)
    updater = Updater(RECIPES["arpo"], settings, TokenScorer(model), temperature=1.0, total_updates=10)
    for number in range(3):
        updater.update(trees, number=number, seed=0)
    copies = updater.optimizer.state_dict()["masters"]
    assert len(copies) == len(updater.parameters) == len(before)
    # Three AdamW steps of at most 1e-5 each: far below what a bfloat16 weight of 0.1 could take.
    moved = [(copies[i] - before[i]).abs().max().item() for i in range(len(before))]
    assert 1e-5 < max(moved) < 4e-5
    for index, parameter in enumerate(updater.parameters):
        assert torch.equal(parameter, copies[index].to(torch.bfloat16))
