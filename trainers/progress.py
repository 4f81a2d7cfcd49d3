"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 10.0
_SHOWN = {
    "loss": "loss {:.3f}",
    "success": "success {:.2f}",
    "reward": "reward {:.2f}",
    "entropy": "entropy {:.3f}",
    "kl": "kl {:.1e}",
    "clipped": "clipped {:.2f}",
    "tool_calls": "tools/episode {:.2f}",
    "reward_accuracy": "preferences {:.2f}",
    "examples": "examples {:.0f}",
    "demonstrations": "demonstrations {:.0f}",
    "fit_steps": "steps {:.0f}",
    "tokens_per_s": "tokens/s {:.0f}",
}


def summary_line(update: int, total: int, metrics: Mapping[str, float]) -> str:
    """The numbers people watch, in one line: those of them that the algorithm has."""
    shown = dict(metrics)
    if "success" in metrics:
        shown.pop("loss", None)  # where the policy plays, the loss says little
    for name in ("kl_old", "kl_reference"):  # the latter, if there are both
        if name in metrics:
            shown["kl"] = metrics[name]
    clipped = [metrics[name] for name in ("clip_fraction_low", "clip_fraction_high") if name in metrics]
    if clipped:
        shown["clipped"] = sum(clipped)
    parts = [text.format(shown[name]) for name, text in _SHOWN.items() if name in shown]
    return "  ".join([f"update {update}/{total}", *parts])


class TrainingProgress:
    """A context manager that reports updates.

    Args:
        console: Where to write.
        total: Updates of the run.
        done: Updates before this part of the run.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._started = time.monotonic()
        self._last_line = -_PLAIN_EVERY_S  # the clock may have been started with the machine, a moment ago
        self._bar = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, number: int, metrics: Mapping[str, float]) -> None:
        """Reports update `number` (from 1)."""
        line = summary_line(number, self._total, metrics)
        self._bar.update(self._task, completed=number, description=line)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > _PLAIN_EVERY_S or number == self._total):
            self._last_line = now
            left = (now - self._started) / max(1, number - self._done) * (self._total - number)
            self._console.print(f"{line}  left {left:.0f} s", highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
