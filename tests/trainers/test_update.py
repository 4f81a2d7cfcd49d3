"""An update against a plain computation, one trajectory at a time; and what may not change it."""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from tree_cases import VOCAB, assert_same_gradients, random_tree, tiny_model

from agentrl.errors import PolicyError
from agentrl.trainers import RECIPES, KLEstimator, KLPenalty, KLPlace, OverlongPenalty, Recipe
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import schedule
from agentrl.trainers.mini_batches import Part
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater
from agentrl.trajectory import Leaf, StopReason, Tree

pytestmark = pytest.mark.usefixtures("gradients_stay")

NEVER_CLIPS = 1e9
NAMES = ("grpo", "dr_grpo", "dapo", "arpo", "arpo_hard", "kl_in_reward")
# The trees have trajectories of 1 to about 20 sampled tokens, so that all parts of the penalty occur.
DAPO = replace(RECIPES["dapo"], shaping=(OverlongPenalty(max_length=12, cache=8),))


KL_IN_REWARD = replace(RECIPES["arpo"], kl=KLPenalty(coef=0.05, estimator=KLEstimator.K1, place=KLPlace.REWARD))


def recipe_of(name: str) -> Recipe:
    return {"dapo": DAPO, "kl_in_reward": KL_IN_REWARD}.get(name) or RECIPES[name]


def exact_model() -> PreTrainedModel:
    """float64 throughout, so that AdamW, which divides by small numbers, can be compared; without dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return model.double()


def settings_of(**changes: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"learning_rate": 1e-3, "max_grad_norm": NEVER_CLIPS, **changes})


def updater_of(model: PreTrainedModel, recipe: Recipe, reference: Any = None, **changes: Any) -> Updater:
    temperature = changes.pop("temperature", 1.0)
    return Updater(
        recipe,
        settings_of(**changes),
        TokenScorer(model),
        temperature=temperature,
        total_updates=10,
        reference=reference,
    )


def scores_of(model: PreTrainedModel, temperature: float = 1.0) -> Callable[[list[Tree]], Tensor]:
    scorer = TokenScorer(model)
    return lambda trees: scorer.score(trees, temperature=temperature).logprobs


def sampled_trees(
    model: PreTrainedModel, seeds: Sequence[int], *, temperature: float = 1.0, noise: float = 0.3
) -> list[Tree]:
    """Random groups as the model would have sampled them a few steps ago: ratios differ from 1, some are clipped."""
    trees = [random_tree(seed) for seed in seeds]
    rng = random.Random(0)
    for tree in trees:
        for leaf in tree.leaves:
            new = [0.0, *plain_logprobs(model, tree.token_ids(leaf.segment), temperature).tolist()]
            for segment in tree.path(leaf.segment):
                own, new = new[: len(segment.token_ids)], new[len(segment.token_ids) :]
                segment.logprobs = [float(torch.tensor(x + rng.gauss(0.0, noise))) for x in own]  # as float32 holds it
    return trees


# The plain computation ------------------------------------------------------------------------------------------------


def plain_logprobs(model: PreTrainedModel, token_ids: list[int], temperature: float) -> Tensor:
    """[i] of token i + 1, from the logits of the whole path."""
    logits = model(torch.tensor([token_ids])).logits[0, :-1]
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, torch.tensor(token_ids[1:])[:, None])[:, 0]


def plain_rows(
    model: PreTrainedModel, tree: Tree, temperature: float
) -> Iterator[tuple[Leaf, Tensor, Tensor, list[tuple[int, int]]]]:
    """Of every valid trajectory: new and old log-probabilities of its sampled tokens, and which tokens they are."""
    for leaf in tree.leaves:
        if leaf.stop_reason is StopReason.INVALID:
            continue
        path = tree.path(leaf.segment)
        new = plain_logprobs(model, tree.token_ids(leaf.segment), temperature)
        old = torch.tensor([x for segment in path for x in segment.logprobs])[1:]
        names = [(segment.id, i) for segment in path for i in range(len(segment.token_ids))][1:]
        mask = [bool(m) for segment in path for m in segment.action_mask][1:]
        kept = torch.tensor(mask)
        yield leaf, new[kept], old[kept], list(itertools.compress(names, mask))


def plain_advantages(name: str, rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [r - mean if name == "dr_grpo" else (r - mean) / (std + 1e-6) for r in rewards]


def plain_overlong(length: int) -> float:
    return 0.0 if length <= 4 else (4 - length) / 8 if length <= 12 else -1.0


def plain_loss(
    name: str, model: PreTrainedModel, trees: list[Tree], *, temperature: float = 1.0, reference: Any = None
) -> Tensor:
    """The loss of one optimizer step on these groups, as the papers write it."""
    per_path: list[tuple[Tensor, int]] = []  # sum over the tokens, and their number
    for tree in trees:
        rows = list(plain_rows(model, tree, temperature))
        refs = list(plain_rows(reference, tree, temperature)) if reference is not None else rows
        rewards = [leaf.reward for leaf, *_ in rows]
        if name == "dapo":
            rewards = [reward + plain_overlong(len(new)) for reward, (_, new, _, _) in zip(rewards, rows, strict=True)]
        if name == "kl_in_reward":  # by the policy that sampled
            old_and_ref = [(old, ref) for (_, _, old, _), (_, ref, _, _) in zip(rows, refs, strict=True)]
            rewards = [
                r - 0.05 * float((old - ref).detach().sum()) for r, (old, ref) in zip(rewards, old_and_ref, strict=True)
            ]
        advantages = plain_advantages(name, rewards)
        for (_, new, old, names), (_, ref, _, _), own in zip(rows, refs, advantages, strict=True):
            total = new.new_zeros(())
            for token, token_name in enumerate(names):
                through = [a for (_, _, _, other), a in zip(rows, advantages, strict=True) if token_name in other]
                advantage = sum(through) / len(through) if name == "arpo_hard" else own
                ratio = torch.exp(new[token] - old[token])
                clipped = ratio.clamp(0.8, 1.28 if name == "dapo" else 1.2)
                total = total - torch.minimum(ratio * advantage, clipped * advantage)
                if name == "grpo":
                    d = new[token] - ref[token].detach()
                    total = total + 0.04 * (torch.exp(-d) - 1 + d)
            if names:
                per_path.append((total, len(names)))
    if name == "dapo":
        return sum((total for total, _ in per_path), torch.zeros(())) / sum(n for _, n in per_path)
    scaled = [total / (3000 if name == "dr_grpo" else n) for total, n in per_path]
    return sum(scaled, torch.zeros(())) / len(per_path)


def plain_update(
    name: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer, trees: list[Tree], **options: Any
) -> tuple[float, float]:
    """Loss and gradient norm of a step that is taken."""
    optimizer.zero_grad()
    loss = plain_loss(name, model, trees, **options)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    optimizer.step()
    return float(loss.detach()), norm


@torch.no_grad()
def assert_same_step(ours: PreTrainedModel, theirs: PreTrainedModel, start: PreTrainedModel) -> None:
    """All weights moved alike, relative to how far: AdamW makes a large step of a gradient that is only rounding."""
    moved, error = 0.0, 0.0
    for given, expected, origin in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        moved += float((expected - origin).square().sum())
        error += float((given - expected).square().sum())
    assert moved > 0
    assert math.sqrt(error / moved) <= 1e-5


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_the_plain_computation(name: str, temperature: float) -> None:
    """Two updates: loss, gradient norm and every weight; the groups cover clipped ratios and invalid trajectories."""
    model, reference = exact_model(), exact_model()
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.1)
    plain = copy.deepcopy(model)
    trees = sampled_trees(model, [1, 2, 3, 4], temperature=temperature)
    updater = updater_of(model, recipe_of(name), scores_of(reference, temperature), temperature=temperature)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    for number in range(2):
        metrics = updater.update(trees, number=number, seed=0)
        loss, norm = plain_update(name, plain, optimizer, trees, temperature=temperature, reference=reference)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["learning_rate"] == 1e-3
    assert_same_step(model, plain, exact_model())


def test_the_plain_computation_has_teeth() -> None:
    """Clipping, invalid trajectories, shared tokens and the reference all matter in these groups."""
    model = exact_model()
    trees = sampled_trees(model, [1, 2, 3, 4])
    ratios = torch.cat([(new - old).exp() for tree in trees for _, new, old, _ in plain_rows(model, tree, 1.0)])
    assert 0.1 < float(((ratios > 1.28) | (ratios < 0.8)).double().mean()) < 0.9
    assert any(not leaf.valid for tree in trees for leaf in tree.leaves)
    assert plain_loss("arpo", model, trees) != plain_loss("arpo_hard", model, trees)
    penalties = [plain_overlong(len(new)) for tree in trees for _, new, _, _ in plain_rows(model, tree, 1.0)]
    assert {0.0} < set(penalties)


@pytest.mark.parametrize("max_tokens", [1, 60])
@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_do_not_change_the_gradient(name: str, max_tokens: int) -> None:
    """In float32, as in a run."""
    trees = sampled_trees(tiny_model(), [5, 6, 7, 8])
    results = []
    for tokens in (10**6, max_tokens):
        model = tiny_model()
        reference = tiny_model()
        with torch.no_grad():
            reference.lm_head.weight.mul_(1.1)
        updater = updater_of(model, recipe_of(name), scores_of(reference), max_tokens_per_micro_batch=tokens)
        calls: list[int] = []
        model.get_input_embeddings().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        results.append((updater.update(trees, number=0, seed=0), gradients_of(model), len(calls)))
    (whole, gradient, one), (parts, split_gradient, several) = results
    assert one == 1 < several
    assert_same_gradients(split_gradient, gradient, relative=1e-5)
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_invalid_trajectories_change_nothing() -> None:
    def update(trees: list[Tree]) -> tuple[dict[str, float], PreTrainedModel]:
        model = tiny_model()
        return updater_of(model, RECIPES["arpo"], mini_batches=9).update(trees, number=0, seed=0), model

    trees = sampled_trees(tiny_model(), [5, 6, 7])
    metrics, expected = update(trees)
    extra = trees[0].add(0, "assistant", 0, [7, 8], logprobs=[math.nan, -1.0])
    trees[0].leaves.append(Leaf(extra.id, StopReason.INVALID, math.inf, False))
    gone = sampled_trees(tiny_model(), [9])[0]
    gone.leaves = [replace(leaf, stop_reason=StopReason.INVALID) for leaf in gone.leaves]
    again, model = update([gone, *trees])
    assert again == metrics
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


class Steps(Updater):
    """Remembers which groups went into each optimizer step."""

    def _step(self, parts: list[Part], seed: int) -> dict[str, float]:
        self.seen = [*getattr(self, "seen", []), [tree.task_id for part in parts for tree in part.trees]]
        return super()._step(parts, seed)


@pytest.mark.parametrize(("mini_batches", "sizes"), [(1, [5]), (2, [3, 2]), (4, [2, 1, 1, 1]), (9, [1] * 5)])
def test_mini_batches_are_as_many_as_asked_and_keep_groups_whole(mini_batches: int, sizes: list[int]) -> None:
    trees = sampled_trees(tiny_model(), range(10, 15))
    settings = settings_of(mini_batches=mini_batches, epochs=2, max_tokens_per_micro_batch=60)
    updater = Steps(RECIPES["arpo"], settings, TokenScorer(tiny_model()), temperature=1.0, total_updates=1)
    updater.update(trees, number=0, seed=3)
    assert [len(step) for step in updater.seen] == sizes * 2
    everything = sorted(tree.task_id for tree in trees)
    first, second = updater.seen[: len(sizes)], updater.seen[len(sizes) :]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == everything
    if mini_batches == 2:
        assert first != second  # every epoch has a shuffle of its own
        again = Steps(RECIPES["arpo"], settings, TokenScorer(tiny_model()), temperature=1.0, total_updates=1)
        again.update(trees, number=0, seed=3)
        assert again.seen == updater.seen
        again.update(trees, number=0, seed=4)
        assert again.seen[len(updater.seen) :] != updater.seen


def test_every_mini_batch_takes_a_step_with_weights_of_its_own() -> None:
    """Two epochs of two mini-batches are the plain steps on their groups one after the other."""
    model = exact_model()
    plain = copy.deepcopy(model)
    trees = sampled_trees(model, range(20, 24))
    settings = settings_of(mini_batches=2, epochs=2)
    updater = Steps(RECIPES["dr_grpo"], settings, TokenScorer(model), temperature=1.0, total_updates=1)
    metrics = updater.update(trees, number=0, seed=0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    by_name = {tree.task_id: tree for tree in trees}
    steps = [plain_update("dr_grpo", plain, optimizer, [by_name[name] for name in step]) for step in updater.seen]
    assert metrics["loss"] == pytest.approx(sum(loss for loss, _ in steps) / 4, rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(sum(norm for _, norm in steps) / 4, rel=1e-6)
    assert_same_step(model, plain, exact_model())


# The reference --------------------------------------------------------------------------------------------------------


def test_kl_to_the_reference() -> None:
    """0 while policy and reference are the same; afterwards the mean of exp(-d) - 1 + d, d = new - reference."""
    model, reference = exact_model(), exact_model()
    trees = sampled_trees(model, [1, 2])
    updater = updater_of(model, RECIPES["grpo"], scores_of(reference))
    assert updater.update(trees, number=0, seed=0)["kl_reference"] == 0.0
    d = [
        x
        for tree in trees
        for (_, new, _, _), (_, ref, _, _) in zip(
            plain_rows(model, tree, 1.0), plain_rows(reference, tree, 1.0), strict=True
        )
        for x in (new - ref).tolist()
    ]
    expected = sum(math.exp(-x) - 1 + x for x in d) / len(d)
    assert expected > 1e-6
    assert updater.update(trees, number=1, seed=0)["kl_reference"] == pytest.approx(expected, rel=1e-6)


def test_the_reference_is_asked_without_gradient_and_once() -> None:
    model = tiny_model()
    asked: list[tuple[list[str], bool]] = []
    scores = scores_of(tiny_model())

    def reference(trees: list[Tree]) -> Tensor:
        asked.append(([tree.task_id for tree in trees], torch.is_grad_enabled()))
        return scores(trees)

    trees = sampled_trees(model, [1, 2])
    updater_of(model, RECIPES["grpo"], reference, epochs=2, mini_batches=2).update(trees, number=0, seed=0)
    assert asked == [([tree.task_id], False) for tree in trees]


def test_no_reference_is_asked_for_where_the_recipe_needs_none() -> None:
    def reference(trees: list[Tree]) -> Tensor:
        raise AssertionError

    metrics = updater_of(tiny_model(), RECIPES["arpo"], reference).update(
        sampled_trees(tiny_model(), [1]), number=0, seed=0
    )
    assert "kl_reference" not in metrics


# Safety and schedule --------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = tiny_model()
    updater = updater_of(model, RECIPES["arpo"])
    trees = sampled_trees(model, [1, 2])
    updater.update(trees, number=0, seed=0)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(updater.optimizer.state_dict())
    next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(PolicyError, match=r"gradient norm is nan.*optimizer\.learning_rate"):
        updater.update(trees, number=1, seed=0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for index, moments in updater.optimizer.state_dict()["adamw"]["state"].items():
        assert all(torch.equal(value, state["adamw"]["state"][index][name]) for name, value in moments.items())


def test_clipping() -> None:
    """The reported norm is the one before; what is applied has the bound's length."""
    trees = sampled_trees(tiny_model(), [1, 2])
    free = updater_of(tiny_model(), RECIPES["arpo"])
    norm = free.update(trees, number=0, seed=0)["grad_norm"]
    bound = updater_of(tiny_model(), RECIPES["arpo"], max_grad_norm=norm / 4)
    assert bound.update(trees, number=0, seed=0)["grad_norm"] == pytest.approx(norm, rel=1e-6)
    whole, clipped = (updater.optimizer.state_dict()["adamw"]["state"] for updater in (free, bound))
    for index, moments in clipped.items():  # the first is 0.1 of the gradient
        torch.testing.assert_close(moments["exp_avg"], whole[index]["exp_avg"] / 4, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup_updates": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "linear"}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "warmup_updates": 1}, [1, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1, *((1 + math.cos(math.pi * k / 5)) / 2 for k in range(1, 5))]),
    ],
    ids=str,
)
def test_schedule(changes: dict[str, Any], factors: list[float]) -> None:
    settings = settings_of(**changes)
    assert [schedule(settings, number, 5) for number in range(5)] == pytest.approx(factors, abs=1e-12)


def test_the_learning_rate_of_an_update_follows_the_schedule() -> None:
    """AdamW's first step is as long as the learning rate: at update 5 of 10 of a linear schedule half of 1e-3."""
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    metrics = updater_of(model, RECIPES["arpo"], schedule="linear").update(
        sampled_trees(model, [1, 2]), number=5, seed=0
    )
    assert metrics["learning_rate"] == pytest.approx(5e-4)
    moved = max(float((value - before[name]).abs().max()) for name, value in model.state_dict().items())
    assert moved == pytest.approx(5e-4, rel=1e-2)


def test_drift_between_sampler_and_trainer_is_reported() -> None:
    """Mean |new - old| over the sampled tokens, 0.5 where the sampler was off by that everywhere."""
    model = exact_model()
    trees = sampled_trees(model, [1, 2], noise=0.0)
    metrics = updater_of(model, RECIPES["arpo"]).update(trees, number=0, seed=0)
    assert metrics["logprob_drift"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["kl_old"] == pytest.approx(0.0, abs=1e-9)
    model = exact_model()
    for tree in trees:
        for segment in tree.segments:
            segment.logprobs = [x - 0.5 for x in segment.logprobs]
    metrics = updater_of(model, RECIPES["arpo"]).update(trees, number=0, seed=0)
    assert metrics["logprob_drift"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["kl_old"] == pytest.approx(math.exp(0.5) - 1 - 0.5, abs=1e-6)  # k3 with d = old - new = -0.5
