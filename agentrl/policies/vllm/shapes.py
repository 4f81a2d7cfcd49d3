"""Whether the weights in a file are those of a model."""

from collections.abc import Set
from typing import TypeAlias

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""

_SHOWN = 3


def difference(expected: Shapes, found: Shapes, *, optional: Set[str] = frozenset()) -> str:
    """What is wrong with the names and shapes of a file, or "".

    Args:
        expected: Of the model.
        found: In the file.
        optional: Names that may be in one and not in the other.

    Example:
        >>> difference({"a": (2,), "b": (3,)}, {"a": (4,), "b": (3,)})
        'a has shape (4,) instead of (2,).'
    """
    missing = sorted(expected.keys() - found.keys() - optional)
    unknown = sorted(found.keys() - expected.keys() - optional)
    reshaped = [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in sorted(expected.items())
        if name in found and found[name] != shape
    ]
    problems = []
    if missing:
        problems.append(f"{_listed(missing)} missing")
    if unknown:
        problems.append(f"{_listed(unknown)} unknown to the model")
    if reshaped:
        problems.append(_listed(reshaped))
    return "; ".join(problems) + "." * bool(problems)


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
