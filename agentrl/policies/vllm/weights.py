"""How a trainer hands its weights to vLLM engines: as files, one for each version, in memory where that is possible."""

import contextlib
import itertools
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from agentrl.errors import ConfigError
from agentrl.files import discard, writing
from agentrl.policies.vllm import handles
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.sandbox.owner import is_dead, owned_name, owner_in

_PREFIX = "agentrl-weights-"
_SHARED_MEMORY = Path("/dev/shm")


class WeightFiles:
    """Writes the weights of a model for engines to load, each time to a new path.

    All parameters go into one safetensors file, under the names of the checkpoint. Of a LoRA model only the adapter is
    written, as a folder. What was loaded last stays, for engines that come back later; everything else goes, at the
    latest at `close` or when the interpreter ends. What a killed process left is removed by the next one.

    Args:
        model: A `transformers` model, or a `peft` model with a LoRA adapter.
        folder: Where to write; by default in shared memory. Engines on other machines need a folder that they see
            under the same path.

    Raises:
        ConfigError: The folder cannot be written to.

    Example:
        with WeightFiles(model) as files, files.write(7) as path:
            await engine.load_weights(path, 7)
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        root = folder or _default_root()
        self._model = model
        self._numbers = itertools.count()
        self._loaded: Path | None = None
        self._by_handle = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(root)
            self._folder = Path(tempfile.mkdtemp(prefix=owned_name(_PREFIX), dir=root))
        except OSError as error:
            raise ConfigError(
                f"Weights cannot be written to {root}: {error.strerror}. Name another folder that the engines see, too."
            ) from error
        self._finalizer = weakref.finalize(self, _remove, self._folder, os.getpid())

    @contextlib.contextmanager
    def write(self, version: int) -> Iterator[Path]:
        """Writes the weights as they are now, to be loaded in the `with` block.

        After the block this file stays and the one before goes; if the block raises, it is the other way round. The
        weights must not change inside the block.

        Args:
            version: Becomes part of the path.

        Yields:
            A safetensors file, the folder of an adapter, or a file of handles (see `share`); whole as soon as it is
            there.

        Raises:
            CheckpointError: No space is left, or the operating system refuses.
        """
        path, lent = self._save(f"{version}-{next(self._numbers)}")
        try:
            yield path
        except BaseException:
            discard(path)
            raise
        if lent:
            discard(path)  # what it points to will change
        old, self._loaded = self._loaded, None if lent else path
        if old is not None:
            discard(old)

    async def share(self, rehearse: Callable[[Path], Awaitable[None]]) -> None:
        """Hands over by handle from now on: an engine on this machine reads the weights where they lie (`handles`).

        The engine tries it first, with all weights. Should it not work, files are written as before, after a warning.

        Args:
            rehearse: See `InProcessEngine.rehearse`.

        Raises:
            EngineLostError: The engine is gone.
        """
        self._by_handle = True
        try:
            with self.write(0) as path:
                await rehearse(path)
        except EngineLostError:
            raise
        except RuntimeError as error:  # PolicyError, CheckpointError and PyTorch's own
            self._by_handle = False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                "The vLLM engine cannot read the trainer's memory. Weights go through files instead, which takes "
                f"longer. The reason: {reason}",
                stacklevel=2,
            )

    def _save(self, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        """Writes a file or folder, and returns what has to live as long as it is read."""
        adapter = hasattr(self._model, "peft_config")
        lent: dict[str, torch.Tensor] = {}
        if adapter:
            target = self._folder / f"adapter-{name}"
        else:
            target = self._folder / f"weights-{name}{handles.SUFFIX if self._by_handle else '.safetensors'}"
        partial = target.with_name(f".{target.name}")
        with writing(target):
            try:
                if adapter:
                    self._model.save_pretrained(partial, save_embedding_layers=False)  # "auto" asks the hub
                elif self._by_handle:
                    lent = _checkpoint_tensors(self._model)
                    partial.write_text(handles.export(lent))
                else:
                    save_file(_checkpoint_tensors(self._model), partial, {"format": "pt"})
                partial.rename(target)
            finally:
                discard(partial)
        return target, lent

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
