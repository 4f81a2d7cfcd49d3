"""One kind of table for everything that is chosen by name: tools, rewards, recipes, policies."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from agentrl.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """A hint for an error message: the closest known name, or the list of them.

    >>> nearest("calculater", ["calculator", "search"])
    "Did you mean 'calculator'?"
    """
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(sorted(known))}." if known else "None is known."


class Registry(Mapping[str, T], Generic[T]):
    """A name-to-object table whose look-up errors suggest the nearest name.

    Args:
        kind: What the entries are, as in "unknown <kind> 'x'".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Enters one object.

        Raises:
            ConfigError: The name is taken by another object.
        """
        if self._entries.get(name, entry) is not entry:
            raise ConfigError(f"{self.kind} {name!r} exists already; choose another name.")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """The decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = list(self._entries)
            raise UnknownNameError(f"Unknown {self.kind} {name!r}. {nearest(name, known)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
