"""KL estimators: their expected values and gradients by summing over all outcomes, and the penalty part."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers import KLEstimator, KLPenalty, KLPlace
from agentrl.trainers.kl import k1, k2, k3

F64 = torch.float64
REFERENCE = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=F64)


def policy() -> tuple[Tensor, Tensor]:
    """Logits of a policy over four outcomes, and its log-probabilities."""
    logits = torch.tensor([0.1, 0.7, -0.4, 0.2], dtype=F64, requires_grad=True)
    return logits, logits.log_softmax(0)


def expectation(values: Tensor) -> Tensor:
    """The exact mean under the policy, which is not differentiated: the sampling is given."""
    return (policy()[1].exp().detach() * values).sum()


def gradient(of: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(of, logits)[0]


def divergence_gradient(forward: bool) -> Tensor:
    """Of KL(ref || pi) (forward) or of KL(pi || ref), in closed form by autograd on the definition."""
    logits, logp = policy()
    if forward:
        return gradient((REFERENCE * (REFERENCE.log() - logp)).sum(), logits)
    return gradient((logp.exp() * (logp - REFERENCE.log())).sum(), logits)


@pytest.mark.parametrize(("estimator", "unbiased"), [(k1, True), (k2, False), (k3, True)])
def test_expected_values(estimator: Callable[[Tensor], Tensor], unbiased: bool) -> None:
    _, logp = policy()
    true = (logp.exp() * (logp - REFERENCE.log())).sum().item()
    error = abs(expectation(estimator(logp - REFERENCE.log())).item() - true)
    assert (error < 1e-12) == unbiased
    assert unbiased or error > 1e-3


def test_expected_gradients_when_differentiated() -> None:
    """k1: none. k2: that of KL(pi || ref). k3: that of KL(ref || pi)."""
    results = []
    for estimator in (k1, k2, k3):
        logits, logp = policy()
        results.append(gradient(expectation(estimator(logp - REFERENCE.log())), logits))
    nothing, reverse, forward = results
    torch.testing.assert_close(nothing, torch.zeros(4, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(reverse, divergence_gradient(forward=False), rtol=0, atol=1e-12)
    torch.testing.assert_close(forward, divergence_gradient(forward=True), rtol=0, atol=1e-12)
    assert (reverse - forward).abs().max() > 1e-2  # the two are not the same thing


def test_k3_is_never_negative_and_keeps_its_digits() -> None:
    d = torch.linspace(-5, 5, 101, dtype=F64)
    assert (k3(d) >= 0).all()
    # series: d^2/2 - d^3/6; at d = 1e-4 in float32, exp(-d) - 1 + d would be rounding noise of 1e-8 around 5e-9
    assert k3(torch.tensor(1e-4)).item() == pytest.approx(5e-9 - 1e-12 / 6, rel=0.02)


@pytest.mark.parametrize("d", [-1e4, -90.0, 90.0, 1e4])
def test_k3_stays_finite_in_float32(d: float) -> None:
    leaf = torch.tensor(d, requires_grad=True)
    k3(leaf).backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite()
    assert k3(leaf).isfinite()


def test_penalty_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0]], dtype=F64, requires_grad=True)
    penalty = KLPenalty(coef=0.04)(logprobs, ref, torch.ones(1, 2, dtype=torch.bool))
    # d = .5, -1: k3 = exp(-.5) - 1 + .5 = .10653066 and exp(1) - 1 - 1 = .71828183
    assert penalty[0].tolist() == pytest.approx([0.04 * 0.10653066, 0.04 * 0.71828183], abs=1e-9)
    penalty.sum().backward()
    assert logprobs.grad is not None
    # d k3 / d logp = 1 - exp(-d)
    expected = [0.04 * (1 - math.exp(-0.5)), 0.04 * (1 - math.exp(1))]
    assert logprobs.grad[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert ref.grad is None


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_nothing_comes_through_the_mask(estimator: KLEstimator) -> None:
    part = KLPenalty(coef=1.0, estimator=estimator, place=KLPlace.REWARD)
    logprobs = torch.tensor([[-1.0, math.nan, -math.inf]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, math.nan]], dtype=F64)
    penalty = part(logprobs, ref, torch.tensor([[True, False, False]]))
    penalty.sum().backward()
    assert penalty[0, 1:].tolist() == [0.0, 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad[0, 1:].tolist() == [0.0, 0.0]
    assert logprobs.grad[0, 0] != 0


def test_senseless_penalties_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"positive coefficient, got 0\.0; kl=None"):
        KLPenalty(coef=0.0)
    with pytest.raises(ConfigError, match="expected gradient of zero; use k2 or k3"):
        KLPenalty(coef=0.1, estimator=KLEstimator.K1)
    KLPenalty(coef=0.1, estimator=KLEstimator.K1, place=KLPlace.REWARD)
    with pytest.raises(ValueError, match="ref_logprobs must have the mask's shape"):
        KLPenalty(coef=0.1)(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool))
