"""Metrics of the mismatch between sampler and trainer, with the arithmetic."""

import math

import pytest
import torch

from agentrl.trainers.mismatch import mismatch_metrics


def test_by_hand() -> None:
    # d = 0, ln 2, -ln 2 over three tokens; the fourth is masked and holds what no network gives.
    trainer = torch.tensor([[-1.0, -1.0 + math.log(2), -1.0 - math.log(2), math.nan]])
    sampler = torch.tensor([[-1.0, -1.0, -1.0, math.inf]])
    mask = torch.tensor([[True, True, True, False]])
    metrics = mismatch_metrics(trainer, sampler, mask)
    assert metrics["mismatch_mean"] == pytest.approx(2 * math.log(2) / 3, rel=1e-6)
    assert metrics["mismatch_max"] == pytest.approx(math.log(2), rel=1e-6)
    # Weights 1, 2, 1/2: (1-1-0) + (2-1-ln 2) + (1/2-1+ln 2) = 1/2 over three tokens.
    assert metrics["mismatch_kl"] == pytest.approx(1 / 6, rel=1e-6)
    # (3.5)^2 / (3 * (1 + 4 + 1/4)) = 12.25 / 15.75
    assert metrics["mismatch_ess"] == pytest.approx(12.25 / 15.75, rel=1e-6)


def test_equal_networks() -> None:
    logprobs = -torch.rand(3, 5)
    metrics = mismatch_metrics(logprobs, logprobs.clone(), torch.rand(3, 5) < 0.7)
    assert metrics == {"mismatch_mean": 0.0, "mismatch_max": 0.0, "mismatch_kl": 0.0, "mismatch_ess": 1.0}


def test_no_token() -> None:
    assert mismatch_metrics(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)) == {}
