"""The critic: values on unique tokens, learning beside the policy without touching it, warm-up, and its checkpoint."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_update import assert_same_step, exact_model, sampled_trees, settings_of
from torch import Tensor
from transformers import PreTrainedModel
from tree_cases import assert_same_gradients, tiny_model

from agentrl.errors import ConfigError, PolicyError
from agentrl.trainers import RECIPES, Recipe, TokenMean
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.critic import Critic
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.gae import GAE
from agentrl.trainers.mini_batches import mini_batches
from agentrl.trainers.settings import CriticSettings
from agentrl.trainers.token_weights import TokenWeight
from agentrl.trainers.update import Updater
from agentrl.trainers.value_loss import ValueLoss, clipped_value_loss, explained_variance
from agentrl.trainers.value_models import ValueHead, ValueModel, value_network
from agentrl.trajectory import Tree

KINDS = ("model", "head")
F64 = torch.float64
PPO = RECIPES["ppo"]
assert isinstance(PPO, Recipe)
PPO = replace(PPO, kl=None)


def updater_of(
    model: PreTrainedModel,
    kind: str = "model",
    recipe: Recipe = PPO,
    warmup: int = 0,
    rate: float = 1e-2,
    **changes: Any,
) -> tuple[Updater, Critic]:
    scorer, settings = TokenScorer(model), settings_of(**changes)
    options = CriticSettings(kind=kind, learning_rate=rate, warmup_updates=warmup)  # type: ignore[arg-type]
    critic = Critic(value_network(options, scorer), options, settings)
    return Updater(recipe, settings, scorer, temperature=1.0, total_updates=10, critic=critic), critic


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def with_random_head(network: ValueModel | ValueHead) -> None:
    """The head starts at zero, where values say nothing."""
    last = [module for module in network.trained.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.manual_seed(1)
    torch.nn.init.normal_(last.weight)


# Values ---------------------------------------------------------------------------------------------------------------


def plain_values(network: ValueModel | ValueHead, model: PreTrainedModel, tree: Tree) -> list[list[float]]:
    """Of every valid trajectory: the network's head on the hidden state before each sampled token, path by path."""
    rows = []
    for leaf in tree.valid_leaves:
        ids = torch.tensor([tree.token_ids(leaf.segment)])
        if isinstance(network, ValueModel):
            states, head = network.trained["body"](input_ids=ids).last_hidden_state[0], network.trained["head"]
        else:
            states, head = model.base_model(input_ids=ids).last_hidden_state[0], network.trained
        mask = [bool(m) for segment in tree.path(leaf.segment) for m in segment.action_mask][1:]
        rows.append(head(states[:-1])[torch.tensor(mask), 0].tolist())
    return rows


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_trees_are_those_of_their_paths(kind: str, family: str) -> None:
    model = tiny_model(family)
    network = value_network(CriticSettings(kind=kind), TokenScorer(model))  # type: ignore[arg-type]
    assert isinstance(network, ValueModel | ValueHead)
    trees = sampled_trees(tiny_model(), [1, 2, 3])
    assert network(trees).abs().max() == 0.0  # nothing is expected before anything is learned
    with_random_head(network)
    batch = lay_out_paths(trees)
    given = network(trees)[batch.token_index]
    expected = [row for tree in trees for row in plain_values(network, model, tree)]
    for row, mask, plain in zip(given, batch.mask, expected, strict=True):
        assert row[mask].tolist() == pytest.approx(plain, abs=1e-5)
    assert given[batch.mask].std() > 0.1


def test_a_model_is_a_copy_without_the_vocabulary() -> None:
    model = tiny_model()
    network = ValueModel(TokenScorer(model))
    own, theirs = dict(network.trained["body"].named_parameters()), dict(model.base_model.named_parameters())
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert not {p.data_ptr() for p in own.values()} & {p.data_ptr() for p in model.parameters()}
    assert sum(p.numel() for p in network.trained["head"].parameters()) == 32 + 1


def test_a_head_sends_no_gradient_into_the_policy() -> None:
    model = tiny_model()
    network = ValueHead(TokenScorer(model))
    with_random_head(network)
    network(sampled_trees(model, [1])).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in network.trained.parameters())
    assert sum(p.numel() for p in network.trained.parameters()) == 32 * 33 + 33


def test_a_model_beside_an_adapter_is_refused() -> None:
    model = tiny_model()
    next(model.parameters()).requires_grad_(False)  # as peft does with the base
    with pytest.raises(ConfigError, match=r"Set critic\.kind=head"):
        value_network(CriticSettings(), TokenScorer(model))
    assert isinstance(value_network(CriticSettings(kind="head"), TokenScorer(model)), ValueHead)


def test_learning_rates_of_the_kinds() -> None:
    assert [CriticSettings(kind=kind).rate for kind in KINDS] == [1e-5, 1e-3]  # type: ignore[arg-type]
    assert CriticSettings(learning_rate=0.5).rate == 0.5


# Loss -----------------------------------------------------------------------------------------------------------------


def test_value_loss_by_hand() -> None:
    # old 0, clip .5, target 1:  V .25: (.75^2) / 2 = .28125, not clipped
    # V .75: max(.25^2, (.5 - 1)^2) / 2 = .125, clipped, so no gradient
    # V -1: max(2^2, 1.5^2) / 2 = 2, gradient V - R = -2;  V 2: max(1, .25) / 2 = .5, gradient 1
    values = torch.tensor([[0.25, 0.75, -1.0, 2.0, math.nan]], dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, True, True, False]])
    zeros, ones = torch.zeros(1, 5, dtype=F64), torch.ones(1, 5, dtype=F64)
    losses, metrics = clipped_value_loss(values, zeros, ones, mask, clip=0.5)
    assert losses.tolist() == [[0.28125, 0.125, 2.0, 0.5, 0.0]]
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [[-0.75, 0.0, -2.0, 1.0, 0.0]]
    assert metrics["value_clip_fraction"].tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0]]
    assert clipped_value_loss(values, zeros, ones, mask, clip=None).values.tolist()[0][1] == 0.03125  # .25^2 / 2


def test_explained_variance_by_hand() -> None:
    targets = torch.tensor([[0.0, 1.0, 2.0, math.inf]])
    mask = torch.tensor([[True, True, True, False]])
    # residuals 0, .5, 1: variance .25 of 1
    values = torch.tensor([[0.0, 0.5, 1.0, math.nan]])
    assert float(explained_variance(values, targets, mask)) == 0.75
    assert float(explained_variance(values, torch.ones_like(targets), mask)) == 0.0
    assert float(explained_variance(values, targets, torch.zeros_like(mask))) == 0.0


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_value_clip_is_positive(clip: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        ValueLoss(clip=clip)


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_a_critic_takes_the_plain_steps(number: int) -> None:
    """lambda = 1, one reward at the end: AdamW on the mean of (V - R)^2 / 2 over all tokens, in two epochs."""
    model = exact_model()
    trees = sampled_trees(model, [1, 2])
    recipe = replace(PPO, value_loss=ValueLoss(clip=None))
    updater, critic = updater_of(model, recipe=recipe, epochs=2, mini_batches=number)
    plain = copy.deepcopy(critic)
    network = plain._network
    start = copy.deepcopy(network.trained)
    optimizer = torch.optim.AdamW(network.trained.parameters(), lr=1e-2, weight_decay=0.0)
    metrics = updater.update(trees, number=0, seed=0)
    losses = []
    steps = list(mini_batches(2, settings_of(epochs=2, mini_batches=number), 0))
    assert sorted(steps) == ([[0, 1], [0, 1]] if number == 1 else [[0], [0], [1], [1]])
    for chosen in steps:
        batch = lay_out_paths([trees[i] for i in chosen])
        values = network([trees[i] for i in chosen])[batch.token_index][batch.mask]
        targets = batch.rewards.double()[:, None].expand(batch.mask.shape)[batch.mask]
        loss = (values - targets).square().mean() / 2
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["value_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert_same_step(critic._network.trained, network.trained, start)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_learns_what_to_expect(kind: str) -> None:
    model = tiny_model()
    trees = sampled_trees(model, [1, 2, 3, 4])
    updater, _ = updater_of(model, kind, replace(PPO, value_loss=ValueLoss(clip=None)), warmup=100, rate=1e-2)
    history = [updater.update(trees, number=number, seed=number) for number in range(20)]
    assert history[0]["explained_variance"] == 0.0
    assert history[-1]["value_loss"] < history[0]["value_loss"] / 3
    assert history[-1]["explained_variance"] > 0.3


@pytest.mark.usefixtures("gradients_stay")
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_do_not_change_the_gradient(kind: str) -> None:
    trees = sampled_trees(tiny_model(), [5, 6, 7, 8])
    results = []
    for tokens in (10**6, 1):
        updater, critic = updater_of(tiny_model(), kind, max_tokens_per_micro_batch=tokens)
        metrics = updater.update(trees, number=0, seed=0)
        grads = {n: p.grad.clone() for n, p in critic._network.trained.named_parameters() if p.grad is not None}
        results.append((metrics, grads))
    (whole, gradient), (parts, split) = results
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert_same_gradients(split, gradient, relative=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_leaves_the_policy_alone(kind: str) -> None:
    model = tiny_model()
    trees = sampled_trees(model, [1, 2])
    updater, critic = updater_of(model, kind, warmup=1)
    policy, values = weights_of(model), weights_of(critic._network.trained)
    metrics = updater.update(trees, number=0, seed=0)
    assert "loss" not in metrics
    assert all(torch.equal(value, policy[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(v, values[n]) for n, v in critic._network.trained.state_dict().items())
    assert "loss" in updater.update(trees, number=1, seed=1)
    assert any(not torch.equal(value, policy[name]) for name, value in model.state_dict().items())


def test_the_policy_gets_advantages_over_the_values_before_the_update() -> None:
    """A critic whose step does nothing and one that learns fast give the policy the same update."""
    results = []
    for rate in (1e-12, 1e-1):
        model = tiny_model()
        updater, _ = updater_of(model, "head", rate=rate)
        updater.update(sampled_trees(tiny_model(), [1, 2]), number=0, seed=0)
        results.append(weights_of(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_schedule_is_the_policys() -> None:
    """AdamW's first step is as long as the learning rate: half of 1e-2 at update 5 of 10 of a linear schedule."""
    model = tiny_model()
    updater, critic = updater_of(model, schedule="linear")
    before = weights_of(critic._network.trained)
    updater.update(sampled_trees(model, [1, 2]), number=5, seed=0)
    moved = max(float((v - before[n]).abs().max()) for n, v in critic._network.trained.state_dict().items())
    assert moved == pytest.approx(5e-3, rel=1e-2)


class Half(TokenWeight):
    """A factor on the policy's losses."""

    def __call__(self, batch: Any, old_logprobs: Tensor) -> Tensor:
        return torch.full_like(old_logprobs, 0.5)


def test_token_weights_are_the_policys_alone() -> None:
    trees = sampled_trees(tiny_model(), [1, 2])
    plain, weighted = (
        updater_of(tiny_model(), recipe=replace(PPO, token_weights=weights))[0].update(trees, number=0, seed=0)
        for weights in ((), (Half(),))
    )
    assert weighted["value_loss"] == plain["value_loss"]
    assert weighted["loss"] == pytest.approx(plain["loss"] / 2, rel=1e-5)


def test_a_gradient_that_is_not_finite_names_its_setting() -> None:
    model = tiny_model()
    updater, critic = updater_of(model)
    before = weights_of(critic._network.trained)
    next(critic._network.trained.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(PolicyError, match=r"Lower critic\.learning_rate"):
        updater.update(sampled_trees(model, [1, 2]), number=0, seed=0)
    assert all(torch.equal(v, before[n]) for n, v in critic._network.trained.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_state_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    """Two updates, state and weights taken over by a new learner, two more: as four updates in one go."""
    trees = sampled_trees(tiny_model(), [1, 2, 3])
    model = tiny_model(dtype=dtype)
    updater, critic = updater_of(model, kind, mini_batches=2)
    for number in range(2):
        updater.update(trees, number=number, seed=number)
    resumed_model = tiny_model(dtype=dtype)
    resumed_model.load_state_dict(model.state_dict())
    resumed, resumed_critic = updater_of(resumed_model, kind, mini_batches=2)
    resumed.load_state_dict(copy.deepcopy(updater.state_dict()))
    for number in range(2, 4):
        whole = updater.update(trees, number=number, seed=number)
        assert resumed.update(trees, number=number, seed=number) == whole
    for ours, theirs in ((resumed_model, model), (resumed_critic._network.trained, critic._network.trained)):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_recipes_say_what_they_are() -> None:
    assert PPO.needs_critic
    assert PPO.advantage == GAE(gamma=1.0, lam=1.0, whiten=True)
    assert PPO.value_loss == ValueLoss(clip=0.5)
    assert PPO.aggregation == TokenMean()
