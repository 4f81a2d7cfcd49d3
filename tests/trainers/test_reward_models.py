"""The discriminator: what it can tell, when it learns, what it gives; and a bandit that it teaches."""

import copy
import io
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.errors import ConfigError, DataError
from agentrl.rollout.continuation import Prefix
from agentrl.trainers import compute_advantages, lay_out_paths
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.reward_models.discriminator import (
    Discriminator,
    DiscriminatorRewards,
    passage_of,
    under_other_prompts,
    whitened,
)
from agentrl.trainers.reward_models.ngrams import NUM_BUCKETS, NgramClassifier, Passage, _mixed, ngram_buckets
from agentrl.trajectory import Leaf, StopReason, Tree, write_trees


def tree_of(prompt: Sequence[int], answers: Sequence[tuple[Sequence[int], bool]]) -> Tree:
    """One-turn episodes: (sampled tokens, solved)."""
    tree = Tree("t")
    tree.add(None, "prompt", 0, list(prompt))
    for tokens, solved in answers:
        turn = tree.add(0, "assistant", 0, list(tokens))
        tree.leaves.append(Leaf(turn.id, StopReason.ANSWERED, float(solved), solved, turn_rewards=[float(solved)]))
    return tree


def built(**settings: Any) -> DiscriminatorRewards:
    return Discriminator(**settings).build(None, never, seed=0)  # type: ignore[arg-type]


def never(prefixes: Sequence[Prefix], num_completions: int, *, seed: int) -> list[list[Leaf]]:
    raise AssertionError("a discriminator completes nothing")


def scores_of(trees: Sequence[Tree]) -> list[float]:
    return [leaf.reward for tree in trees for leaf in tree.valid_leaves]


class TestNgrams:
    def test_number_order_and_range(self) -> None:
        buckets = ngram_buckets([7, 8, 9, 7])
        assert len(buckets) == 4 + 3 + 2
        assert buckets[0] == buckets[3]  # the same token
        assert len(set(buckets.tolist())) == 8
        assert all(0 <= bucket < NUM_BUCKETS for bucket in buckets)
        assert ngram_buckets([]).tolist() == []
        assert sorted(ngram_buckets([1, 2])) != sorted(ngram_buckets([2, 1]))

    def test_they_are_the_same_in_every_process(self) -> None:
        # SplitMix64 with seed 0 begins with 0xE220A8397B1DCDAF; here that is what 0 is mixed to.
        assert int(_mixed(np.zeros(1, dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF

        def mixed(number: int) -> int:
            number = (number + 0x9E3779B97F4A7C15) % 2**64
            number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
            return number ^ number >> 31

        singles = [mixed(5 + 1), mixed(9 + 1)]
        pair = mixed((singles[0] + 9 + 1) % 2**64)
        assert ngram_buckets([5, 9]).tolist() == [number % NUM_BUCKETS for number in (*singles, pair)]

    def test_they_spread_evenly(self) -> None:
        used = set(ngram_buckets(list(range(NUM_BUCKETS))).tolist())
        # 3 * 2^13 balls into 2^13 bins leave e^-3 = 5 % of them empty.
        assert len(used) / NUM_BUCKETS == pytest.approx(1 - math.exp(-3), abs=0.01)

    def test_a_classifier_learns_and_leaves_the_global_stream_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        classifier = NgramClassifier(learning_rate=3e-3, seed=1)
        assert torch.equal(torch.rand(1), expected)
        passages = [Passage((1,), (number,)) for number in range(20)]
        targets = torch.tensor([float(number < 10) for number in range(20)])
        first = classifier.fit(passages, targets, torch.ones(20), num_steps=1)
        assert first == pytest.approx(math.log(2), abs=0.1)
        assert classifier.fit(passages, targets, torch.ones(20), num_steps=100) < 0.1
        assert ((classifier.logits(passages) > 0) == (targets > 0.5)).all()
        assert not classifier.logits(passages).requires_grad
        assert classifier.logits([]).tolist() == []


class TestDiscriminator:
    def test_it_separates_a_synthetic_set(self) -> None:
        """Good answers repeat the prompt's token, which takes both to see; each token occurs on both sides."""
        rng = random.Random(0)

        def batch() -> list[Tree]:
            trees = []
            for prompt in rng.sample(range(10), 8):
                others = [rng.choice([t for t in range(10) if t != prompt]) for _ in range(4)]
                answers = [([20 + prompt, rng.randrange(30, 40)], True)] * 2
                trees.append(
                    tree_of([prompt], answers + [([20 + other, rng.randrange(30, 40)], False) for other in others])
                )
            return trees

        rewards = built(warmup_steps=100, learning_rate=1e-2, freeze_above=1.0)
        for number in range(10):
            metrics = rewards.fit(batch(), number=number, seed=number)
        assert metrics["discriminator/accuracy"] > 0.9  # on episodes that it had not seen
        for tree in rewards.score(batch(), seed=0):
            good = [leaf.reward for leaf in tree.leaves if leaf.success]
            bad = [leaf.reward for leaf in tree.leaves if not leaf.success]
            assert min(good) > sum(bad) / len(bad)

    def test_alternation(self) -> None:
        trees = [tree_of([1], [([5], True), ([6], False)]), tree_of([2], [([7], True), ([5], False)])]
        rewards = built(fit_every=3, freeze_above=1.0)
        fits = [rewards.fit(trees, number=number, seed=0) for number in range(8)]
        assert [metrics["discriminator/fits"] for metrics in fits] == [1, 1, 1, 2, 2, 2, 3, 3]
        assert ["discriminator/loss" in metrics for metrics in fits] == [True, False, False] * 2 + [True, False]

    def test_the_first_fit_is_the_longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: list[int] = []
        monkeypatch.setattr(NgramClassifier, "fit", lambda *_, num_steps: steps.append(num_steps) or 0.0)
        rewards = built(warmup_steps=7, fit_steps=2, freeze_above=1.0)
        for number in range(3):
            rewards.fit([tree_of([1], [([5], True), ([6], False)])], number=number, seed=0)
        assert steps == [7, 2, 2]

    def test_both_sides_weigh_the_same_and_labels_are_smoothed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[list[Passage], list[float], list[float]]] = []

        def note(self: Any, passages: Any, targets: Any, weights: Any, *, num_steps: int) -> float:
            calls.append((passages, targets.tolist(), weights.tolist()))
            return 0.0

        monkeypatch.setattr(NgramClassifier, "fit", note)
        trees = [tree_of([1], [([5], True), ([6], False)]), tree_of([2], [([8], False), ([9], False)])]
        built(label_smoothing=0.25).fit(trees, number=0, seed=0)
        ((passages, targets, weights),) = calls
        # One is good; bad are three, and the good answer under the only other prompt.
        expected = [((1,), (5,)), ((1,), (6,)), ((2,), (8,)), ((2,), (9,)), ((2,), (5,))]
        assert [(passage.prompt, passage.response) for passage in passages] == expected
        assert targets == [0.75, 0.25, 0.25, 0.25, 0.25]
        assert weights == [1.0, 0.25, 0.25, 0.25, 0.25]

    def test_it_rests_when_it_is_too_good(self) -> None:
        rewards = built()
        trees = [tree_of([1], [([5], True), ([6], False)])]
        rewards.fit(trees, number=0, seed=0)
        metrics = rewards.fit(trees, number=1, seed=0)
        assert metrics == {"discriminator/accuracy": 1.0, "discriminator/fits": 1.0}
        fooled = [tree_of([1], [([5], False)] * 3)]
        assert rewards.fit(fooled, number=2, seed=0)["discriminator/fits"] == 2.0  # it goes on when the policy has

    def test_until_there_is_something_good_the_environment_judges(self) -> None:
        rewards = built()
        failed = [tree_of([1], [([5], False), ([6], False)])]
        assert rewards.fit(failed, number=0, seed=0) == {"discriminator/fits": 0.0}
        assert rewards.score(failed, seed=0) == failed

    def test_with_nothing_bad_other_prompts_are(self) -> None:
        rewards = built()
        solved = [tree_of([1], [([5], True)]), tree_of([2], [([6], True)])]
        assert "discriminator/loss" in rewards.fit(solved, number=0, seed=0)
        assert "discriminator/loss" not in built().fit(solved[:1], number=0, seed=0)  # there is no other prompt

    def test_scores(self) -> None:
        trees = [tree_of([1], [([5], True), ([6], False)]), tree_of([2], [([7], True), ([5], False)])]
        trees[1].leaves.append(Leaf(1, StopReason.INVALID, 0.0, False))
        before = copy.deepcopy(trees)
        rewards = built(logit_clip=0.5, whiten=False)
        rewards.fit(trees, number=0, seed=0)
        scored = rewards.score(trees, seed=0)
        assert trees == before
        assert scores_of(scored) == [0.5, -0.5, 0.5, -0.5]  # clipped
        assert [leaf.success for tree in scored for leaf in tree.leaves] == [True, False, True, False, False]
        assert [leaf.turn_rewards for leaf in scored[0].leaves] == [[], []]
        batch = lay_out_paths(scored)
        assert batch.turn_rewards.tolist() == [[0.5], [-0.5], [0.5], [-0.5]]
        rewards = built()
        rewards.fit(trees, number=0, seed=0)
        whitened_scores = torch.tensor(scores_of(rewards.score(trees, seed=0)))
        assert whitened_scores.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert whitened_scores.square().mean().item() == pytest.approx(1.0, abs=1e-5)

    def test_scores_are_detached(self) -> None:
        trees = [tree_of([1], [([5], True), ([6], False)])]
        rewards = built()
        rewards.fit(trees, number=0, seed=0)
        network = rewards._classifier.network
        weights = copy.deepcopy(network.state_dict())
        for parameter in network.parameters():
            parameter.grad = None
        batch = lay_out_paths(rewards.score(trees, seed=0))
        advantages = compute_advantages(grpo(), batch)
        assert not batch.rewards.requires_grad
        (advantages * torch.zeros_like(advantages, requires_grad=True)).sum().backward()
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())

    def test_whitening(self) -> None:
        assert whitened(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]
        assert whitened(torch.tensor([0.1] * 7)).tolist() == [0.0] * 7

    def test_other_prompts_keep_the_response_and_never_the_prompt(self) -> None:
        good = [Passage((prompt,), (prompt, 9)) for prompt in (1, 2, 3)] * 20
        others = [Passage((4,), (0,))]
        changed = under_other_prompts(good, others, seed=0)
        assert [passage.response for passage in changed] == [passage.response for passage in good]
        assert all(new.prompt != old.prompt for new, old in zip(changed, good, strict=True))
        assert {passage.prompt for passage in changed} == {(1,), (2,), (3,), (4,)}
        assert under_other_prompts(good, others, seed=1) != changed
        assert under_other_prompts(good[:1], [], seed=0) == []

    def test_it_reads_what_was_sampled(self) -> None:
        tree = Tree("t")
        tree.add(None, "prompt", 0, [1, 2])
        tree.add(0, "assistant", 0, [3, 4])
        tree.add(1, "environment", 0, [5])
        tree.add(2, "assistant", 1, [6, 7], action_mask=[1, 0])
        assert passage_of(tree, Leaf(3, StopReason.ANSWERED, 1.0, True)) == Passage((1, 2), (3, 4, 6))

    def test_a_resumed_discriminator_goes_on_as_the_whole_one(self) -> None:
        trees = [tree_of([1], [([5], True), ([6], False)]), tree_of([2], [([7], True), ([5], False)])]
        whole, resumed = built(freeze_above=1.0), built(freeze_above=1.0)
        whole.fit(trees, number=0, seed=0)
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        failed = [tree_of([1], [([8], False)])]
        for rewards in (whole, resumed):  # the good examples are remembered ones
            assert "discriminator/loss" in rewards.fit(failed, number=1, seed=1)
        assert scores_of(whole.score(trees, seed=0)) == scores_of(resumed.score(trees, seed=0))
        assert whole.num_fits == resumed.num_fits == 2

    def test_only_the_latest_good_episodes_are_remembered(self) -> None:
        rewards = built(max_positives=2)
        for token in (5, 6, 7):
            rewards.fit([tree_of([1], [([token], True)])], number=0, seed=0)
        assert rewards.state_dict()["solved"] == [([1], [6]), ([1], [7])]

    def test_misuse(self, tmp_path: Path) -> None:
        for name in ("fit_every", "warmup_steps", "fit_steps", "max_positives"):
            with pytest.raises(ConfigError, match="must be at least 1"):
                Discriminator(**{name: 0})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="must be positive"):
            Discriminator(logit_clip=0.0)
        with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 0.5\)"):
            Discriminator(label_smoothing=0.5)
        with pytest.raises(ConfigError, match=r"freeze_above at least 0\.5"):
            Discriminator(freeze_above=0.4)
        with pytest.raises(DataError, match="cannot be read"):
            built(demonstrations=tmp_path / "none.jsonl")
        (tmp_path / "empty.jsonl").touch()
        with pytest.raises(DataError, match="holds no valid episode"):
            built(demonstrations=tmp_path / "empty.jsonl")


class TestBandit:
    """A policy over eight arms, a demonstrator who pulls arm 5, and no other reward."""

    def run(self, path: Path, *, demonstrated: int) -> tuple[list[float], list[float]]:
        write_trees(path, [tree_of([1], [([10 + demonstrated], False)] * 32)])
        rewards = built(demonstrations=path, warmup_steps=20, fit_steps=4, learning_rate=1e-2)
        logits = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.2)
        stream = torch.Generator().manual_seed(0)
        accuracies, masses = [], []
        for number in range(50):
            policy = torch.log_softmax(logits, dim=0)
            arms = torch.multinomial(policy.detach().exp(), 32, replacement=True, generator=stream)
            trees = [tree_of([1], [([10 + int(arm)], False) for arm in arms])]
            batch = lay_out_paths(rewards.score(trees, seed=number))
            advantages = compute_advantages(grpo(), batch)[:, 0]
            optimizer.zero_grad()
            (-(advantages * policy[arms]).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            accuracies.append(rewards.fit(trees, number=number, seed=number)["discriminator/accuracy"])
            masses.append(float(policy.detach().exp()[demonstrated]))
        return accuracies, masses

    @pytest.mark.parametrize("demonstrated", [5, 2])
    def test_the_policy_learns_what_was_demonstrated_and_leaves_the_discriminator_guessing(
        self, tmp_path: Path, demonstrated: int
    ) -> None:
        accuracies, masses = self.run(tmp_path / "demonstrations.jsonl", demonstrated=demonstrated)
        assert masses[0] == pytest.approx(1 / 8)
        assert max(accuracies[1:10]) > 0.85
        assert masses[-1] > 0.95
        # What the policy does is what was demonstrated: whatever the verdict on it, half of the cases are right.
        assert sum(accuracies[-10:]) / 10 == pytest.approx(0.5, abs=0.05)


def test_gapo_is_ppo_with_another_reward() -> None:
    gapo, ppo = RECIPES["gapo"], RECIPES["ppo"]
    assert gapo == replace(
        ppo,  # type: ignore[type-var]
        name="gapo",
        paper="2503.20194",
        idea=gapo.idea,
        reward=Discriminator(),  # type: ignore[call-arg]
    )
    assert "reward model" in gapo.needs
