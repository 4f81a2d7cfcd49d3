"""The functions and constants of the calculator, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key, reduce

from agentrl.tools import calculator_work as work
from agentrl.tools import trigonometry
from agentrl.tools.arithmetic import (
    Number,
    absolute,
    add,
    checked,
    compare,
    divide,
    exp,
    floor,
    ln,
    modulo,
    multiply,
    num_bits,
    power,
    sign,
    square_root,
)
from agentrl.tools.calculator_bounds import MAX_BITS, CalculatorError, refuse_large
from agentrl.tools.real import Real
from agentrl.tools.trigonometry import PI

_TAU = multiply(2, PI)
CONSTANTS: dict[str, Number] = {"pi": PI, "e": exp(1), "tau": _TAU, "π": PI, "τ": _TAU}

MAX_PLACES = 100
"""Largest number of digits that `round` takes, before or after the point."""


@dataclass(frozen=True, slots=True)
class MathFunction:
    """A function with the number of arguments it takes."""

    compute: Callable[..., Number]
    work: work.Estimate
    """Estimate of what it costs for these arguments, in units of the budget."""
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


def _cube_root(value: Number) -> Number:
    root = power(absolute(value), Fraction(1, 3))
    return -root if sign(value) < 0 else root


def _log(value: Number, base: Number | None = None) -> Number:
    """Natural without a base; exact where the result is rational with a small denominator."""
    if sign(value) <= 0:
        raise CalculatorError("A logarithm needs a number greater than 0.")
    if base is None:
        return ln(value)
    if sign(base) <= 0 or base == 1:
        raise CalculatorError("The base of a logarithm must be greater than 0 and not 1.")
    quotient = divide(ln(value), ln(base))
    if isinstance(value, Real) or isinstance(base, Real):
        return quotient
    ratio = Fraction(quotient.value if isinstance(quotient, Real) else quotient).limit_denominator(100)
    longest = max(num_bits(base) * abs(ratio.numerator), num_bits(value) * ratio.denominator)
    if longest <= 2 * MAX_BITS and Fraction(base) ** ratio.numerator == Fraction(value) ** ratio.denominator:
        return checked(ratio)
    return quotient


def _floor(value: Number) -> Number:
    return floor(value)


def _ceil(value: Number) -> Number:
    return -floor(-value)


def _rounded(value: Number, digits: Number = 0) -> Number:
    """Half goes away from zero, as people round."""
    places = _whole("round", digits)
    if abs(places) > MAX_PLACES:
        raise CalculatorError(f"The number of digits of round is too large: at most {MAX_PLACES}.")
    scale = Fraction(10) ** places
    steps = floor(add(multiply(absolute(value), scale), Fraction(1, 2)))
    result = checked(steps / scale)
    return -result if sign(value) < 0 else result


def _whole(name: str, value: Number) -> int:
    if not isinstance(value, int):
        raise CalculatorError(f"{name} needs whole numbers.")
    return value


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
        # Both are within the limit, so that this is at most twice as long.
        result = _whole("lcm", checked(math.lcm(result, _whole("lcm", value))))
    return result


def _sum(*values: Number) -> Number:
    return reduce(add, values)


def _mean(*values: Number) -> Number:
    return divide(_sum(*values), len(values))


def _min(*values: Number) -> Number:
    return reduce(lambda least, value: value if compare(value, least) < 0 else least, values)


def _max(*values: Number) -> Number:
    return reduce(lambda most, value: value if compare(value, most) > 0 else most, values)


def _median(*values: Number) -> Number:
    ordered = sorted(values, key=cmp_to_key(compare))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else _mean(ordered[middle - 1], ordered[middle])


def _hypotenuse(*values: Number) -> Number:
    return square_root(_sum(*(multiply(value, value) for value in values)))


def _table() -> dict[str, MathFunction]:
    one: dict[str, tuple[Callable[..., Number], float]] = {
        "sin": (trigonometry.sin, 80),
        "cos": (trigonometry.cos, 80),
        "tan": (trigonometry.tan, 170),
        "asin": (trigonometry.asin, 300),
        "acos": (trigonometry.acos, 300),
        "atan": (trigonometry.atan, 170),
        "sinh": (trigonometry.sinh, 160),
        "cosh": (trigonometry.cosh, 130),
        "tanh": (trigonometry.tanh, 260),
        "asinh": (trigonometry.asinh, 300),
        "acosh": (trigonometry.acosh, 350),
        "atanh": (trigonometry.atanh, 200),
        "exp": (exp, 55),
        "ln": (_log, 200),
        "log2": (lambda x: _log(x, 2), 450),
        "log10": (lambda x: _log(x, 10), 450),
        "sqrt": (square_root, 30),
        "cbrt": (_cube_root, 300),
        "abs": (absolute, 2),
        "floor": (_floor, 10),
        "ceil": (_ceil, 10),
        "degrees": (lambda x: divide(multiply(x, 180), PI), 30),
        "radians": (lambda x: divide(multiply(x, PI), 180), 30),
    }
    any_number: dict[str, tuple[Callable[..., Number], work.Estimate]] = {
        "gcd": (_gcd, work.each(1)),
        "lcm": (_lcm, work.each(1)),
        "min": (_min, work.compared(1)),
        "max": (_max, work.compared(1)),
        "sum": (_sum, work.each(10)),
        "mean": (_mean, work.each(10)),
        "median": (_median, work.compared(8)),  # sorting 200 numbers takes up to log2(200) comparisons for each
        "hypot": (_hypotenuse, work.each(30)),
    }
    table = {name: MathFunction(compute, work.each(base)) for name, (compute, base) in one.items()}
    table |= {name: MathFunction(compute, estimate, 1, None) for name, (compute, estimate) in any_number.items()}
    return table | {
        "atan2": MathFunction(trigonometry.atan2, work.each(110), 2, 2),
        "comb": MathFunction(_combinations, work.counting, 2, 2),
        "factorial": MathFunction(factorial, work.counting),
        "log": MathFunction(_log, work.each(300), 1, 2),
        "mod": MathFunction(modulo, work.each(20), 2, 2),
        "perm": MathFunction(_permutations, work.counting, 1, 2),
        "round": MathFunction(_rounded, work.each(20), 1, 2),
    }


FUNCTIONS = _table()
