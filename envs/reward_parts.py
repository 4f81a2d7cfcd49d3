"""Rewards in named parts: a reward function may return {"answer": 1.0, "format": -0.5}, whose sum is the reward."""

import math
from collections.abc import Mapping

from agentrl.errors import ConfigError

TURNS = "turns"
"""Name of the part of a return that the rewards of the turns make up."""


def parts_of_return(judgement: Mapping[str, float], turns: float | None) -> dict[str, float]:
    """The named parts of an episode's return.

    >>> parts_of_return({"answer": 1, "format": -0.5}, turns=0.75)
    {'answer': 1.0, 'format': -0.5, 'turns': 0.75}

    Args:
        judgement: What the reward function said of the finished episode.
        turns: Sum of the turns' rewards; None where turns have none.

    Raises:
        ConfigError: A part is not finite, or has the name of the turns' part.
    """
    parts = {str(name): float(value) for name, value in judgement.items()}
    for name, value in parts.items():
        if not math.isfinite(value):
            raise ConfigError(f"The reward part {name!r} is {value}; it must be finite.")
    if turns is None:
        return parts
    if TURNS in parts:
        raise ConfigError(f"The part {TURNS!r} is what the rewards of the turns make up; name the reward's otherwise.")
    return {**parts, TURNS: turns}
