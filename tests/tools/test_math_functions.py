"""Functions of the calculator against the math module, exact identities, and their domains."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools.arithmetic import CalculatorError, Number
from agentrl.tools.calculator import calculate
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS


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
        ("floor(exp(ln(5)))", 5),  # 4.999999999999999 as a float
        ("round(2.5)", 3),
        ("round(-2.5)", -3),
        ("round(2.675, 2)", Fraction(268, 100)),  # the literal is exact, so half is half
        ("round(1250, -2)", 1300),
        ("round(10/3, 3)", Fraction(3333, 1000)),
        ("log(1000, 10)", 3),
        ("log(1/8, 2)", -3),
        ("log(8, 1/2)", -3),
        ("log10(10^3000)", 3000),
        ("log(2^5000 + 1, 2)", 5000.0),  # close to a whole number, not equal to one
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
        ("max(3, pi)", math.pi),
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
        ("tan(100*pi)", 0.0),
        ("factorial(sqrt(2)^2 + 1)", 6),  # a float within its rounding of 3
    ],
)
def test_exact_values(text: str, value: Number) -> None:
    result = calculate(text)
    assert result == value
    assert type(result) is type(value)


SAME_AS_MATH: dict[str, Callable[[float], float]] = {
    name: getattr(math, name)
    for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "atanh", "exp")
} | {"degrees": math.degrees, "radians": math.radians, "sqrt": lambda x: math.sqrt(abs(x))}


@given(st.sampled_from(sorted(SAME_AS_MATH)), st.floats(-0.99, 0.99))
def test_real_functions_are_those_of_the_math_module(name: str, x: float) -> None:
    argument = abs(x) if name == "sqrt" else x
    result = FUNCTIONS[name].compute(argument)
    # An argument has a rounding of its own, so that a result below it may be taken for zero.
    assert result == pytest.approx(SAME_AS_MATH[name](x), rel=1e-14, abs=math.ulp(x))


@given(st.floats(1e-300, 1e300), st.floats(1.01, 1e6))
def test_logarithms_agree_with_the_math_module(x: float, base: float) -> None:
    assert FUNCTIONS["ln"].compute(x) == pytest.approx(math.log(x), rel=1e-14, abs=1e-300)
    expected = math.log(x) / math.log(base)
    assert FUNCTIONS["log"].compute(x, base) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_logarithms_beyond_the_range_and_the_resolution_of_floats() -> None:
    assert calculate("ln(10^3000)") == pytest.approx(3000 * math.log(10), rel=1e-14)
    assert calculate("ln(1/10^3000)") == pytest.approx(-3000 * math.log(10), rel=1e-14)
    # The quotient is whole as far as floats can tell, but the power that would prove it is too large to compute.
    assert calculate("log(2, 1 + 1/10^15)") == pytest.approx(1e15 * math.log(2), rel=1e-14)
    # ln(1 + x) = x - x^2 / 2 + ..., where 1 + x is 1.0 as a float
    assert calculate("ln(1 + 1/10^30)") == pytest.approx(1e-30, rel=1e-14, abs=0)


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
        "round(1/3, 10^7)",
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
        ("exp(1000)", "The result of exp is too large."),
        ("degrees(10^308)", "The result is too large for a decimal number."),
        ("sin(10^300)", "The angle is too large to be known exactly enough."),
        ("cos(10^400)", "A number is too large for this function (limit 1.8e308)."),
        ("factorial(1/2)", "factorial needs whole numbers."),
        ("factorial(-1)", "factorial needs a whole number of at least 0."),
        ("(-3)!", "factorial needs a whole number of at least 0."),
        ("comb(5.5, 2)", "comb needs whole numbers."),
        ("comb(-5, 2)", "comb needs whole numbers of at least 0."),
        ("gcd(1.5)", "gcd needs whole numbers."),
        ("round(1, 1/2)", "round needs whole numbers."),
        ("mod(1, 0)", "Division by zero."),
        ("log(2, 1 + 1/10^400)", "Division by zero."),  # a base that is 1 as far as floats can tell
    ],
)
def test_domains(text: str, message: str) -> None:
    with pytest.raises(CalculatorError) as caught:
        calculate(text)
    assert str(caught.value) == message


def test_angles_that_floats_hold_exactly_may_be_large() -> None:
    assert calculate("sin(10^15)") == math.sin(1e15)


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
