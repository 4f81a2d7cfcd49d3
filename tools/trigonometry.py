"""Trigonometric and hyperbolic functions, from the few that `real` computes, without loss of digits near 0 and 1."""

from fractions import Fraction

from agentrl.tools import real
from agentrl.tools.arithmetic import (
    Number,
    absolute,
    add,
    compare,
    divide,
    exp,
    ln,
    multiply,
    sign,
    square_root,
    subtract,
    to_real,
)
from agentrl.tools.calculator_bounds import CalculatorError

PI: Number = real.rounded(real.PI)


def sin(angle: Number) -> Number:
    """The sine of an angle in radians."""
    return real.sin(to_real(angle))


def cos(angle: Number) -> Number:
    """The cosine of an angle in radians."""
    return real.cos(to_real(angle))


def tan(angle: Number) -> Number:
    """The tangent, where the cosine is not 0."""
    cosine = cos(angle)
    if cosine == 0:
        raise CalculatorError("tan is not defined for this value.")
    return divide(sin(angle), cosine)


def atan(value: Number) -> Number:
    """The arc tangent, from -pi / 2 to pi / 2."""
    return real.atan(to_real(value))


def atan2(y: Number, x: Number) -> Number:
    """The angle of the point (x, y), from -pi to pi; 0 for the origin."""
    if sign(x) == 0:
        return multiply(Fraction(sign(y), 2), PI)
    angle = atan(divide(y, x))
    if sign(x) > 0:
        return angle
    return subtract(angle, PI) if sign(y) < 0 else add(angle, PI)


def asin(value: Number) -> Number:
    """The arc sine of a number from -1 to 1, from -pi / 2 to pi / 2."""
    return atan2(value, _other_leg("asin", value))


def acos(value: Number) -> Number:
    """The arc cosine of a number from -1 to 1, from 0 to pi."""
    return atan2(_other_leg("acos", value), value)


def _other_leg(name: str, value: Number) -> Number:
    """sqrt(1 - x^2)."""
    if compare(absolute(value), 1) > 0:
        raise CalculatorError(f"{name} is not defined for this value.")
    return square_root(multiply(subtract(1, value), add(1, value)))


def _odd(value: Number, third: Fraction, fifth: Fraction) -> Number | None:
    """The series x + a x^3 + b x^5, for a number so close to 0 that no digit is missing; None for others."""
    if compare(absolute(value), Fraction(1, 10**9)) > 0:
        return None
    return real.series(to_real(value), (third, fifth), step=2)


def sinh(value: Number) -> Number:
    """The hyperbolic sine, (e^x - e^-x) / 2."""
    small = _odd(value, Fraction(1, 6), Fraction(1, 120))
    if small is not None:
        return small
    size = absolute(value)
    result = divide(subtract(exp(size), exp(-size)), 2)
    return -result if sign(value) < 0 else result


def cosh(value: Number) -> Number:
    """The hyperbolic cosine, (e^x + e^-x) / 2."""
    size = absolute(value)
    return divide(add(exp(size), exp(-size)), 2)


def tanh(value: Number) -> Number:
    """The hyperbolic tangent, sinh(x) / cosh(x)."""
    small = _odd(value, Fraction(-1, 3), Fraction(2, 15))
    if small is not None:
        return small
    if compare(absolute(value), 60) > 0:
        return sign(value)  # 1 - tanh(60) = 1.5e-52
    return divide(sinh(value), cosh(value))


def asinh(value: Number) -> Number:
    """The inverse of the hyperbolic sine, ln(x + sqrt(x^2 + 1))."""
    small = _odd(value, Fraction(-1, 6), Fraction(3, 40))
    if small is not None:
        return small
    size = absolute(value)
    result = ln(add(size, square_root(add(1, multiply(value, value)))))
    return -result if sign(value) < 0 else result


def acosh(value: Number) -> Number:
    """The inverse of the hyperbolic cosine, for numbers of at least 1."""
    if compare(value, 1) < 0:
        raise CalculatorError("acosh is not defined for this value.")
    return asinh(square_root(multiply(subtract(value, 1), add(value, 1))))


def atanh(value: Number) -> Number:
    """The inverse of the hyperbolic tangent, ln((1 + x) / (1 - x)) / 2, for numbers between -1 and 1."""
    if compare(absolute(value), 1) >= 0:
        raise CalculatorError("atanh is not defined for this value.")
    small = _odd(value, Fraction(1, 3), Fraction(1, 5))
    return small if small is not None else divide(ln(divide(add(1, value), subtract(1, value))), 2)
