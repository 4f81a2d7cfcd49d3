"""Saving a training run and continuing it: the continued run equals an uninterrupted one, to the bit on a CPU.

All random streams derive from (seed, update), so what has to be saved is short: weights, optimizer, and how far the
run is. A checkpoint is a folder that `AutoModelForCausalLM.from_pretrained` loads, plus `trainer.pt`.
"""

import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentrl.errors import CheckpointError
from agentrl.files import atomic_directory

_STATE = "trainer.pt"
_KEPT = 2
"""Checkpoints of a run that stay: the latest, and the one before in case that disk block goes bad."""


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Example:
        Progress(updates=40, tasks_drawn=320, seconds=61.2, reports={"before": {...}})
    """

    updates: int = 0
    """Updates that are done."""
    tasks_drawn: int = 0
    """Position in the order of training tasks."""
    seconds: float = 0.0
    """Time spent, earlier parts of a resumed run included."""
    reports: dict[str, Any] = field(default_factory=dict)
    """Evaluation reports so far, as JSON."""


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, state: dict[str, Any], progress: Progress) -> Path:
    """Writes the checkpoint of an update, completely or not at all, and removes all but the last two.

    Args:
        folder: The run's folder of checkpoints.
        model: A `transformers` or `peft` model.
        tokenizer: Saved beside it.
        state: What else the run has to keep, such as the optimizer's moments: tensors and plain values.
        progress: Saved as well; its `updates` names the checkpoint.

    Returns:
        The folder written.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    target = folder / f"update-{progress.updates:06d}"
    with atomic_directory(target) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        torch.save({"state": state, "progress": asdict(progress)}, new / _STATE)
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the latest update.

    Raises:
        CheckpointError: There is none.
    """
    found = _checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"{folder} holds no checkpoint, so there is nothing to resume. Start a new run in another folder, or "
            "delete this one first."
        )
    return found[-1]


def load_checkpoint(path: Path) -> tuple[dict[str, Any], Progress]:
    """The state and the progress of a checkpoint.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return state["state"], Progress(**state["progress"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read: {error}") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if (path / _STATE).is_file())
