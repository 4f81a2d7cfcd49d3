"""A recipe as a person reads it: its parts with the numbers that differ from the parts' own defaults."""

import enum
from dataclasses import fields, is_dataclass
from typing import Any

from agentrl.trainers.algorithm import Algorithm

_TITLE = ("name", "paper", "idea")


def brief(value: Any) -> str:
    """A part in short: its class and its numbers, or its own words where it has any.

    >>> from agentrl.rollout.plan import GroupPlan
    >>> from agentrl.trainers.surrogates import Clip
    >>> brief((Clip(high=0.28), 0.5, "text", GroupPlan(size=4)))
    "(Clip(low=0.2, high=0.28), 0.5, 'text', 4 per task)"
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value))})"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if not is_dataclass(value) or isinstance(value, type):
        return f"{value:g}" if isinstance(value, float) else repr(value)
    if type(value).__str__ is not object.__str__:
        return str(value)
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    inside = ", ".join(f"{name}={brief(part)}" for name, part in given.items() if not _is_empty(part))
    return f"{type(value).__name__}({inside})"


def parts_of(algorithm: Algorithm) -> dict[str, str]:
    """Every part of an algorithm that is set, in short, by field."""
    return {
        field.name: brief(getattr(algorithm, field.name))
        for field in fields(algorithm)
        if field.name not in _TITLE and not _is_empty(getattr(algorithm, field.name))
    }


def card_of(algorithm: Algorithm) -> list[str]:
    """An algorithm as `agentrl algorithms NAME` and the pages in `docs/algorithms/` show it, line by line."""
    parts = {"needs": ", ".join(algorithm.needs) or "nothing beside the policy", **parts_of(algorithm)}
    width = max(map(len, parts))
    return [f"{algorithm.name}: {algorithm.idea}", *(f"  {field:<{width}}  {part}" for field, part in parts.items())]


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value == ()
