"""How a trainer hands its weights to vLLM engines: as files, one for each version, in memory where that is possible."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from agentrl.errors import ConfigError
from agentrl.files import discard, writing
from agentrl.sandbox.owner import is_dead, owned_name, owner_in

_PREFIX = "agentrl-weights-"
_SHARED_MEMORY = Path("/dev/shm")
_KEPT = 2
"""Versions that stay: the newest, and the one before for an engine that is still reading it."""


class WeightFiles:
    """Writes the weights of a model, each version to a new path.

    All parameters go into one safetensors file, under the names of the checkpoint. Of a LoRA model only the adapter is
    written, as a folder.

    The files are removed when they are old, at `close`, and when the interpreter ends. What a killed process left is
    removed by the next one.

    Args:
        model: A `transformers` model, or a `peft` model with a LoRA adapter.
        folder: Where to write; by default in shared memory. Engines on other machines need a folder that they see
            under the same path.

    Raises:
        ConfigError: The folder cannot be written to.

    Example:
        with WeightFiles(model) as files:
            await engine.load_weights(files.write(7), 7)
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        root = folder or _default_root()
        self._model = model
        self._written: list[Path] = []
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(root)
            self._folder = Path(tempfile.mkdtemp(prefix=owned_name(_PREFIX), dir=root))
        except OSError as error:
            raise ConfigError(
                f"Weights cannot be written to {root}: {error.strerror}. Name another folder that the engines see, too."
            ) from error
        self._finalizer = weakref.finalize(self, _remove, self._folder, os.getpid())

    def write(self, version: int) -> Path:
        """Writes the weights as they are now.

        Args:
            version: Becomes part of the path.

        Returns:
            A safetensors file, or the folder of an adapter; whole as soon as it is there.

        Raises:
            CheckpointError: No space is left, or the operating system refuses.
        """
        adapter = hasattr(self._model, "peft_config")
        target = self._folder / (f"adapter-{version}" if adapter else f"weights-{version}.safetensors")
        partial = target.with_name(f".{target.name}")
        with writing(target):
            try:
                discard(target)  # of the same version
                if adapter:
                    self._model.save_pretrained(partial, save_embedding_layers=False)  # "auto" asks the hub
                else:
                    save_file(_checkpoint_tensors(self._model), partial, {"format": "pt"})
                partial.rename(target)
            finally:
                discard(partial)
        self._written = [path for path in self._written if path != target] + [target]
        for old in self._written[:-_KEPT]:
            discard(old)
        self._written = self._written[-_KEPT:]
        return target

    def close(self) -> None:
        """Removes all files. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@torch.no_grad()
def _checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by their names in the checkpoint, each one once."""
    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights are one object under two names
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    converted = revert_weight_conversion(model, tensors)
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def _default_root() -> Path:
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK)
    return _SHARED_MEMORY if usable else Path(tempfile.gettempdir())


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        owner = owner_in(path.name, _PREFIX)
        if owner is not None and is_dead(owner):
            shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child, whose interpreter ends first
        shutil.rmtree(folder, ignore_errors=True)
