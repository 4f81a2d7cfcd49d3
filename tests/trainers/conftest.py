"""Puts the independent references on the import path, and lets gradients be looked at."""

import sys
from pathlib import Path

import pytest

from agentrl.trainers.optimizer import MasterAdamW

sys.path.insert(0, str(Path(__file__).parent / "references"))


@pytest.fixture
def gradients_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an optimizer step the weights have the gradients, unclipped, that they had before it."""
    step = MasterAdamW.step

    def stepped(self: MasterAdamW) -> float:
        gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        norm = step(self)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return norm

    monkeypatch.setattr(MasterAdamW, "step", stepped)
