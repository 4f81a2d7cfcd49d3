"""Compares what two libraries computed, and keeps how far apart they were for the table at the end of a verbose run."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Result:
    """What one library makes of a case."""

    loss: Tensor
    """A scalar."""
    grad: Tensor
    """Of the loss, by whatever the case differentiates."""
    advantages: Tensor | None = None
    """[B, L], 0 outside the mask; None where there is no such thing."""


@dataclass
class Deviations:
    """The largest absolute differences of each case that passed."""

    case: str = ""
    """Of the test that runs."""
    found: dict[str, dict[str, float]] = field(default_factory=dict)
    """By case and quantity."""

    def note(self, differences: dict[str, float]) -> None:
        known = self.found.setdefault(self.case, {})
        known.update({name: max(value, known.get(name, 0.0)) for name, value in differences.items()})

    def table(self) -> list[str]:
        """Markdown."""
        head = ["| case | advantages | loss | gradient |", "|---|---|---|---|"]
        rows = (
            [case, *(f"{row[name]:.1e}" if name in row else "" for name in ("advantages", "loss", "grad"))]
            for case, row in self.found.items()
        )
        return head + [f"| {' | '.join(row)} |" for row in rows]


DEVIATIONS = Deviations()


def assert_same(ours: Result, theirs: Result, *, tolerance: float = 1e-6) -> None:
    """Advantages, loss and gradient agree, and the gradient is one."""
    assert theirs.grad.abs().max() > 1e-4, "this case exercises nothing"
    differences: dict[str, float] = {}
    for name in ("advantages", "loss", "grad"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine is not None and other is not None:
            differences[name] = _distance(mine, other)
            assert differences[name] <= tolerance, f"{name} differs: {differences[name]:.3g}"
    DEVIATIONS.note(differences)


def _distance(mine: Tensor, other: Tensor) -> float:
    assert mine.shape == other.shape
    return float((mine - other).abs().max())
