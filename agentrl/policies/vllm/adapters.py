"""Which LoRA adapters an engine holds."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any


class Adapters:
    """The newest adapter, and older ones until the requests that began with them are done."""

    def __init__(self) -> None:
        self._newest: Any = None
        self._version = 0
        self._loaded: set[int] = set()
        self._users: Counter[int] = Counter()

    @contextlib.contextmanager
    def used(self) -> Iterator[tuple[Any, int]]:
        """Keeps the newest adapter for a request: a `vllm.lora.request.LoRARequest`, or None before the first one.

        Yields:
            The adapter and its version.
        """
        adapter = self._newest
        number = 0 if adapter is None else adapter.lora_int_id
        self._users[number] += 1
        try:
            yield adapter, self._version
        finally:
            self._users[number] -= 1

    def exchange(self, adapter: Any, version: int) -> None:
        """Gives requests from now on this adapter, which the engine has loaded."""
        self._newest, self._version = adapter, version
        self._loaded.add(adapter.lora_int_id)

    def unused(self) -> list[int]:
        """Forgets the adapters that no request has or will get, and returns their numbers."""
        old = sorted(n for n in self._loaded if n != self._newest.lora_int_id and not self._users[n])
        self._loaded.difference_update(old)
        return old
