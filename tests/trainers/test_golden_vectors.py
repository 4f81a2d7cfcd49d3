"""Numbers worked out by hand, as they appear in papers and libraries; the arithmetic stands beside each."""

import math
from dataclasses import replace

import pytest
import torch
from path_cases import make_batch

from agentrl.trainers import RECIPES, Clip, PathBatch, Recipe, SeqMeanTokenMean, TokenMean
from agentrl.trainers.advantages import group_centered, group_normalized, mean_over_shared
from agentrl.trainers.kl import k1, k2, k3
from agentrl.trainers.objective import compute_advantages, compute_weights, policy_loss
from agentrl.trainers.shaping import overlong_penalty
from agentrl.trainers.surrogates import clipped

F64 = torch.float64
DIGITS = 5e-7
"""Half of the last digit given."""

# A group of 8 with 3 successes: mean 3/8 = .375; squared deviations 3 * .625^2 + 5 * .375^2 = 1.875;
# std sqrt(1.875 / 7) = .517549 (ddof 1) or sqrt(1.875 / 8) = .484123 (ddof 0).
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
LENGTHS = [10, 20, 30, 40, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("eps", "ddof", "success", "failure"),
    [
        pytest.param(1e-6, 1, 1.207612, -0.724567, id="verl"),  # .625 / .517550 and -.375 / .517550
        pytest.param(1e-4, 1, 1.207381, -0.724429, id="TRL"),  # .625 / .517649 and -.375 / .517649
        # .625 / .484123 = 1.2909944 and -.375 / .484123 = -.7745967; the six digits hold for eps = 1e-6
        pytest.param(1e-6, 0, 1.290992, -0.774595, id="population"),
    ],
)
def test_grpo_advantages(eps: float, ddof: int, success: float, failure: float) -> None:
    rewards, group = torch.tensor(REWARDS, dtype=F64), torch.zeros(8, dtype=torch.int64)
    expected = [success if reward else failure for reward in REWARDS]
    assert group_normalized(rewards, group, eps=eps, ddof=ddof).tolist() == pytest.approx(expected, abs=DIGITS)


def test_dr_grpo_advantages() -> None:
    rewards, group = torch.tensor(REWARDS, dtype=F64), torch.zeros(8, dtype=torch.int64)
    assert group_centered(rewards, group).tolist() == [0.625 if reward else -0.375 for reward in REWARDS]


@pytest.mark.parametrize(
    ("name", "success", "failure"),
    [
        ("grpo", 1.207612, -0.724567),
        ("dr_grpo", 0.625, -0.375),
        ("dapo", 1.207612, -0.724567),  # 40 tokens are far below 16384: no penalty
        ("arpo", 1.207612, -0.724567),
        ("arpo_hard", 1.207612, -0.724567),  # nothing shared
    ],
)
def test_recipes_give_every_token_its_advantage(name: str, success: float, failure: float) -> None:
    batch = make_batch(LENGTHS, REWARDS)
    advantages = compute_advantages(RECIPES[name], batch)
    for row, (reward, length) in enumerate(zip(REWARDS, LENGTHS, strict=True)):
        expected = [success if reward else failure] * length + [0.0] * (40 - length)
        assert advantages[row].tolist() == pytest.approx(expected, abs=DIGITS)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [
        (0.5, -0.5, 0.8),  # -min(.5, .8) and -min(-.5, -.8)
        (1.0, -1.0, 1.0),
        (1.5, -1.2, 1.5),  # -min(1.5, 1.2) and -min(-1.5, -1.2)
        (4.0, -1.2, 3.0),  # -min(4, 1.2); 4 capped at the dual clip's 3
    ],
)
def test_ppo_clip_table(ratio: float, positive: float, negative: float) -> None:
    log_ratio = torch.full((1, 2), math.log(ratio), dtype=F64)
    advantages = torch.tensor([[1.0, -1.0]], dtype=F64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    values = clipped(log_ratio, advantages, mask, low=0.2, high=0.2, dual=3.0).values
    assert values[0].tolist() == pytest.approx([positive, negative], abs=1e-12)


def test_kl_estimators() -> None:
    d = torch.tensor([0.1, -0.1, 0.5], dtype=F64)
    assert k1(d).tolist() == [0.1, -0.1, 0.5]
    assert k2(d).tolist() == pytest.approx([0.005, 0.005, 0.125], abs=1e-15)  # .01 / 2, .25 / 2
    # e^-.1 - .9 = .90483742 - .9; e^.1 - 1.1 = 1.10517092 - 1.1; e^-.5 - .5 = .60653066 - .5
    assert k3(d).tolist() == pytest.approx([0.00483742, 0.00517092, 0.10653066], abs=5e-9)


def test_dapo_overlong_penalty() -> None:
    # 20480 - 4096 = 16384 tokens are free; (16384 - 18432) / 4096 = -.5; verl's unfloored formula: -1.000244 at 20481
    lengths = torch.tensor([16384, 18432, 20480, 20481])
    assert overlong_penalty(lengths, max_length=20480, cache=4096).tolist() == [0.0, -0.5, -1.0, -1.0]
    (penalty,) = RECIPES["dapo"].shaping
    assert penalty(make_batch([18432, 1], [0.0, 0.0])).tolist() == [-0.5, 0.0]


def test_hard_advantage_of_a_shared_prefix() -> None:
    """(1.207612 - .724567) / 2 = .241522: two siblings of the group above, R = 1 and R = 0, share their first token."""
    index = [[100, *range(1, 10)], [100, *range(10, 29)]] + [
        list(range(1000 * row, 1000 * row + length)) for row, length in enumerate(LENGTHS) if row > 1
    ]
    batch = make_batch(LENGTHS, REWARDS, token_index=index)
    advantages = compute_advantages(RECIPES["arpo_hard"], batch)
    assert advantages[:2, 0].tolist() == pytest.approx([0.241522] * 2, abs=DIGITS)
    assert advantages[:2, 1].tolist() == pytest.approx([1.207612, -0.724567], abs=DIGITS)


# Trajectories of 12 and 30 tokens with advantages 1.2 and -.7 share one token; hard: (1.2 - .7) / 2 = .25 for both.
#   token_mean, r = 1:            soft (1.2 - .7) / 42 = .0119048;            hard (.25 + .25) / 42 = the same
#   seq_mean_token_mean, r = 1:   soft (1.2 / 12 - .7 / 30) / 2 = .0383333;   hard (.25 / 12 + .25 / 30) / 2 = .0145833
#   token_mean, r = 1.5:          soft: the positive copy is clipped, 1.5 * -.7 / 42 = -.025; hard: both clipped, 0
SHARED = make_batch([12, 30], [0.0, 0.0], token_index=[list(range(12)), [0, *range(12, 41)]])


@pytest.mark.parametrize(
    ("aggregation", "ratio", "soft", "hard"),
    [
        (TokenMean(), 1.0, 0.0119048, 0.0119048),
        (SeqMeanTokenMean(), 1.0, 0.0383333, 0.0145833),
        (TokenMean(), 1.5, -0.025, 0.0),
    ],
)
def test_gradient_of_a_shared_token(
    aggregation: TokenMean | SeqMeanTokenMean, ratio: float, soft: float, hard: float
) -> None:
    recipe = replace(RECIPES["arpo"], surrogate=Clip(low=0.2, high=0.2), aggregation=aggregation)
    own = torch.tensor([1.2, -0.7], dtype=F64)[:, None].expand(SHARED.mask.shape)
    levelled = mean_over_shared(own, SHARED.token_index, SHARED.mask)
    assert objective_slope(recipe, SHARED, own, ratio) == pytest.approx(soft, abs=5e-8)
    assert objective_slope(recipe, SHARED, levelled, ratio) == pytest.approx(hard, abs=5e-8)


def objective_slope(recipe: Recipe, batch: PathBatch, advantages: torch.Tensor, ratio: float) -> float:
    """d objective / d log pi of the shared token 0, whose copies sum up; the objective is minus the loss."""
    logprobs = torch.full((41,), math.log(ratio), dtype=F64, requires_grad=True)
    old = torch.zeros(batch.mask.shape, dtype=F64)
    weights = compute_weights(recipe, batch)
    loss, _ = policy_loss(
        recipe, batch, logprobs[batch.token_index], old_logprobs=old, advantages=advantages, weights=weights
    )
    (-loss).backward()
    assert logprobs.grad is not None
    return float(logprobs.grad[0])
