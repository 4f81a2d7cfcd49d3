"""Estimates of what operations cost, from the lengths of their operands, in units of the budget.

They are upper bounds rather than means: an expression within `calculator_bounds.MAX_WORK` is done in milliseconds.
`benchmarks/calculator.py` looks for the ones that take longest.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agentrl.tools.arithmetic import Number, num_bits
from agentrl.tools.calculator_bounds import MAX_BITS, MAX_FRACTION_BITS
from agentrl.tools.real import Real

Estimate: TypeAlias = Callable[[Sequence[Number]], float]
"""What a function costs for given arguments."""

_ROUNDED = 15.0
"""Any operation on rounded numbers of 50 digits."""
_TRANSCENDENTAL = 250.0
"""A logarithm, a product and an exponential."""
_MAX_FRACTION_WORK = 500.0
"""An operation on the longest fractions, and rounding the result."""


def of_operator(symbol: str, left: Number, right: Number) -> float:
    """Of one of + - * / // % ^ or a comparison."""
    if symbol == "^":
        return _of_power(left, right)
    if isinstance(left, int) and isinstance(right, int) and symbol != "/":
        return 1 + _quadratic(_longest(left, right), 600)
    return _of_pair(left, right) * (2 if symbol in ("//", "%") else 1)


def each(base: float) -> Estimate:
    """Of a function that handles its arguments one after the other, each on top of what came of those before."""

    def estimate(arguments: Sequence[Number]) -> float:
        bits = min(sum(map(_bits, arguments)), MAX_BITS)
        return len(arguments) * (base + min(_quadratic(bits, 220), _MAX_FRACTION_WORK))

    return estimate


def compared(times: int) -> Estimate:
    """Of a function that compares each argument so often with another."""

    def estimate(arguments: Sequence[Number]) -> float:
        longest = max(arguments, key=_bits)
        per_pair = max(_of_pair(longest, argument) for argument in arguments)
        return len(arguments) * times * per_pair

    return estimate


def counting(arguments: Sequence[Number]) -> float:
    """Of factorials, combinations and permutations, which multiply and divide step by step."""
    whole = [argument for argument in arguments if isinstance(argument, int)]
    steps = min(abs(whole[-1]), abs(whole[0] - whole[-1])) if len(whole) == 2 else 100
    return 10 + min(steps, MAX_BITS) * 1.4 + _quadratic(_longest(*arguments), 500)


def _of_pair(left: Number, right: Number) -> float:
    if isinstance(left, Real) or isinstance(right, Real):
        return _ROUNDED + _quadratic(_longest(left, right), 500)
    return 3 + min(_quadratic(_longest(left, right), 220), _MAX_FRACTION_WORK)


def _of_power(base: Number, exponent: Number) -> float:
    if isinstance(exponent, int) and not isinstance(base, Real):
        bits = num_bits(base) * min(abs(exponent), MAX_BITS)
        if isinstance(base, int) and exponent >= 0:
            return 3 + _quadratic(min(bits, 2 * MAX_BITS), 1500)
        if bits <= MAX_FRACTION_BITS:
            return 3 + _quadratic(bits, 220)
    return _TRANSCENDENTAL + min(_quadratic(_longest(base, exponent), 220), 2 * _MAX_FRACTION_WORK)


def _longest(*values: Number) -> int:
    return max(map(_bits, values))


def _bits(value: Number) -> int:
    return 0 if isinstance(value, Real) else num_bits(value)


def _quadratic(bits: int, bits_per_unit: int) -> float:
    return (bits / bits_per_unit) ** 2
