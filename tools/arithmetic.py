"""Exact arithmetic that cannot run away.

A number is exact (`int` or `Fraction`) while that is possible, and a rounded `Real` from the first irrational function
or over-long fraction on. Sums and products of numbers within the limits are at most twice as long, so they are computed
and then checked; whatever can grow faster estimates the size of its result before computing it.
"""

import math
from fractions import Fraction
from typing import TypeAlias

from agentrl.tools import real
from agentrl.tools.calculator_bounds import MAX_BITS, MAX_FRACTION_BITS, CalculatorError, refuse_large, refuse_lost
from agentrl.tools.real import Real

Exact: TypeAlias = int | Fraction
Number: TypeAlias = int | Fraction | Real

ZERO_POWER = "Division by zero: zero has no negative power."


def checked(value: Exact) -> Number:
    """The same number in its simplest form; a fraction longer than `MAX_FRACTION_BITS` is rounded.

    Raises:
        CalculatorError: It is an integer longer than `MAX_BITS`.
    """
    if value.denominator == 1:
        if value.numerator.bit_length() > MAX_BITS:
            refuse_large()
        return value.numerator
    return value if num_bits(value) <= MAX_FRACTION_BITS else real.plus(real.from_exact(value))


def num_bits(value: Exact) -> int:
    """Bits of the numerator or the denominator, whichever is longer."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def to_real(value: Number) -> Real:
    """The number, rounded unless it is already."""
    return value if isinstance(value, Real) else real.from_exact(value)


def add(left: Number, right: Number) -> Number:
    """The sum."""
    if isinstance(left, Real) or isinstance(right, Real):
        return real.add(to_real(left), to_real(right))
    return checked(left + right)


def subtract(left: Number, right: Number) -> Number:
    """The difference."""
    return add(left, -right)


def multiply(left: Number, right: Number) -> Number:
    """The product."""
    if isinstance(left, Real) or isinstance(right, Real):
        return real.multiply(to_real(left), to_real(right))
    return checked(left * right)


def divide(left: Number, right: Number) -> Number:
    """The quotient, exact for exact numbers.

    Raises:
        CalculatorError: The divisor is zero.
    """
    if isinstance(left, Real) or isinstance(right, Real):
        return real.divide(to_real(left), to_real(right))
    _refuse_zero(right)
    return checked(Fraction(left) / right)


def floor_divide(left: Number, right: Number) -> Number:
    """The largest whole number that is at most left / right."""
    if isinstance(left, Real) or isinstance(right, Real):
        return floor(divide(left, right))
    _refuse_zero(right)
    return checked(left // right)


def modulo(left: Number, right: Number) -> Number:
    """The remainder of `floor_divide`; it has the sign of `right`."""
    if isinstance(left, Real) or isinstance(right, Real):
        return subtract(left, multiply(right, floor_divide(left, right)))
    _refuse_zero(right)
    return checked(left % right)


def _refuse_zero(divisor: Exact) -> None:
    if divisor == 0:
        raise CalculatorError("Division by zero.")


def sign(value: Number) -> int:
    """-1, 0 or 1.

    Raises:
        CalculatorError: The rounding of the number leaves it open.
    """
    if isinstance(value, Real):
        if value.value.copy_abs() <= value.error:
            refuse_lost()
        return 1 if value.value > 0 else -1
    return (value > 0) - (value < 0)


def compare(left: Number, right: Number) -> int:
    """-1, 0 or 1 for less, equal, greater. Rounded numbers are equal where their difference cannot be told from 0."""
    if isinstance(left, Real) or isinstance(right, Real):
        return sign(subtract(left, right))
    return (left > right) - (left < right)


def absolute(value: Number) -> Number:
    """The value without its sign."""
    return -value if sign(value) < 0 else value


def floor(value: Number) -> int:
    """The largest whole number that is at most the value.

    Raises:
        CalculatorError: The rounding of the number leaves it open.
    """
    return real.floor(value) if isinstance(value, Real) else math.floor(value)


def power(base: Number, exponent: Number) -> Number:
    """The power, exact where the result is rational: 8 ** (1/3) is 2. 0 ** 0 is 1.

    Raises:
        CalculatorError: Too large, a power of zero with negative exponent, or no real value.
    """
    if isinstance(exponent, int):
        return _integer_power(base, exponent)
    if sign(base) < 0:
        raise CalculatorError("A negative number has no real power with a fractional exponent.")
    if base == 0:
        if sign(exponent) < 0:
            raise CalculatorError(ZERO_POWER)
        return 0
    if isinstance(base, int | Fraction) and isinstance(exponent, Fraction):
        root = exact_root(base, exponent.denominator)
        if root is not None:
            return _integer_power(root, exponent.numerator)
    return exp(multiply(exponent, ln(base)))


def _integer_power(base: Number, exponent: int) -> Number:
    if not isinstance(base, Real):
        if exponent < 0:
            if base == 0:
                raise CalculatorError(ZERO_POWER)
            base, exponent = 1 / Fraction(base), -exponent
        if exponent == 0 or base in (0, 1):
            return 1 if exponent == 0 else checked(base)
        if base == -1:
            return -1 if exponent % 2 else 1
        limit = MAX_BITS if base.denominator == 1 else MAX_FRACTION_BITS
        if (num_bits(base) - 1) * exponent <= limit:  # a lower bound; the result has at most twice as many bits
            return checked(base**exponent)
        if base.denominator == 1:
            refuse_large()
    size = exp(multiply(exponent, ln(absolute(base))))
    return -size if exponent % 2 and sign(base) < 0 else size


def exp(value: Number) -> Number:
    """The exponential."""
    return real.exp(to_real(value))


def ln(value: Number) -> Number:
    """The natural logarithm of a number above zero."""
    if not isinstance(value, Real):
        above_one = Fraction(value) - 1
        # Rounding would swallow the digits of a number so close to 1. The series ends where it is exact to 51 digits.
        if above_one and abs(above_one) < Fraction(1, 10**17):
            return real.series(to_real(above_one), (Fraction(-1, 2), Fraction(1, 3)), step=1)
    return real.ln(to_real(value))


def square_root(value: Number) -> Number:
    """The square root, exact where it is rational."""
    if sign(value) < 0:
        raise CalculatorError("A negative number has no real square root.")
    if not isinstance(value, Real):
        root = exact_root(value, 2)
        if root is not None:
            return checked(root)
    return real.square_root(to_real(value))


def exact_root(value: Exact, degree: int) -> Exact | None:
    """The rational root of a number of at least 0, or None where it is irrational or the number is negative."""
    numerator = _integer_root(value.numerator, degree)
    denominator = None if numerator is None else _integer_root(value.denominator, degree)
    return None if numerator is None or denominator is None else Fraction(numerator, denominator)


def _integer_root(value: int, degree: int) -> int | None:
    """Newton's method on integers, from above; every step doubles the right digits of a start that has twelve."""
    if value < 2:
        return value if value >= 0 else None
    if degree == 2:  # by far the most frequent one
        root = math.isqrt(value)
        return root if root * root == value else None
    if degree >= value.bit_length():
        return None  # 2 ** degree is already larger
    whole, part = divmod(math.log2(value) / degree, 1)
    root = (int(2 ** (part + 64) * (1 + 1e-10)) << int(whole) >> 64) + 1
    while True:
        better = ((degree - 1) * root + value // root ** (degree - 1)) // degree
        if better >= root:
            return root if root**degree == value else None
        root = better
