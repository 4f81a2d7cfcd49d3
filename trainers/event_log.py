"""The metrics of a run as TensorBoard events, beside metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """Writes scalars to a folder that `tensorboard --logdir` reads.

    Args:
        folder: Created if needed; a resumed run adds a file of its own.
        first_update: Update after which this part of the run begins. TensorBoard drops what an earlier, killed part
            wrote for later updates.
    """

    def __init__(self, folder: Path, *, first_update: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_update + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Writes one row, so that a kill loses at most what the operating system has not written yet."""
        for name, value in metrics.items():
            tag = name if "/" in name else f"train/{name}"
            self._writer.add_scalar(tag, value, update)
        self._writer.flush()
