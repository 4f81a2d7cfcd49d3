"""Tensors that another process on this machine reads where they lie: in the GPU's memory, or in a CPU's shared memory.

Handles are written down as literals, not pickled: whoever names a file of them to an engine cannot have it run code.
"""

import ast
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

SUFFIX = ".handles"
"""Of the name of a file with what `export` returns."""

_WORD = 8


def export(tensors: Mapping[str, Tensor]) -> str:
    """Handles of contiguous tensors, to be opened once by one process while the tensors live and do not change.

    A tensor on a CPU is moved to shared memory first, in place, and stays there.

    Example:
        >>> weight = torch.tensor([1.0, 2.0])
        >>> text = export({"weight": weight})
        >>> weight[0] = 5.0
        >>> open_exported(text)
        Traceback (most recent call last):
        ValueError: Not what was handed over is in the memory of weight.
    """
    return repr({name: _exported(tensor) for name, tensor in tensors.items()})


def open_exported(text: str) -> dict[str, Tensor]:
    """The tensors of another process, to be read only and let go of soon.

    Raises:
        ValueError: They are not what they were when they were exported.
        RuntimeError: They cannot be opened here.
    """
    tensors = {}
    for name, (shape, dtype, offset, place, digest) in ast.literal_eval(text).items():
        tensor = _opened(torch.Size(shape), getattr(torch, dtype), offset, place)
        if _digest(tensor) != digest:
            raise ValueError(f"Not what was handed over is in the memory of {name}.")
        tensors[name] = tensor
    return tensors


def _exported(tensor: Tensor) -> tuple[Any, ...]:
    digest = _digest(tensor)  # waits for the GPU to have written the tensor
    if tensor.is_cuda:
        # CUDA's and PyTorch's handles come after class, size, stride, offset, class of the storage and dtype.
        place = tuple(reduce_tensor(tensor.detach())[1][6:])  # type: ignore[no-untyped-call]
    else:
        place = tuple(tensor.untyped_storage()._share_filename_cpu_())
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.storage_offset(), place, digest


def _opened(shape: torch.Size, dtype: torch.dtype, offset: int, place: tuple[Any, ...]) -> Tensor:
    stride = torch.empty(shape, device="meta").stride()
    if len(place) > 3:
        kind = torch.storage.TypedStorage
        cuda: Tensor = rebuild_cuda_tensor(Tensor, shape, stride, offset, kind, dtype, *place)  # type: ignore[no-untyped-call]
        return cuda
    storage = torch.UntypedStorage._new_shared_filename_cpu(*place)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _digest(tensor: Tensor) -> int:
    """A sum of the bits that does not depend on the order of summation, and is made without a copy."""
    data = tensor.detach().reshape(-1).view(torch.uint8)
    end = data.numel() // _WORD * _WORD
    return int(data[:end].view(torch.int64).sum()) + int(data[end:].sum())
