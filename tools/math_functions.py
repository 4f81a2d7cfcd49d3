"""The functions and constants of the calculator, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agentrl.tools import arithmetic
from agentrl.tools.arithmetic import MAX_BITS, CalculatorError, Number, checked, refuse_large, snap, to_float

CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau, "π": math.pi, "τ": math.tau}

MAX_ANGLE_ULP = 1e-6
"""Rounding of an angle in radians beyond which sine and cosine refuse: their result would be noise."""


@dataclass(frozen=True, slots=True)
class MathFunction:
    """A function with the number of arguments it takes."""

    compute: Callable[..., Number]
    min_arguments: int = 1
    max_arguments: int | None = 1
    """None: any number."""

    def accepts(self, num_arguments: int) -> bool:
        """Whether it takes so many arguments."""
        return self.min_arguments <= num_arguments and (
            self.max_arguments is None or num_arguments <= self.max_arguments
        )

    @property
    def arity(self) -> str:
        """In words, for error messages."""
        if self.max_arguments is None:
            return f"at least {self.min_arguments} argument" + "s" * (self.min_arguments != 1)
        if self.min_arguments == self.max_arguments:
            return f"{self.min_arguments} argument" + "s" * (self.min_arguments != 1)
        return f"{self.min_arguments} or {self.max_arguments} arguments"


def _real(name: str, compute: Callable[..., float]) -> Callable[..., Number]:
    """A function of the math module, with errors in words."""

    def wrapped(*values: Number) -> Number:
        try:
            return checked(compute(*map(to_float, values)))
        except OverflowError:
            raise CalculatorError(f"The result of {name} is too large.") from None
        except ValueError:
            raise CalculatorError(f"{name} is not defined for this value.") from None

    return wrapped


def _periodic(compute: Callable[[float], float]) -> Callable[[Number], Number]:
    """The sine or cosine. A result that the rounding of the argument alone explains is zero: sin(pi) is 0."""

    def wrapped(value: Number) -> Number:
        x = to_float(value)
        uncertainty = 0.0 if not isinstance(value, float) and x == value else math.ulp(x)
        if uncertainty > MAX_ANGLE_ULP:
            raise CalculatorError("The angle is too large to be known exactly enough.")
        result = compute(x)
        return 0 if abs(result) <= uncertainty else result

    return wrapped


_sin = _periodic(math.sin)
_cos = _periodic(math.cos)


def _tan(value: Number) -> Number:
    if _cos(value) == 0:
        raise CalculatorError("tan is not defined for this value.")
    return arithmetic.divide(_sin(value), _cos(value))


def square_root(value: Number) -> Number:
    """The square root, exact where it is rational."""
    if value < 0:
        raise CalculatorError("A negative number has no real square root.")
    return arithmetic.power(value, Fraction(1, 2))


def _cube_root(value: Number) -> Number:
    root = arithmetic.power(arithmetic.absolute(value), Fraction(1, 3))
    return -root if value < 0 else root


def _log(value: Number, base: Number | None = None) -> Number:
    """Natural without a base; exact where the result is a whole number."""
    if value <= 0:
        raise CalculatorError("A logarithm needs a number greater than 0.")
    if base is None:
        return _ln(value)
    if base <= 0 or base == 1:
        raise CalculatorError("The base of a logarithm must be greater than 0 and not 1.")
    quotient = to_float(arithmetic.divide(_ln(value), _ln(base)))
    whole = round(quotient)
    if not isinstance(value, float) and not isinstance(base, float) and arithmetic.compare(quotient, whole) == 0:
        try:
            if arithmetic.power(base, whole) == value:
                return whole
        except CalculatorError:
            return quotient  # the check is too large, so it would have failed
    return quotient


def _ln(value: Number) -> float:
    if 0.5 < value < 2:
        return math.log1p(float(value - 1))  # `value - 1` is exact where the value is
    if isinstance(value, float):
        return math.log(value)
    return math.log(value.numerator) - math.log(value.denominator)  # integers of any size


def _rounded(value: Number, digits: Number = 0) -> Number:
    """Half goes away from zero, as people round."""
    places = _whole("round", digits)
    if abs(places) > MAX_BITS:
        refuse_large()
    scale = Fraction(10) ** places
    scaled = abs(Fraction(snap(value))) * scale
    result = Fraction(math.floor(scaled + Fraction(1, 2))) / scale
    return checked(-result if value < 0 else result)


def _whole(name: str, value: Number) -> int:
    exact = snap(value)
    if exact.denominator != 1:
        raise CalculatorError(f"{name} needs whole numbers.")
    return exact.numerator


def factorial(value: Number) -> Number:
    """n!, for whole numbers of at least 0."""
    n = _whole("factorial", value)
    if n < 0:
        raise CalculatorError("factorial needs a whole number of at least 0.")
    # log2(n!) by the gamma function; above MAX_BITS already 2 ** n <= n! is too large.
    if n > MAX_BITS or math.lgamma(n + 1) > MAX_BITS * math.log(2) + 1:
        refuse_large()
    return checked(math.factorial(n))


def _not_negative(name: str, *values: Number) -> list[int]:
    whole = [_whole(name, value) for value in values]
    if min(whole) < 0:
        raise CalculatorError(f"{name} needs whole numbers of at least 0.")
    return whole


def _combinations(total: Number, chosen: Number) -> Number:
    n, k = _not_negative("comb", total, chosen)
    k = min(k, n - k)
    if k <= 0:
        return int(k == 0)
    # (n / k) ** k <= comb(n, k), and n / k >= 2
    if k > MAX_BITS or k * (math.log2(n) - math.log2(k)) > MAX_BITS + 1:
        refuse_large()
    return checked(math.comb(n, k))


def _permutations(total: Number, chosen: Number | None = None) -> Number:
    if chosen is None:
        return factorial(total)
    n, k = _not_negative("perm", total, chosen)
    if k > n:
        return 0
    factorial(k)  # k! <= perm(n, k), so this refuses what is too large
    if k * math.log2(n - k + 1) > MAX_BITS + 1:  # (n - k + 1) ** k <= perm(n, k)
        refuse_large()
    return checked(math.perm(n, k))


def _gcd(*values: Number) -> Number:
    return math.gcd(*(_whole("gcd", value) for value in values))


def _lcm(*values: Number) -> Number:
    result = 1
    for value in values:
        result = int(checked(math.lcm(result, _whole("lcm", value))))
    return result


def _sum(*values: Number) -> Number:
    total: Number = 0
    for value in values:
        total = arithmetic.add(total, value)
    return total


def _mean(*values: Number) -> Number:
    return arithmetic.divide(_sum(*values), len(values))


def _median(*values: Number) -> Number:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else _mean(ordered[middle - 1], ordered[middle])


def _hypotenuse(*values: Number) -> Number:
    return square_root(_sum(*(arithmetic.multiply(value, value) for value in values)))


def _table() -> dict[str, MathFunction]:
    real = ("asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "degrees", "radians")
    functions: dict[str, Any] = {name: _real(name, getattr(math, name)) for name in real}
    functions |= {
        "sin": _sin,
        "cos": _cos,
        "tan": _tan,
        "sqrt": square_root,
        "cbrt": _cube_root,
        "abs": arithmetic.absolute,
    }
    functions |= {"floor": lambda x: math.floor(snap(x)), "ceil": lambda x: math.ceil(snap(x))}
    functions |= {"factorial": factorial, "ln": _log, "log2": lambda x: _log(x, 2), "log10": lambda x: _log(x, 10)}
    table = {name: MathFunction(compute) for name, compute in functions.items()}
    variadic: dict[str, Callable[..., Number]] = {
        **{"gcd": _gcd, "lcm": _lcm, "min": min, "max": max, "sum": _sum, "mean": _mean},
        **{"median": _median, "hypot": _hypotenuse},
    }
    table |= {name: MathFunction(compute, 1, None) for name, compute in variadic.items()}
    return table | {
        "atan2": MathFunction(_real("atan2", math.atan2), 2, 2),
        "comb": MathFunction(_combinations, 2, 2),
        "log": MathFunction(_log, 1, 2),
        "mod": MathFunction(arithmetic.modulo, 2, 2),
        "perm": MathFunction(_permutations, 1, 2),
        "round": MathFunction(_rounded, 1, 2),
    }


FUNCTIONS = _table()
