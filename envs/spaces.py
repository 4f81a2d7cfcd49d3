"""A Gymnasium space of arbitrary text."""

from typing import Any

import gymnasium
import numpy as np

_WORDS = ("yes", "no", "7", "Größe", "東京", "search", "answer: 42", "<b>", "\n")


class TextSpace(gymnasium.Space[str]):
    """Every string that UTF-8 can encode. Gymnasium's own `Text` needs a finite alphabet and a maximal length."""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Text is not an array."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Draws a few words; neither mask nor probability can apply to an infinite set.

        Raises:
            ValueError: A mask or a probability is given.
        """
        if mask is not None or probability is not None:
            raise ValueError("TextSpace.sample takes neither mask nor probability: the set of texts is infinite.")
        return " ".join(self.np_random.choice(_WORDS, size=int(self.np_random.integers(1, 6))))

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string without lone surrogates."""
        if not isinstance(x, str):
            return False
        try:
            x.encode()
        except UnicodeEncodeError:
            return False
        return True

    def __repr__(self) -> str:
        return "TextSpace()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    def __hash__(self) -> int:
        return hash(TextSpace)
