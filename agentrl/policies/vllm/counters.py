"""What a pool of engines has done, for metrics."""

import time
from dataclasses import dataclass, field, fields
from typing import Self


@dataclass(slots=True)
class Counters:
    """Totals since the pool was made."""

    requests: int = 0
    """Turns asked for."""
    retried: int = 0
    """Times that a turn was asked for again because its engine was lost."""
    lost_engines: int = 0
    """Times that an engine was taken out."""
    cached_tokens: int = 0
    """Tokens of prompts that were not computed again."""
    prefilled_tokens: int = 0
    """Tokens of prompts that were computed."""
    sampled_tokens: int = 0
    in_flight: int = 0
    """Turns that engines are sampling now."""
    busy_s: float = 0.0
    """Time during which there was any."""
    turn_s: float = 0.0
    """The same, added up over turns."""
    changed_at: float = field(default=0.0, repr=False)

    @property
    def mean_in_flight(self) -> float:
        """Turns that engines were sampling at a time, on average over the time in which there were any."""
        return self.turn_s / self.busy_s if self.busy_s else 0.0

    def change(self, by: int) -> None:
        """Turns have begun, or ended if `by` is negative."""
        now = time.monotonic()
        if self.in_flight:
            self.busy_s += now - self.changed_at
            self.turn_s += self.in_flight * (now - self.changed_at)
        self.in_flight += by
        self.changed_at = now

    def since(self, before: "Counters") -> Self:
        """What has been added to an earlier state of the same counters."""
        return type(self)(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def metrics(self) -> dict[str, float]:
        """Totals and the mean, by names that begin with "engine_"."""
        names = ("requests", "retried", "lost_engines", "cached_tokens", "prefilled_tokens", "sampled_tokens")
        return {f"engine_{name}": float(getattr(self, name)) for name in (*names, "mean_in_flight")}
