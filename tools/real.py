"""Rounded numbers that know how far off they may be.

A number that is not rational is a decimal of `PRECISION` digits with a bound on its error, which every operation
passes on. So the calculator knows which digits of a result are right, and when two results are equal: sqrt(2)^2 is 2,
and 10^60 * sqrt(2) has no last digit before the point. The result of an operation that cannot be told from a whole
number is that whole number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_UP, Context, Decimal
from fractions import Fraction

from agentrl.tools.calculator_bounds import MAX_DIGITS, CalculatorError, refuse_large, refuse_lost

PRECISION = 50
"""Digits of a rounded number."""
SMALL_ERROR = Decimal("1e-20")
"""A number with a smaller error, and a whole number within it, is that whole number."""

_NEAREST = Context(prec=PRECISION, Emax=10**6, Emin=-(10**6))
_UP = Context(prec=6, rounding=ROUND_UP, Emax=10**6, Emin=-(10**6))  # errors are rounded away from zero,
_DOWN = Context(prec=6, rounding=ROUND_DOWN, Emax=10**6, Emin=-(10**6))  # and what they are divided by towards it
_WIDE = Context(prec=PRECISION + 30, Emax=10**6, Emin=-(10**6))  # for functions, which are then rounded once
# Operators on decimals would use the precision of the thread: contexts only, and copy_abs, copy_negate, copy_sign.

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211707")
_ONE, _TWO = Decimal(1), Decimal(2)
_HALF_PI = _WIDE.divide(PI, _TWO)
_HALF_PI_ERROR = Decimal((0, (1,), 2 - _WIDE.prec))
"""Bound on its rounding and that of its multiples, per multiple."""
_MAX_EXPONENT = Decimal(7000)
"""exp of more than this is beyond MAX_DIGITS: 7000 / ln(10) = 3040."""
_SLOPE_NEAR_0 = Decimal("1.00001")
"""Bound on the slope of a series that begins with x, for x up to 10^-9 and its error."""
_MAX_ANGLE = Decimal("1e25")
"""Beyond this, digits of pi are missing to tell where in its period an angle lies."""


@dataclass(frozen=True, slots=True)
class Real:
    """A rounded number.

    Example:
        Real(Decimal("1.4142..."), Decimal("1E-49")), which is the square root of 2
    """

    value: Decimal
    error: Decimal
    """Bound on the distance to the number that is meant."""

    def __float__(self) -> float:
        return float(self.value)

    def __neg__(self) -> "Real":
        return Real(self.value.copy_negate(), self.error)

    @property
    def num_digits(self) -> int:
        """How many of its digits are right: the error is less than half a unit of the last of them; at least 0."""
        width = _UP.multiply(self.error, _TWO)
        if self.value.copy_abs() <= width:
            return 0
        return min(PRECISION, self.value.adjusted() - width.adjusted()) if width else PRECISION


def rounded(value: Decimal, error: Decimal = Decimal(0)) -> Real | int:
    """The result of an operation: with the error of its operands and of its own rounding.

    Raises:
        CalculatorError: It has more than `MAX_DIGITS` digits before or after the point.
    """
    if value.adjusted() > MAX_DIGITS:
        refuse_large()
    if value and value.adjusted() < -MAX_DIGITS:
        raise CalculatorError(f"The result is too close to 0: less than 10^-{MAX_DIGITS:,}.")
    value = _NEAREST.plus(value)
    error = _UP.add(error, Decimal((0, (1,), value.adjusted() - PRECISION + 1)) if value else Decimal(0))
    if error < SMALL_ERROR:
        whole = value.to_integral_value(ROUND_HALF_EVEN)
        if _NEAREST.subtract(value, whole).copy_abs() <= error:
            return int(whole)
    return Real(value, error)


def from_exact(value: int | Fraction) -> Real:
    """An exact number, rounded."""
    if isinstance(value, int) and abs(value) < 10**PRECISION:
        return Real(Decimal(value), Decimal(0))
    quotient = _NEAREST.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Real(quotient, Decimal((0, (1,), quotient.adjusted() - PRECISION + 1)))


def plus(x: Real) -> Real | int:
    """The number itself, in its simplest form and checked."""
    return rounded(x.value, x.error)


def add(left: Real, right: Real) -> Real | int:
    """The sum."""
    return rounded(_WIDE.add(left.value, right.value), _UP.add(left.error, right.error))


def multiply(left: Real, right: Real) -> Real | int:
    """The product. (x + a)(y + b) - xy = xb + ya + ab."""
    error = _UP.add(
        _UP.multiply(_UP.abs(left.value), right.error),
        _UP.multiply(_UP.add(_UP.abs(right.value), right.error), left.error),
    )
    return rounded(_WIDE.multiply(left.value, right.value), error)


def divide(left: Real, right: Real) -> Real | int:
    """The quotient. (x + a)/(y + b) - x/y = (a - (x/y) b)/(y + b).

    Raises:
        CalculatorError: The divisor is zero, or cannot be told from it.
    """
    smallest = _DOWN.subtract(_DOWN.abs(right.value), right.error)
    if smallest <= 0:
        raise CalculatorError("Division by zero.")
    quotient = _WIDE.divide(left.value, right.value)
    error = _UP.divide(_UP.add(left.error, _UP.multiply(_UP.abs(quotient), right.error)), smallest)
    return rounded(quotient, error)


def floor(x: Real) -> int:
    """The largest whole number that is at most x.

    Raises:
        CalculatorError: The error of x leaves it open.
    """
    lowest = _WIDE.subtract(x.value, x.error).to_integral_value(ROUND_FLOOR)
    if lowest != _WIDE.add(x.value, x.error).to_integral_value(ROUND_FLOOR):
        refuse_lost()
    return int(lowest)


def square_root(x: Real) -> Real | int:
    """The square root of a number above zero. |sqrt(x + a) - sqrt(x)| <= |a| / sqrt(x)."""
    root = _WIDE.sqrt(x.value)
    return rounded(root, _UP.divide(x.error, _DOWN.plus(root)))


def exp(x: Real) -> Real | int:
    """The exponential. e^(x + a) - e^x = e^x (e^a - 1), and |e^a - 1| <= 2 |a| for |a| <= 1."""
    if x.value > _MAX_EXPONENT:
        refuse_large()
    if x.value < -_MAX_EXPONENT:
        raise CalculatorError(f"The result is too close to 0: less than 10^-{MAX_DIGITS:,}.")
    if x.error > 1:
        refuse_lost()
    power = _NEAREST.exp(x.value)
    return rounded(power, _UP.multiply(_UP.multiply(_UP.plus(power), x.error), _TWO))


def ln(x: Real) -> Real | int:
    """The natural logarithm of a number above zero. Its slope from x - a to x + a is at most 1 / (x - a)."""
    smallest = _DOWN.subtract(_DOWN.plus(x.value), x.error)
    if smallest <= 0:
        refuse_lost()
    return rounded(_NEAREST.ln(x.value), _UP.divide(x.error, smallest))


def sin(x: Real) -> Real | int:
    """The sine; its slope is at most 1."""
    return _sine(x, 0)


def cos(x: Real) -> Real | int:
    """The cosine, which is the sine a quarter of the circle later."""
    return _sine(x, 1)


def atan(x: Real) -> Real | int:
    """The arc tangent; its slope is 1 / (1 + x^2)."""
    nearest = max(_DOWN.subtract(_DOWN.abs(x.value), x.error), Decimal(0))
    error = _UP.divide(x.error, _DOWN.add(_DOWN.multiply(nearest, nearest), _ONE))
    size = x.value.copy_abs()
    angle = _atan(size) if size <= 1 else _WIDE.subtract(_HALF_PI, _atan(_WIDE.divide(_ONE, size)))
    return rounded(angle.copy_sign(x.value), error)


def series(x: Real, coefficients: Sequence[Fraction], step: int) -> Real | int:
    """The sum x + c1 x^(1 + step) + c2 x^(1 + 2 step) + ... for a number so close to 0 that it rises like x itself.

    Summed with digits to spare and rounded once: 1 + c1 x^step alone would pass for 1.
    """
    power = _WIDE.power(x.value, step)
    factor = Decimal(0)
    for coefficient in reversed(coefficients):
        quotient = _WIDE.divide(Decimal(coefficient.numerator), Decimal(coefficient.denominator))
        factor = _WIDE.multiply(power, _WIDE.add(quotient, factor))
    total = _WIDE.add(x.value, _WIDE.multiply(x.value, factor))
    return rounded(total, _UP.multiply(x.error, _SLOPE_NEAR_0))


def _sine(x: Real, quarters_later: int) -> Real | int:
    """By the Taylor series of the sine or the cosine, around the nearest multiple of pi / 2."""
    if x.value.copy_abs() > _MAX_ANGLE or x.error > 1:
        raise CalculatorError("The angle is too large to be known exactly enough.")
    quarters = _WIDE.divide(x.value, _HALF_PI).to_integral_value(ROUND_HALF_EVEN)
    rest = _WIDE.subtract(x.value, _WIDE.multiply(quarters, _HALF_PI))
    error = _UP.add(x.error, _UP.multiply(_UP.abs(quarters), _HALF_PI_ERROR))
    quarter = int(quarters) + quarters_later
    square = _WIDE.multiply(rest, rest).copy_negate()
    term, n = (_ONE, 1) if quarter % 2 else (rest, 2)
    total = term
    while term and term.adjusted() > total.adjusted() - _WIDE.prec:
        term = _WIDE.divide(_WIDE.multiply(term, square), Decimal(n * (n + 1)))
        total = _WIDE.add(total, term)
        n += 2
    return rounded(total if quarter % 4 < 2 else total.copy_negate(), error)


def _atan(x: Decimal) -> Decimal:
    """Of a number from 0 to 1: halved twice, as atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))), and then its series."""
    for _ in range(2):
        x = _WIDE.divide(x, _WIDE.add(_ONE, _WIDE.sqrt(_WIDE.add(_ONE, _WIDE.multiply(x, x)))))
    square = _WIDE.multiply(x, x).copy_negate()
    total = power = x
    n = 3
    while power and power.adjusted() > total.adjusted() - _WIDE.prec:
        power = _WIDE.multiply(power, square)
        total = _WIDE.add(total, _WIDE.divide(power, Decimal(n)))
        n += 2
    return _WIDE.multiply(total, Decimal(4))
