"""Limits that are none are refused where they are written down, before any sandbox is made (case 104)."""

import dataclasses
import math
from typing import Any

import pytest

from agentrl.errors import ConfigError
from agentrl.sandbox import Limits

FIELDS = [field.name for field in dataclasses.fields(Limits)]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value",
    [0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf, 10**12, 10**400, 1e300, "10", None, [10], 1j],
    ids=repr,
)
def test_what_is_no_limit_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"limit {name} "):
        Limits(**{name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_a_limit_may_be_small_or_large(name: str) -> None:
    for value in (1, 10**9):
        assert getattr(Limits(**{name: value}), name) == value


def test_seconds_may_be_fractions() -> None:
    assert Limits(cpu_s=0.25, wall_s=0.5) == Limits(wall_s=0.5, cpu_s=0.25)
