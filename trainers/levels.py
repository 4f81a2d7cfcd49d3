"""Choices of the sampler-to-trainer correction, by name: settings can be read without torch."""

import enum


class CorrectionLevel(enum.StrEnum):
    """Over what the mismatch is taken."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    """The product over a trajectory; explodes on long ones."""
    GEOMETRIC = "geometric"
    """Its geometric mean; the one for agents' long trajectories."""


class CorrectionAction(enum.StrEnum):
    """What happens to a weight outside the bounds."""

    TRUNCATE = "truncate"
    """It is moved to the bound: truncated importance sampling (TIS)."""
    MASK = "mask"
    """It becomes 0, the token or trajectory drops out: masked importance sampling (MIS, IcePop)."""
