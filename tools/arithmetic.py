"""Exact arithmetic that cannot run away.

A number is exact (`int` or `Fraction`) while that is possible and a `float` from the first irrational function on.
Every exact number is kept within `MAX_BITS`. Sums and products of two such numbers are at most twice as long, so
they are computed and then checked; whatever can grow faster estimates the size of its result before computing it.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import NoReturn, TypeAlias

from agentrl.errors import ToolError

Exact: TypeAlias = int | Fraction
Number: TypeAlias = int | Fraction | float

MAX_BITS = 10_000
"""Longest integer, numerator or denominator: about 3,010 decimal digits."""
CLOSE_ULPS = 4
"""Two floats this many units in the last place apart count as equal; their own rounding explains the difference."""


class CalculatorError(ToolError):
    """An expression has no value; the message is short and made for the model."""


def refuse_large() -> NoReturn:
    """Ends a computation whose result would be too long."""
    raise CalculatorError(f"The result is too large: more than {MAX_BITS * math.log10(2):,.0f} digits.")


def checked(value: Number) -> Number:
    """The same number in its simplest form.

    Raises:
        CalculatorError: It is longer than `MAX_BITS`, infinite or undefined.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CalculatorError("The result is too large for a decimal number.")
        return value
    if num_bits(value) > MAX_BITS:
        refuse_large()
    return value.numerator if value.denominator == 1 else value


def num_bits(value: Exact) -> int:
    """Bits of the numerator or the denominator, whichever is longer."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def to_float(value: Number) -> float:
    """The nearest float.

    Raises:
        CalculatorError: The number is beyond the range of floats.
    """
    try:
        return float(value)
    except OverflowError:
        raise CalculatorError("A number is too large for this function (limit 1.8e308).") from None


def add(left: Number, right: Number) -> Number:
    """The sum."""
    return _apply(operator.add, left, right)


def subtract(left: Number, right: Number) -> Number:
    """The difference."""
    return _apply(operator.sub, left, right)


def multiply(left: Number, right: Number) -> Number:
    """The product."""
    return _apply(operator.mul, left, right)


def divide(left: Number, right: Number) -> Number:
    """The quotient, exact for exact numbers."""
    if isinstance(left, int) and right:
        left = Fraction(left)
    return _apply(operator.truediv, left, right)


def floor_divide(left: Number, right: Number) -> Number:
    """The largest whole number that is at most left / right."""
    return _apply(operator.floordiv, left, right)


def modulo(left: Number, right: Number) -> Number:
    """The remainder of `floor_divide`; it has the sign of `right`."""
    return _apply(operator.mod, left, right)


def _apply(operation: Callable[..., Number], left: Number, right: Number) -> Number:
    if isinstance(left, float) or isinstance(right, float):
        left, right = to_float(left), to_float(right)
    try:
        return checked(operation(left, right))
    except ZeroDivisionError:
        raise CalculatorError("Division by zero.") from None


def absolute(value: Number) -> Number:
    """The value without its sign."""
    return -value if value < 0 else value


def power(base: Number, exponent: Number) -> Number:
    """The power, exact where the result is rational: 8 ** (1/3) is 2. 0 ** 0 is 1.

    Raises:
        CalculatorError: Too large, a power of zero with negative exponent, or no real value.
    """
    if not isinstance(base, float) and not isinstance(exponent, float):
        if isinstance(exponent, int):
            return _integer_power(base, exponent)
        root = exact_root(base, exponent.denominator)
        if root is not None:
            return _integer_power(root, exponent.numerator)
    x, y = to_float(base), to_float(exponent)
    if x < 0 and not y.is_integer():
        raise CalculatorError("A negative number has no real power with a fractional exponent.")
    try:
        return checked(x**y)
    except ZeroDivisionError:
        raise CalculatorError("Division by zero: zero has no negative power.") from None
    except OverflowError:
        raise CalculatorError("The result is too large for a decimal number.") from None


def _integer_power(base: Exact, exponent: int) -> Number:
    if exponent < 0:
        if base == 0:
            raise CalculatorError("Division by zero: zero has no negative power.")
        base, exponent = 1 / Fraction(base), -exponent
    if base in (0, 1):
        return 1 if exponent == 0 else checked(base)
    if base == -1:
        return -1 if exponent % 2 else 1
    if (num_bits(base) - 1) * exponent > MAX_BITS:  # a lower bound; the result has at most twice as many bits
        refuse_large()
    return checked(base**exponent)


def exact_root(value: Exact, degree: int) -> Exact | None:
    """The rational root of a number of at least 0, or None where it is irrational or the number is negative."""
    numerator = _integer_root(value.numerator, degree)
    denominator = _integer_root(value.denominator, degree)
    return None if numerator is None or denominator is None else Fraction(numerator, denominator)


def _integer_root(value: int, degree: int) -> int | None:
    """Newton's method on integers, from above."""
    if value < 2:
        return value if value >= 0 else None
    if degree >= value.bit_length():
        return None  # 2 ** degree is already larger
    root = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * root + value // root ** (degree - 1)) // degree
        if better >= root:
            return root if root**degree == value else None
        root = better


def compare(left: Number, right: Number) -> int:
    """-1, 0 or 1 for less, equal, greater. A float equals what lies within its rounding (`CLOSE_ULPS`)."""
    difference = Fraction(left) - Fraction(right)
    floats = [abs(value) for value in (left, right) if isinstance(value, float)]
    tolerance = Fraction(CLOSE_ULPS * math.ulp(max(floats))) if floats else Fraction(0)
    return 0 if abs(difference) <= tolerance else (1 if difference > 0 else -1)


def snap(value: Number) -> Exact:
    """The exact number that a value stands for: a float within rounding of a whole number is that number."""
    if not isinstance(value, float):
        return value
    whole = round(value)
    return whole if compare(value, whole) == 0 else Fraction(repr(value))
