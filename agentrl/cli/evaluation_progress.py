"""How far an evaluation is: a live line on a terminal, a plain one every ten seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentrl.trajectory import Tree

_PLAIN_EVERY_S = 10.0


class EvaluationProgress:
    """A context manager that reports tasks as they are finished.

    Args:
        console: Where to write.
        num_tasks: Tasks in all.
    """

    def __init__(self, console: Console, num_tasks: int) -> None:
        self._console = console
        self._num_tasks = num_tasks
        self._done = self._successes = self._valid = self._invalid = 0
        self._last_line = time.monotonic()
        self._bar = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(self._line(), total=num_tasks)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def count(self, tree: Tree) -> None:
        """Takes in a finished task."""
        valid = tree.valid_leaves
        self._done += 1
        self._valid += len(valid)
        self._invalid += len(tree.leaves) - len(valid)
        self._successes += sum(leaf.success for leaf in valid)
        self._bar.update(self._task, completed=self._done, description=self._line())
        if not self._console.is_terminal and time.monotonic() - self._last_line > _PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        rate = f"{100 * self._successes / self._valid:.1f} %" if self._valid else "unknown"
        invalid = f", {self._invalid} invalid" if self._invalid else ""
        return f"{self._done}/{self._num_tasks} tasks, success so far {rate}{invalid}"
