"""The clipped surrogate: values and slopes on both sides of every bound, and nothing through the mask."""

import math

import pytest
import torch

from agentrl.errors import ConfigError
from agentrl.trainers import Clip, SurrogateInputs, TokenRatio
from agentrl.trainers.ratios import MAX_LOG_RATIO, bounded_exp, token_level
from agentrl.trainers.surrogates import clipped

F64 = torch.float64
NEAR = 1e-4


def one_token(
    ratio: float, advantage: float, *, low: float = 0.2, high: float = 0.28, dual: float | None = None
) -> tuple[float, float, dict[str, float]]:
    """Loss, d loss / d log ratio, metrics."""
    log_ratio = torch.tensor([[math.log(ratio)]], dtype=F64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=F64)
    values, metrics = clipped(log_ratio, advantages, mask, low=low, high=high, dual=dual)
    values.sum().backward()
    assert log_ratio.grad is not None
    return values.item(), log_ratio.grad.item(), {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # inside, the loss is -r A, and so is its slope: d exp(x) / dx = exp(x)
        (1.0, 2.0, -2.0, -2.0),
        (0.8 + NEAR, -2.0, 1.6 + 2 * NEAR, 1.6 + 2 * NEAR),
        (1.28 - NEAR, 2.0, -2.56 + 2 * NEAR, -2.56 + 2 * NEAR),
        # beyond a bound in the direction that A asks for: constant
        (0.8 - NEAR, -2.0, 1.6, 0.0),
        (1.28 + NEAR, 2.0, -2.56, 0.0),
        # beyond a bound in the other direction: the gradient that leads back stays
        (0.8 - NEAR, 2.0, -1.6 + 2 * NEAR, -1.6 + 2 * NEAR),
        (1.28 + NEAR, -2.0, 2.56 + 2 * NEAR, 2.56 + 2 * NEAR),
        # no advantage, no loss
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_value_and_slope_on_both_sides_of_the_bounds(ratio: float, advantage: float, loss: float, slope: float) -> None:
    value, gradient, metrics = one_token(ratio, advantage)
    assert value == pytest.approx(loss, abs=1e-12)
    assert gradient == pytest.approx(slope, abs=1e-12)
    cut = slope == 0.0 and advantage != 0.0
    assert metrics["clip_fraction_low"] == float(cut and advantage < 0)
    assert metrics["clip_fraction_high"] == float(cut and advantage > 0)


def test_the_dual_clip_caps_the_loss_of_negative_advantages_only() -> None:
    # A = -2, c = 3: the loss stops at c |A| = 6
    below, above = one_token(3 - NEAR, -2.0, dual=3.0), one_token(3 + NEAR, -2.0, dual=3.0)
    assert below[:2] == pytest.approx((6 - 2 * NEAR, 6 - 2 * NEAR), abs=1e-12)
    assert above[:2] == pytest.approx((6.0, 0.0), abs=1e-12)
    assert (below[2]["clip_fraction_dual"], above[2]["clip_fraction_dual"]) == (0.0, 1.0)
    assert one_token(5.0, 2.0, dual=3.0)[0] == pytest.approx(-2.56)  # A > 0: the ordinary clip
    assert one_token(5.0, -2.0)[0] == pytest.approx(10.0)  # without it: r |A|


def test_infinite_bounds_switch_the_clip_off() -> None:
    for ratio in (0.01, 1.0, 100.0):
        for advantage in (-1.0, 1.0):
            loss, slope, _ = one_token(ratio, advantage, low=math.inf, high=math.inf)
            assert (loss, slope) == pytest.approx((-ratio * advantage,) * 2, rel=1e-12)


def test_nothing_comes_through_the_mask() -> None:
    log_ratio = torch.tensor([[0.1, math.inf, -math.inf, math.nan, 0.3]], dtype=F64, requires_grad=True)
    advantages = torch.tensor([[1.0, -math.inf, math.inf, 1.0, math.nan]], dtype=F64)
    mask = torch.tensor([[True, False, False, False, False]])
    values, metrics = clipped(log_ratio, advantages, mask, low=0.2, high=0.2, dual=3.0)
    values.sum().backward()
    assert values[0, 1:].tolist() == [0.0] * 4
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [[-math.exp(0.1), 0.0, 0.0, 0.0, 0.0]]
    assert all(values[0, 1:].tolist() == [0.0] * 4 for values in metrics.values())


def test_multiplying_by_the_mask_would_not_do() -> None:
    """Negative control: what the double `where` is there for."""
    log_ratio = torch.tensor([0.1, math.inf], requires_grad=True)
    (log_ratio.exp() * torch.tensor([1.0, 0.0])).sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[1].isnan()


@pytest.mark.parametrize("log_ratio", [-math.inf, -1e4, -90.0, 90.0, 1e4, math.inf])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_runaway_ratios_stay_finite_in_float32(log_ratio: float, advantage: float) -> None:
    leaf = torch.tensor([[log_ratio]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    clipped(leaf, torch.tensor([[advantage]]), mask, low=0.2, high=0.2).values.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == 0.0


def test_bounded_exp_is_exp_within_its_bounds() -> None:
    assert bounded_exp(torch.tensor([-30.0, 1.0, 30.0], dtype=F64)).tolist() == pytest.approx(
        [math.exp(-MAX_LOG_RATIO), math.e, math.exp(MAX_LOG_RATIO)], rel=1e-15
    )


def test_token_level_keeps_every_token() -> None:
    log_ratio, mask = torch.tensor([[0.1, -0.2, math.nan]]), torch.tensor([[True, True, False]])
    assert token_level(log_ratio, mask).tolist() == TokenRatio()(log_ratio, mask).tolist()
    torch.testing.assert_close(token_level(log_ratio, mask), torch.tensor([[0.1, -0.2, 0.0]]))


def test_the_part_passes_its_numbers_on() -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantages = torch.randn(2, 4, 5, dtype=F64, generator=generator)
    mask = torch.ones(4, 5, dtype=torch.bool)
    inputs = SurrogateInputs(
        log_ratio=log_ratio,
        advantages=advantages,
        mask=mask,
        logprobs=log_ratio,
        old_logprobs=torch.zeros_like(log_ratio),
        rows=torch.arange(4),
        seed=0,
    )
    part = Clip(low=0.1, high=0.4, dual=2.0)(inputs)
    assert torch.equal(part.values, clipped(log_ratio, advantages, mask, low=0.1, high=0.4, dual=2.0).values)


def test_bad_bounds_and_tensors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"not negative, got low=-0\.2"):
        Clip(low=-0.2)
    with pytest.raises(ConfigError, match=r"must exceed 1 .* got 0\.5"):
        Clip(dual=0.5)
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"advantages must have the mask's shape \[2, 2\], got \[2\]"):
        clipped(torch.zeros(2, 2), torch.zeros(2), mask, low=0.2, high=0.2)
    with pytest.raises(TypeError, match=r"log_ratio must be a floating-point tensor, got torch\.int64"):
        clipped(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2), mask, low=0.2, high=0.2)
