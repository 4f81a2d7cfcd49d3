"""Key/value storage with one row per live sequence, of any length, that rows can be copied and swapped in.

Hugging Face caches keep one length for the whole batch. Here every row has its own, so sequences can join, wait for a
tool, fork and leave while others go on, and nothing is computed twice.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

_MIN_ROWS, _MIN_CAPACITY = 8, 64


@dataclass(slots=True)
class _Layer:
    keys: Tensor | None = None
    """[rows, heads, capacity, head size]"""
    values: Tensor | None = None


@dataclass(slots=True)
class _Window:
    """Where the running forward pass reads and writes: rows [start, stop), each at its own positions."""

    start: int = 0
    stop: int = 0
    columns: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    """[stop - start, Q]: column of every new token."""
    length: int = 0
    """Columns that attention may read."""


class KVRows(Cache):  # type: ignore[misc]  # transformers is not annotated
    """The storage, in the form of a `transformers.Cache` whose `update` writes into the present window."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._store: list[_Layer] = []
        self._window = _Window()
        self.num_rows = 0
        self.capacity = 0

    def open_window(self, start: int, columns: Tensor, length: int) -> None:
        """Directs the next forward pass to rows [start, start + len(columns)).

        Args:
            start: First row.
            columns: [R, Q] int64, the column of every new token.
            length: Columns that attention reads; all of `columns` lie below.
        """
        self._window = _Window(start, start + columns.shape[0], columns, length)
        self._reserve(self._window.stop, length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values and returns all of the window's rows.

        Args:
            key_states: [R, heads, Q, head size].
            value_states: The same shape, possibly another head size.
            layer_idx: Layer.
            args: Unused, part of the signature that models call.
            kwargs: Likewise.

        Returns:
            Views [R, heads, length, head size] of keys and values.
        """
        while len(self._store) <= layer_idx:
            self._store.append(_Layer())
        layer, window = self._store[layer_idx], self._window
        layer.keys = self._write(layer.keys, key_states)
        layer.values = self._write(layer.values, value_states)
        rows = slice(window.start, window.stop)
        return layer.keys[rows, :, : window.length], layer.values[rows, :, : window.length]

    @torch.inference_mode()
    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` columns of a row."""
        self._reserve(target + 1, length)
        for tensor in self._tensors():
            tensor[target, :, :length] = tensor[source, :, :length]

    @torch.inference_mode()
    def swap_rows(self, first: int, second: int, length: int) -> None:
        """Exchanges the first `length` columns of two rows."""
        for tensor in self._tensors():
            kept = tensor[first, :, :length].clone()
            tensor[first, :, :length] = tensor[second, :, :length]
            tensor[second, :, :length] = kept

    def clear(self) -> None:
        """Frees everything."""
        self._store.clear()
        self.num_rows = self.capacity = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Rows differ in length and positions are always given, so the model must not derive any from this."""
        return 0

    def _write(self, tensor: Tensor | None, new: Tensor) -> Tensor:
        window = self._window
        if tensor is None:
            tensor = new.new_zeros(self.num_rows, new.shape[1], self.capacity, new.shape[3])
        rows = torch.arange(window.start, window.stop, device=new.device)[:, None]
        tensor[rows, :, window.columns] = new.transpose(1, 2)
        return tensor

    def _tensors(self) -> list[Tensor]:
        return [t for layer in self._store for t in (layer.keys, layer.values) if t is not None]

    def _reserve(self, rows: int, length: int) -> None:
        """Grows by doubling, so that copying amortises."""
        new_rows, new_capacity = self.num_rows, self.capacity
        while new_rows < rows:
            new_rows = max(_MIN_ROWS, 2 * new_rows)
        while new_capacity < length:
            new_capacity = max(_MIN_CAPACITY, 2 * new_capacity)
        if (new_rows, new_capacity) == (self.num_rows, self.capacity):
            return
        for layer in self._store:
            layer.keys = self._grown(layer.keys, new_rows, new_capacity)
            layer.values = self._grown(layer.values, new_rows, new_capacity)
        self.num_rows, self.capacity = new_rows, new_capacity

    def _grown(self, tensor: Tensor | None, rows: int, capacity: int) -> Tensor | None:
        if tensor is None:
            return None
        grown = tensor.new_zeros(rows, tensor.shape[1], capacity, tensor.shape[3])
        grown[: self.num_rows, :, : self.capacity] = tensor
        return grown
