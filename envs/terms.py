"""Arithmetic expressions that know their text and their exact value, to write problems and answers with."""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

_SUM, _PRODUCT, _ATOM = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Term:
    """An expression with its value.

    Example:
        >>> (number(48) + number(2)) * number("3.5")
        Term(text='(48 + 2) * 3.5', value=Fraction(175, 1), strength=2)
    """

    text: str
    """As the calculator reads it, with no more brackets than needed."""
    value: Fraction
    strength: int = _ATOM
    """How tightly the outermost operator binds."""

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: "Term") -> "Term":
        return Term(f"{self.text} + {other.text}", self.value + other.value, _SUM)

    def __sub__(self, other: "Term") -> "Term":
        return Term(f"{self.text} - {_bracketed(other, _PRODUCT)}", self.value - other.value, _SUM)

    def __mul__(self, other: "Term") -> "Term":
        text = f"{_bracketed(self, _PRODUCT)} * {_bracketed(other, _ATOM)}"
        return Term(text, self.value * other.value, _PRODUCT)

    def __truediv__(self, other: "Term") -> "Term":
        text = f"{_bracketed(self, _PRODUCT)} / {_bracketed(other, _ATOM)}"
        return Term(text, self.value / other.value, _PRODUCT)

    def percent_of(self, other: "Term") -> "Term":
        """This many percent of another."""
        return other * self / number(100)

    def rounded(self) -> "Term":
        """Rounded to two decimals, halves away from zero; itself if it has no more."""
        if (self.value * 100).denominator == 1:
            return self
        return Term(f"round({self.text}, 2)", _round(self.value))


def number(value: int | str) -> Term:
    """A literal, such as 48 or "3.50"."""
    return Term(str(value), Fraction(value))


def plain(value: Fraction) -> str:
    """A number as a person writes it.

    >>> plain(Fraction(7, 4)), plain(Fraction(1200))
    ('1.75', '1200')
    """
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


def _bracketed(term: Term, strength: int) -> str:
    return term.text if term.strength >= strength else f"({term.text})"


def _round(value: Fraction) -> Fraction:
    scaled = abs(value) * 100 + Fraction(1, 2)
    rounded = Fraction(scaled.numerator // scaled.denominator, 100)
    return rounded if value >= 0 else -rounded
