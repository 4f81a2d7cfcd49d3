"""Runs inside vLLM's worker processes, which import it because `worker_extension_cls` names `WorkerExtension`.

It brings the weight-transfer backend "agentrl_file", which reads new weights from a safetensors file on any device, or
where a file of handles says that they lie, and ends the engine when the process that it works for is gone.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from agentrl.policies.vllm import handles
from agentrl.policies.vllm.settings import OWNER_VARIABLE
from agentrl.policies.vllm.shapes import Shapes, difference
from agentrl.sandbox.owner import is_dead

_BACKEND = "agentrl_file"
_WATCH_SECONDS = 2.0


class WorkerExtension:
    """Mixed into vLLM's worker class; what this module does happens when it is imported."""


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """What to try."""

    path: str
    """A file of handles."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the new weights are."""

    path: str
    """A safetensors file, or a file of handles, with the names of the checkpoint that the engine was started from."""
    version: int = 0


class FileWeights(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Exchanges all weights for those of a file."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._expected: Shapes | None = None

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Rehearses an update by handles; files need no agreement.

        Raises:
            ValueError: They point to something else than what was handed over.
            RuntimeError: They cannot be opened.
        """
        with _opened(Path(init_info.path)):
            pass

    def start_weight_update(self) -> None:
        """Does nothing: the model is taken apart only when the file is known to fit."""

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Loads the file.

        vLLM's own loader leaves a model in pieces when a shape is wrong, and leaves layers as they were when names are
        missing. So the file is compared with the checkpoint first.

        Raises:
            ValueError: The file does not fit; nothing has changed.
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        if self._expected is None:
            self._expected = _checkpoint_shapes(self.model_config)
        with _opened(Path(update_info.path)) as (found, tensor_of):
            problem = difference(self._expected, found, optional=_tied_names(self.model_config))
            if problem:
                raise ValueError(f"The weights in {update_info.path} do not fit the model: {problem}")
            initialize_layerwise_reload(self.model)
            self.model.load_weights((name, tensor_of(name)) for name in found)
            finalize_layerwise_reload(self.model, self.model_config)
        _repack_output_layers(self.model)

    def finish_weight_update(self) -> None:
        """Does nothing: the update is done."""

    def shutdown(self) -> None:
        """Does nothing: no connection is open."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Shapes, Callable[[str], Tensor]]]:
    """What is in a file of weights, and a way to each; nothing of it is held after the `with` block."""
    if path.suffix == handles.SUFFIX:
        tensors = handles.open_exported(path.read_text())
        yield {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.pop
    else:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor  # noqa: SIM118


def _repack_output_layers(model: Any) -> None:
    """Makes the packed copies of output layers anew.

    On a CPU vLLM multiplies with a packed copy of the weights. An output layer that is tied to the embedding gets none
    of its own to load, so reloading leaves its copy as it was.
    """
    for layer in model.modules():
        if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def _checkpoint_shapes(model_config: Any) -> Shapes:
    """Names and shapes of the weights that the engine was started from."""
    folder = Path(model_config.model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model_config.model, revision=model_config.revision, local_files_only=True))
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # some folders hold the same weights in a second form
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    if not files:
        raise ValueError(f"{folder} has no safetensors files to compare new weights with.")
    shapes: Shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _tied_names(model_config: Any) -> frozenset[str]:
    """Weights that may be in a checkpoint or not, as they are another one's."""
    tied = getattr(model_config.hf_text_config, "tie_word_embeddings", False)
    return frozenset({"lm_head.weight"}) if tied else frozenset()


def _watch(owner: str, parent: int) -> None:
    """Ends this process and the engine core above it once the owner is gone, however it went.

    Without the core vLLM's server ends by itself. The core goes first: with nobody to talk to it may not end at all.
    """
    while not is_dead(owner):
        time.sleep(_WATCH_SECONDS)
    if parent > 1 and os.getppid() == parent and str(parent) != owner.split(".")[3]:
        os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _start(environment: Mapping[str, str]) -> None:
    if _BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_BACKEND, FileWeights)
    owner = environment.get(OWNER_VARIABLE)
    if owner is not None and str(os.getpid()) != owner.split(".")[3]:
        threading.Thread(target=_watch, args=(owner, os.getppid()), daemon=True, name="agentrl-owner").start()


_start(os.environ)
