"""Functions of the calculator: exact values, the math module, and their domains; more in test_calculator_precision."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools.arithmetic import Exact
from agentrl.tools.calculator import calculate, evaluate
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS
from agentrl.tools.real import Real


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sqrt(16)", 4),
        ("sqrt(1/4)", Fraction(1, 2)),
        ("cbrt(-27)", -3),
        ("cbrt(8/125)", Fraction(2, 5)),
        ("abs(-1/2)", Fraction(1, 2)),
        ("floor(-7/2)", -4),
        ("ceil(-7/2)", -3),
        ("ceil(4)", 4),
        ("floor(-4)", -4),
        ("floor(exp(ln(5)))", 5),
        ("floor(-pi)", -4),
        ("ceil(-pi)", -3),
        ("round(pi, 2)", Fraction(314, 100)),
        ("round(-sqrt(2), 1)", Fraction(-14, 10)),
        ("round(2.5)", 3),
        ("round(-2.5)", -3),
        ("round(2.675, 2)", Fraction(268, 100)),  # the literal is exact, so half is half
        ("round(1250, -2)", 1300),
        ("round(10/3, 3)", Fraction(3333, 1000)),
        ("log(1000, 10)", 3),
        ("log(1/8, 2)", -3),
        ("log(8, 1/2)", -3),
        ("log10(10^3000)", 3000),
        ("log(8, 4)", Fraction(3, 2)),
        ("log(1/3, 27)", Fraction(-1, 3)),
        ("log(1, 7)", 0),
        ("ln(1)", 0),
        ("exp(0)", 1),
        ("cos(0)", 1),
        ("cosh(0)", 1),
        ("acosh(1)", 0),
        ("atan2(0, 0)", 0),
        ("tanh(-100)", -1),  # to 50 digits
        ("degrees(pi)", 180),
        ("hypot(sqrt(2), sqrt(2))", 2),
        ("min(2, 2)", 2),
        ("max(1, sqrt(2)^2, 3/2)", 2),
        ("log2(2^9999)", 9999),
        ("gcd(12, 18, 27)", 3),
        ("lcm(4, 6, 10)", 60),
        ("lcm(4, 0)", 0),
        ("factorial(20)", 2432902008176640000),
        ("0!", 1),
        ("comb(52, 5)", 2598960),
        ("comb(3, 5)", 0),
        ("comb(10^100, 2)", 10**100 * (10**100 - 1) // 2),
        ("comb(10^100, 10^100 - 1)", 10**100),
        ("perm(5, 2)", 20),
        ("perm(5)", 120),
        ("perm(3, 5)", 0),
        ("min(3, 1/2, 2)", Fraction(1, 2)),
        ("sum(1, 2, 1/2)", Fraction(7, 2)),
        ("mean(1, 2, 4)", Fraction(7, 3)),
        ("median(3, 1, 2)", 2),
        ("median(3, 1, 2, 10)", Fraction(5, 2)),
        ("hypot(3, 4)", 5),
        ("hypot(2, 3, 6)", 7),
        ("mod(-7, 3)", 2),
        ("mod(7.5, 2)", Fraction(3, 2)),
        ("sin(pi)", 0),
        ("cos(pi/2)", 0),
        ("tan(100*pi)", 0),
        ("factorial(sqrt(2)^2 + 1)", 6),  # 2, which only its rounding keeps from being whole
    ],
)
def test_exact_values(text: str, value: Exact) -> None:
    result = calculate(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("max(3, pi)", math.pi),
        ("min(pi, e, 3)", math.e),
        ("median(sqrt(2), 1, sqrt(3), 3/2)", (math.sqrt(2) + 1.5) / 2),
        ("mean(pi, 1)", (math.pi + 1) / 2),
        ("sum(pi, e, 1)", math.pi + math.e + 1),
        ("hypot(1, 1)", math.sqrt(2)),
        ("abs(-pi)", math.pi),
        ("mod(-pi, 2)", -math.pi % 2),
        ("cbrt(-2)", -(2 ** (1 / 3))),
        ("atan2(-1, -1)", -3 * math.pi / 4),
        ("atan2(1, -1)", 3 * math.pi / 4),
        ("atan2(0, -1)", math.pi),
        ("atan2(-2, 0)", -math.pi / 2),
        ("asin(-1)", -math.pi / 2),
        ("acos(-1)", math.pi),
        ("acos(0)", math.pi / 2),
        ("asinh(-3)", math.asinh(-3)),
        ("tanh(25)", 1.0),  # 1 - 4e-22
    ],
)
def test_rounded_values(text: str, value: float) -> None:
    result = calculate(text)
    assert isinstance(result, Real)
    assert float(result) == pytest.approx(value, rel=1e-15)


def test_logarithms_that_are_nearly_rational() -> None:
    assert float(calculate("log(2^5000 + 1, 2)")) == 5000
    assert isinstance(calculate("log(2^999 + 1, 2)"), int), "2^-999 is beyond 50 digits"
    # The quotient is whole as far as floats can tell, but it is not: 10^15 ln(2) / (1 - 10^-15 / 2 + ...)
    assert float(calculate("log(2, 1 + 1/10^15)")) == pytest.approx(1e15 * math.log(2) + math.log(2) / 2, rel=1e-15)
    assert evaluate("log(2, 1 + 1/10^400)") == "6.93147180560e+399".replace("0e", "e")


@given(st.integers(0, 60), st.integers(0, 60))
def test_counting_functions_agree_with_the_math_module(n: int, k: int) -> None:
    assert FUNCTIONS["factorial"].compute(n) == math.factorial(n)
    assert FUNCTIONS["comb"].compute(n, k) == math.comb(n, k)
    assert FUNCTIONS["perm"].compute(n, k) == math.perm(n, k)


@pytest.mark.parametrize(
    "text",
    [
        "factorial(10^7)",
        "factorial(10^3000)",
        "factorial(1300)",
        "comb(10^6, 5*10^5)",
        "comb(10^3000, 10^2999)",
        "perm(10^3000, 10)",
        "perm(10^6, 10^6)",
        "perm(10^3000)",
        "lcm(2^6000, 3^6000)",
        "round(1/3, 101)",
        "exp(7000)",
        "exp(10^9)",
        "cosh(-10^9)",
        "sin(10^400)",
        "tan(10^26)",
    ],
)
def test_large_results_are_refused_without_being_computed(text: str) -> None:
    with pytest.raises(CalculatorError, match="too large"):
        calculate(text)


def test_the_largest_factorial_that_fits() -> None:
    # log2(1141!) = 9946.7 <= 10,000 < 10,007.1 = log2(1147!)
    assert calculate("1141!") == math.factorial(1141)
    with pytest.raises(CalculatorError, match="too large"):
        calculate("1147!")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqrt(-1)", "A negative number has no real square root."),
        ("√(-1/2)", "A negative number has no real square root."),
        ("ln(0)", "A logarithm needs a number greater than 0."),
        ("log(-1, 2)", "A logarithm needs a number greater than 0."),
        ("log(2, 1)", "The base of a logarithm must be greater than 0 and not 1."),
        ("log(2, -2)", "The base of a logarithm must be greater than 0 and not 1."),
        ("asin(2)", "asin is not defined for this value."),
        ("atanh(1)", "atanh is not defined for this value."),
        ("tan(pi/2)", "tan is not defined for this value."),
        ("acos(-1.1)", "acos is not defined for this value."),
        ("atanh(-2)", "atanh is not defined for this value."),
        ("acosh(1/2)", "acosh is not defined for this value."),
        ("exp(-10^9)", "The result is too close to 0: less than 10^-3,010."),
        ("cos(10^300)", "The angle is too large to be known exactly enough."),
        ("cos(10^60 * pi)", "The angle is too large to be known exactly enough."),
        ("round(1, -101)", "The number of digits of round is too large: at most 100."),
        ("round(1, 234)", "The number of digits of round is too large: at most 100."),
        ("log(2, sqrt(2)^0)", "The base of a logarithm must be greater than 0 and not 1."),
        ("factorial(pi)", "factorial needs whole numbers."),
        ("factorial(1/2)", "factorial needs whole numbers."),
        ("factorial(-1)", "factorial needs a whole number of at least 0."),
        ("(-3)!", "factorial needs a whole number of at least 0."),
        ("comb(5.5, 2)", "comb needs whole numbers."),
        ("comb(-5, 2)", "comb needs whole numbers of at least 0."),
        ("gcd(1.5)", "gcd needs whole numbers."),
        ("round(1, 1/2)", "round needs whole numbers."),
        ("mod(1, 0)", "Division by zero."),
    ],
)
def test_domains(text: str, message: str) -> None:
    with pytest.raises(CalculatorError) as caught:
        calculate(text)
    assert str(caught.value) == message


def test_the_list_of_functions_and_constants() -> None:
    promised = """sqrt cbrt abs round floor ceil exp ln log log2 log10 sin cos tan asin acos atan atan2 sinh cosh tanh
    asinh acosh atanh degrees radians gcd lcm factorial comb perm min max sum mean median hypot mod"""
    assert set(FUNCTIONS) == set(promised.split())
    assert set(CONSTANTS) == {"pi", "e", "tau", "π", "τ"}


@pytest.mark.parametrize(
    ("name", "arity", "accepted"),
    [
        ("sin", "1 argument", {1}),
        ("comb", "2 arguments", {2}),
        ("log", "1 or 2 arguments", {1, 2}),
        ("max", "at least 1 argument", {1, 2, 3, 4}),
    ],
)
def test_numbers_of_arguments(name: str, arity: str, accepted: set[int]) -> None:
    assert FUNCTIONS[name].arity == arity
    assert {n for n in range(5) if FUNCTIONS[name].accepts(n)} == accepted
