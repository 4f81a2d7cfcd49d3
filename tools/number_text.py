"""How the calculator writes its results."""

from decimal import Context, Decimal
from fractions import Fraction

from agentrl.tools.arithmetic import Exact, Number
from agentrl.tools.calculator_bounds import refuse_lost
from agentrl.tools.real import Real

NUM_DIGITS = 12
"""Significant digits of a rounded decimal, unless its error leaves fewer."""
MAX_EXACT_DIGITS = 30
"""A fraction with at most so many digits is written out, as a decimal where that is exact."""
MAX_INTEGER_DIGITS = 60
NUM_END_DIGITS = 20
"""Digits shown at either end of a longer integer."""


def format_number(value: Number) -> str:
    """An integer, an exact decimal, a fraction with its rounded decimal, or a rounded decimal.

    >>> [format_number(x) for x in (42, Fraction(3, 10), Fraction(1, 3), Real(Decimal("3.14159"), Decimal("1e-4")))]
    ['42', '0.3', '1/3 = 0.333333333333', '3.142']

    Raises:
        CalculatorError: The error of a rounded number leaves no digit of it.
    """
    if isinstance(value, Real):
        if value.num_digits == 0:
            refuse_lost()
        return _decimal_text(Context(prec=min(value.num_digits, NUM_DIGITS)).plus(value.value))
    if value.denominator == 1:
        return _integer_text(value.numerator)
    exact = _exact_decimal(value)
    if exact is not None:
        return _decimal_text(exact)
    rounded = _decimal_text(Context(prec=NUM_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator)))
    fraction = f"{value.numerator}/{value.denominator}"
    return f"{fraction} = {rounded}" if len(fraction) <= 2 * MAX_EXACT_DIGITS else f"about {rounded}"


def _integer_text(value: int) -> str:
    text = str(value)
    num_digits = len(text.lstrip("-"))
    if num_digits <= MAX_INTEGER_DIGITS:
        return text
    head = text[: NUM_END_DIGITS + (value < 0)]
    return f"{head}...{text[-NUM_END_DIGITS:]} ({num_digits:,} digits)"


def _exact_decimal(value: Exact) -> Decimal | None:
    """The decimal that equals a fraction, if it has at most MAX_EXACT_DIGITS significant digits."""
    context = Context(prec=MAX_EXACT_DIGITS)
    decimal = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return decimal if Fraction(decimal) == value else None


def _decimal_text(value: Decimal) -> str:
    """Plain notation for ordinary sizes, scientific for the others; no trailing zeros."""
    if value == 0:
        return "0"
    value = value.normalize(Context(prec=MAX_EXACT_DIGITS))
    return f"{value:f}" if -7 < value.adjusted() < 15 else f"{value:e}"
