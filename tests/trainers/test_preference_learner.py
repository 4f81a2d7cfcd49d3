"""An update on preferences against a plain computation, one trajectory at a time; and what may not change it."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_preference_builders import flat, task
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from tree_cases import VOCAB, plain_scores, random_tree, tiny_model

from agentrl.errors import PolicyError
from agentrl.trainers import RECIPES
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.preference.builders import AllPairs, ByReward, Siblings
from agentrl.trainers.preference.learner import PreferenceLearner
from agentrl.trainers.preference.parts import KTO
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Leaf, Tree

pytestmark = pytest.mark.usefixtures("gradients_stay")

RATE = 1e-3
ALL_PAIRS = AllPairs(margin=0.1)


def recipe_of(name: str) -> PreferenceRecipe:
    """With all pairs or a threshold in the middle, so that trajectories occur in several examples."""
    entry = RECIPES[name]
    assert isinstance(entry, PreferenceRecipe)
    if name == "kto":
        loss = KTO(beta=0.3, weight_desirable=1.5, weight_undesirable=0.5)
        return replace(entry, builder=ByReward(threshold=0.5), loss=loss)
    return replace(entry, builder=ALL_PAIRS)


def exact_model(scale: float = 1.0) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model.double()


def learner_of(
    model: PreTrainedModel, recipe: PreferenceRecipe, reference: PreTrainedModel, **changes: Any
) -> PreferenceLearner:
    scorer = TokenScorer(reference)
    context = changes.pop("context_length", 1000)
    temperature = changes.pop("temperature", 1.0)
    return PreferenceLearner(
        recipe,
        OptimizerSettings(**{"learning_rate": RATE, "max_grad_norm": 1e9, **changes}),
        TokenScorer(model),
        temperature=temperature,
        total_updates=10,
        context_length=context,
        reference=lambda trees: scorer.score(trees, temperature=temperature).logprobs,
    )


# The plain computation -----------------------------------------------------------------------------------------------


def plain_path(model: PreTrainedModel, tree: Tree, leaf: Leaf, temperature: float) -> Tensor:
    """Log-probabilities of the sampled tokens of one trajectory; none if it has none."""
    alone = replace(tree, leaves=[leaf])
    if not any(any(segment.action_mask) for segment in tree.path(leaf.segment)):
        return torch.zeros(0, dtype=torch.float64)
    return plain_scores(model, [alone], temperature)[0]


def plain_z0(model: PreTrainedModel, reference: PreTrainedModel, trees: Sequence[Tree], temperature: float) -> float:
    """Every prompt with the sampled trajectories of the next task."""
    ratios = []
    for number, tree in enumerate(trees):
        other = copy.deepcopy(trees[(number + 1) % len(trees)])
        prompt = tree.segments[0]
        other.segments[0].token_ids, other.segments[0].action_mask = prompt.token_ids, prompt.action_mask
        for leaf in other.valid_leaves:
            new = plain_path(model, other, leaf, temperature)
            if len(new):
                ratios.append(float((new - plain_path(reference, other, leaf, temperature)).sum()))
    return max(0.0, sum(ratios) / len(ratios))


def plain_loss(
    name: str, model: PreTrainedModel, reference: PreTrainedModel, trees: Sequence[Tree], temperature: float
) -> Tensor:
    terms: list[Tensor] = []
    if name == "kto":
        with torch.no_grad():
            z0 = plain_z0(model, reference, trees, temperature)
    for tree in trees:
        new = [plain_path(model, tree, leaf, temperature) for leaf in tree.valid_leaves]
        with torch.no_grad():
            ref = [plain_path(reference, tree, leaf, temperature) for leaf in tree.valid_leaves]
        delta = [(a - b).sum() for a, b in zip(new, ref, strict=True)]
        rewards = [leaf.reward for leaf in tree.valid_leaves]
        if name == "kto":
            for ratio, reward, path in zip(delta, rewards, new, strict=True):
                if len(path):
                    good = 1.5 * (1 - torch.sigmoid(0.3 * (ratio - z0)))
                    terms.append(good if reward >= 0.5 else 0.5 * (1 - torch.sigmoid(0.3 * (z0 - ratio))))
            continue
        for i in range(len(new)):
            for j in range(len(new)):
                if rewards[i] - rewards[j] > 0.1 and len(new[i]) and len(new[j]):
                    h = delta[i] - delta[j]
                    p, q = new[i].mean().exp(), new[j].mean().exp()
                    odds = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
                    terms.append(
                        {
                            "dpo": torch.log(1 + torch.exp(-0.1 * h)),
                            "ipo": (h - 5) ** 2,
                            "ipo_token_mean": ((new[i] - ref[i]).mean() - (new[j] - ref[j]).mean() - 5) ** 2,
                            "orpo": -new[i].mean() + 0.1 * torch.log(1 + torch.exp(-odds)),
                        }[name]
                    )
    return torch.stack(terms).mean()


NAMES = ("dpo", "ipo", "ipo_token_mean", "orpo", "kto")


def groups(count: int) -> list[Tree]:
    """Random groups with different prompts and something to compare in each; the first has an invalid trajectory."""
    found: list[Tree] = []
    for seed in range(100):
        tree = random_tree(seed)
        fresh = all(tree.segments[0].token_ids != other.segments[0].token_ids for other in found)
        if len(found) < count and ALL_PAIRS(tree) and fresh and (found or len(tree.valid_leaves) < len(tree.leaves)):
            found.append(tree)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_the_plain_computation(name: str, temperature: float) -> None:
    """Two updates: loss, gradient norm and every weight, with branches, invalid trajectories and forced endings."""
    model, reference = exact_model(), exact_model(scale=1.1)
    plain = copy.deepcopy(model)
    trees = groups(4)
    learner = learner_of(model, recipe_of(name), reference, temperature=temperature)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.0)
    for number in range(2):
        metrics = learner.update(trees, number=number, seed=0)
        optimizer.zero_grad()
        loss = plain_loss(name, plain, reference, trees, temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in plain.parameters() if p.grad is not None))
        optimizer.step()
        assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
        assert metrics["groups_without_examples"] == metrics["steps_passed_over"] == 0.0
        assert name != "kto" or metrics["reference_point"] > 0.01  # so that it matters
    with torch.no_grad():
        moved = [(b - a).norm() for a, b in zip(exact_model().parameters(), plain.parameters(), strict=True)]
        wrong = [(b - a).norm() for a, b in zip(model.parameters(), plain.parameters(), strict=True)]
        assert float(torch.stack(wrong).norm() / torch.stack(moved).norm()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_do_not_change_the_gradient(name: str) -> None:
    trees = groups(4)
    results = []
    for tokens in (10**6, 60, 1):
        model = exact_model()
        learner = learner_of(model, recipe_of(name), exact_model(scale=1.1), max_tokens_per_micro_batch=tokens)
        metrics = learner.update(trees, number=0, seed=0)
        results.append((metrics, [p.grad.clone() for p in model.parameters()]))
    for metrics, gradients in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-9, abs=1e-12)
        for ours, theirs in zip(gradients, results[0][1], strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dpo", "ipo", "ipo_token_mean", "orpo"])
def test_the_order_of_groups_does_not_matter(name: str) -> None:
    """Unlike that of KTO, whose reference point takes each completion with the prompt of the next task."""
    results = []
    for trees in (groups(4), groups(4)[::-1]):
        model = exact_model()
        metrics = learner_of(model, recipe_of(name), exact_model(scale=1.1)).update(trees, number=0, seed=0)
        results.append((metrics["loss"], [p.grad.clone() for p in model.parameters()]))
    (loss, gradients), (other_loss, other_gradients) = results
    assert other_loss == pytest.approx(loss, rel=1e-9)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "expected"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5)])
def test_the_loss_before_the_first_step(name: str, expected: float) -> None:
    """The policy is its own reference: h = 0, z0 = 0. ln 2, (1 / .2)^2, lambda / 2."""
    entry = RECIPES[name]
    assert isinstance(entry, PreferenceRecipe)
    entry = entry if name != "kto" else replace(entry, builder=ByReward())
    metrics = learner_of(tiny_model(), entry, tiny_model()).update(groups(3), number=0, seed=0)
    assert metrics["loss"] == pytest.approx(expected, abs=1e-4)
    assert metrics["reward_margin"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_preferences_are_learned(name: str) -> None:
    """The first of two one-token answers is the better one; afterwards it is the likelier one in every task."""
    trees = []
    for number in range(4):
        tree = task(f"t{number}", [number, 40 + number], [[7], [8]])
        tree.leaves[0] = replace(tree.leaves[0], reward=1.0, success=True)
        trees.append(tree)
    model = tiny_model()
    entry = RECIPES[name]
    assert isinstance(entry, PreferenceRecipe)
    learner = learner_of(model, entry, tiny_model(), learning_rate=3e-3)
    history = [learner.update(trees, number=number, seed=number) for number in range(20)]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["reward_accuracy"] == 1.0
    with torch.no_grad():
        logprobs, _ = plain_scores(model, trees)
    good, bad = logprobs.view(-1, 2).T
    assert (good > bad).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_no_example_changes_nothing(name: str) -> None:
    """Trajectories in the middle, invalid ones, and groups without contrast: the same weights, to the bit."""

    def trained(trees: list[Tree]) -> tuple[dict[str, float], PreTrainedModel]:
        model = tiny_model()
        entry = RECIPES[name]
        assert isinstance(entry, PreferenceRecipe)
        return learner_of(model, entry, tiny_model()).update(trees, number=0, seed=0), model

    plain = [flat([1.0, 0.0]), task("other", [5, 6, 7], [[3], [4]])]
    plain[1].leaves[0] = replace(plain[1].leaves[0], reward=1.0, success=True)
    metrics, expected = trained(plain)
    noisy = [flat([1.0, 0.0, math.nan], invalid=(2,)), plain[1]]
    if name != "kto":  # for which every trajectory is an example
        noisy[0] = flat([1.0, 0.0, 0.5])
        noisy.append(flat([0.5, 0.5]))
    given, model = trained(noisy)
    assert given["groups_without_examples"] == len(noisy) - 2
    assert {**given, "groups_without_examples": 0.0} == metrics
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_without_an_example_no_step_is_made() -> None:
    model = tiny_model()
    learner = learner_of(model, recipe_of("dpo"), tiny_model(), schedule="linear")
    metrics = learner.update([flat([1.0, 1.0]), flat([0.0])], number=5, seed=0)
    assert metrics == {
        "examples": 0.0,
        "groups_without_examples": 2.0,
        "steps_passed_over": 0.0,
        "learning_rate": RATE / 2,  # half of the updates are done
    }
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_kto_passes_over_mini_batches_of_one_prompt() -> None:
    model = tiny_model()
    learner = learner_of(model, recipe_of("kto"), tiny_model(), mini_batches=2)
    metrics = learner.update([flat([1.0, 0.0]), flat([0.0, 0.0]), flat([1.0])], number=0, seed=0)
    assert (metrics["examples"], metrics["steps_passed_over"]) == (5.0, 2.0)
    assert "loss" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_kto_takes_one_label_alone() -> None:
    """A mini-batch in which nothing is desirable has no mean over the desirable ones."""
    trees = [flat([0.0]), task("other", [5, 6, 7], [[3]])]
    metrics = learner_of(tiny_model(), recipe_of("kto"), tiny_model()).update(trees, number=0, seed=0)
    assert "logprobs_chosen" not in metrics
    assert metrics["logprobs_rejected"] < 0
    assert metrics["loss"] == pytest.approx(0.25, abs=1e-4)  # weight .5 * (1 - sigmoid(0))


def test_siblings_learn_nothing_of_what_they_share() -> None:
    """Tokens before the branch have no gradient: changing what the model says there changes no loss."""
    tree = Tree("siblings")
    tree.add(None, "prompt", 0, [1, 2])
    call = tree.add(0, "assistant", 0, [3, 4])
    result = tree.add(call.id, "environment", 0, [5])
    for token, reward in ((6, 1.0), (7, 0.0)):
        end = tree.add(result.id, "assistant", 1, [token])
        tree.leaves.append(Leaf(end.id, flat([0.0]).leaves[0].stop_reason, reward, reward == 1.0))
    silent = copy.deepcopy(tree)
    silent.segments[1].action_mask = [0, 0]
    entry = replace(recipe_of("dpo"), builder=Siblings())
    model, masked = exact_model(), exact_model()
    ours = learner_of(model, entry, exact_model(1.1)).update([tree], number=0, seed=0)
    pair = replace(entry, builder=AllPairs())
    theirs = learner_of(masked, pair, exact_model(1.1)).update([silent], number=0, seed=0)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-12)
    orpo = [  # negative control: the mean over all tokens of the chosen one is another number
        learner_of(exact_model(), recipe_of("orpo"), exact_model()).update([t], number=0, seed=0)["loss"]
        for t in (tree, silent)
    ]
    assert abs(orpo[0] - orpo[1]) > 1e-3


def test_a_saved_learner_goes_on_as_if_it_had_not_stopped() -> None:
    trees = groups(3)

    def run(save: Callable[[dict[str, Any]], None] | None) -> PreTrainedModel:
        model = tiny_model()
        learner = learner_of(model, recipe_of("dpo"), tiny_model(), mini_batches=2)
        for number in range(3):
            learner.update(trees, number=number, seed=number)
            if number == 1 and save is not None:
                save(copy.deepcopy(learner.state_dict()))
                learner = learner_of(model, recipe_of("dpo"), tiny_model(), mini_batches=2)
                learner.load_state_dict(states[0])
        return model

    states: list[dict[str, Any]] = []
    for ours, theirs in zip(run(states.append).parameters(), run(None).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model, broken = tiny_model(), tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(PolicyError, match="gradient norm is nan"):
        learner_of(model, recipe_of("dpo"), broken).update(groups(2), number=0, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
