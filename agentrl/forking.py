"""What a forked copy of this process must not go on with: locks that its parent's threads held, and connections.

Only the thread that forks lives on in the copy. What the others held there stays held for ever, and what they were
about to finish nobody finishes.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_resets: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def fresh_after_fork(thing: T, reset: Callable[[T], object]) -> None:
    """Has something start afresh in every process that is forked from this one while it lives.

    Args:
        thing: Known by its identity, and not kept alive by this.
        reset: Called with it in the child, before anything else runs there. A function that does not hold the thing
            itself, such as a method of its class.

    Example:
        fresh_after_fork(self, Client._begin)
    """
    _resets[thing] = reset


def _reset_all() -> None:
    for thing, reset in list(_resets.items()):
        reset(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
