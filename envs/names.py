"""Invented names, so that nothing about what they name can be known by heart."""

from collections.abc import Sequence

import numpy as np

_ONSETS = ("b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "tr", "v", "w")
_VOWELS = ("a", "e", "i", "o", "u")
_INNER = ("", "", "l", "n", "r", "s")
_FINAL = ("l", "n", "r", "s", "nd", "rn", "st", "rk")


class NameSource:
    """Draws names, each of them once.

    Args:
        rng: Random stream.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._taken: set[str] = set()

    def word(self, suffixes: Sequence[str] = ("",)) -> str:
        """An invented word that was not drawn before, such as "Talvern"."""
        while True:
            word = (self._syllable(_INNER) + self._syllable(_FINAL) + self._one_of(suffixes)).capitalize()
            if word.lower() not in self._taken:
                self._taken.add(word.lower())
                return word

    def combined(self, *parts: Sequence[str]) -> str:
        """A name of one word from each list, not drawn before in this combination."""
        while True:
            name = " ".join(self._one_of(part) for part in parts)
            if name.lower() not in self._taken:
                self._taken.add(name.lower())
                return name

    def _syllable(self, endings: Sequence[str]) -> str:
        return self._one_of(_ONSETS) + self._one_of(_VOWELS) + self._one_of(endings)

    def _one_of(self, options: Sequence[str]) -> str:
        return options[int(self._rng.integers(len(options)))]
