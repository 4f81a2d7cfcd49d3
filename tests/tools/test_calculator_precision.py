"""The digits that the calculator claims are right: every function, and whole expressions, against mpmath."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from agentrl.tools import real
from agentrl.tools.arithmetic import Number
from agentrl.tools.calculator import calculate, evaluate
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS
from agentrl.tools.real import SMALL_ERROR, Real

DIGITS = 220


def exact(value: Fraction | Decimal | int) -> mpmath.mpf:
    """With more digits than any number of the calculator has."""
    number = Fraction(value)
    return mp.mpf(number.numerator) / number.denominator


def check(result: Number, true: mpmath.mpf) -> None:
    """The true value lies within the error of the result, and all 12 digits that are shown are right."""
    if isinstance(result, Real):
        distance = abs(exact(result.value) - true)
        assert distance <= exact(result.error)
        assert distance <= mp.mpf(10) ** (1 - result.num_digits) * abs(true) / 2 * (1 + mp.mpf("1e-9"))
    elif isinstance(result, int):
        assert abs(result - true) <= exact(SMALL_ERROR)
    else:
        assert abs(exact(result) - true) <= abs(true) * mp.mpf(10) ** (10 - DIGITS)


ANY = st.fractions(-1000, 1000, max_denominator=10**6) | st.integers(-(10**12), 10**12).map(Fraction)
NEAR_0 = st.builds(lambda n, k: Fraction(n, 10**k), st.integers(-9, 9), st.integers(1, 200))
POSITIVE = ANY.map(abs).filter(bool) | NEAR_0.map(abs).filter(bool) | NEAR_0.map(lambda x: 1 + abs(x) / 10)
UNIT = st.fractions(-1, 1, max_denominator=10**6) | NEAR_0.map(lambda x: 1 - abs(x) / 10) | NEAR_0.map(lambda x: x / 10)
DOMAINS: dict[str, st.SearchStrategy[Fraction]] = {
    **dict.fromkeys(("sin", "cos", "tan", "atan", "asinh", "tanh", "cbrt", "degrees", "radians"), ANY | NEAR_0),
    **dict.fromkeys(("sinh", "cosh", "exp"), st.fractions(-3000, 3000, max_denominator=10**6) | NEAR_0),
    **dict.fromkeys(("ln", "log10", "log2", "sqrt"), POSITIVE),
    **dict.fromkeys(("asin", "acos", "atanh"), UNIT),
    "acosh": POSITIVE.map(lambda x: x + 1),
}
MP_NAMES: dict[str, Callable[..., mpmath.mpf]] = {
    "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)),
    "log2": lambda x: mp.log(x, 2),
    "atan2": mp.atan2,
    "log": mp.log,
    "hypot": mp.hypot,
}


@given(st.data(), st.sampled_from(sorted(DOMAINS)))
@settings(max_examples=400)
def test_functions_of_one_number(data: st.DataObject, name: str) -> None:
    argument = data.draw(DOMAINS[name])
    try:
        result = FUNCTIONS[name].compute(argument.numerator if argument.denominator == 1 else argument)
    except CalculatorError:
        return  # which is not the usual case: see test_no_domain_is_empty
    with mp.workdps(2 * DIGITS):
        true = MP_NAMES.get(name, getattr(mp, name, None))(exact(argument))
        check(result, true)
        if true != 0 and isinstance(result, Real) and abs(argument) <= 1000:
            assert result.num_digits >= 30, "of 50: an exact argument costs few of them"


@given(st.sampled_from(["atan2", "log", "hypot"]), ANY | NEAR_0, ANY | NEAR_0)
def test_functions_of_two_numbers(name: str, x: Fraction, y: Fraction) -> None:
    try:
        result = FUNCTIONS[name].compute(x, y)
    except CalculatorError:
        return
    with mp.workdps(2 * DIGITS):
        check(result, MP_NAMES[name](exact(x), exact(y)))


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_no_domain_is_empty(name: str) -> None:
    """Refused arguments prove nothing above: a function that refuses everything would pass."""
    result = FUNCTIONS[name].compute(Fraction(16, 10) if name == "acosh" else Fraction(6, 10))
    with mp.workdps(DIGITS):
        argument = exact(Fraction(16, 10) if name == "acosh" else Fraction(6, 10))
        check(result, MP_NAMES.get(name, getattr(mp, name, None))(argument))


def test_constants() -> None:
    with mp.workdps(DIGITS):
        for name, true in (("pi", mp.pi), ("π", mp.pi), ("tau", 2 * mp.pi), ("τ", 2 * mp.pi), ("e", mp.e)):
            result = CONSTANTS[name]
            assert isinstance(result, Real)
            check(result, +true)
            assert result.num_digits >= 48
        assert abs(exact(real.PI) - mp.pi) < mp.mpf("1e-97")  # what angles are reduced with


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("ln", 1 + Fraction(sign * 9, 10**k)) for sign in (-1, 1) for k in (12, 17, 18, 20, 24)),
        *((name, Fraction(9, 10**k)) for name in ("sinh", "asinh", "atanh", "tanh") for k in (4, 9, 10, 12)),
        *(("tanh", Fraction(x)) for x in (-19, 25, 40, 59, 61)),
    ],
)
def test_where_one_formula_ends_and_the_next_begins(name: str, argument: Fraction) -> None:
    with mp.workdps(DIGITS):
        check(FUNCTIONS[name].compute(argument), getattr(mp, name)(exact(argument)))


@pytest.mark.parametrize("name", ["sinh", "asinh", "atanh", "tanh"])
def test_where_the_second_term_is_about_as_large_as_the_rounding(name: str) -> None:
    """tanh x = x - x^3 / 3: at 5e-25 the second term is 4e-74, and the last of 50 digits of x is 1e-74."""
    with mp.workdps(DIGITS):
        for n in range(1, 100):
            for k in (24, 25, 26, 27):
                argument = Fraction(n, 10**k)
                check(FUNCTIONS[name].compute(argument), getattr(mp, name)(exact(argument)))


def test_logarithms_where_the_second_term_is_about_as_large_as_the_rounding() -> None:
    """ln(1 + x) = x - x^2 / 2."""
    with mp.workdps(DIGITS):
        for n in range(-99, 100):
            for k in (48, 49, 50, 51):
                argument = 1 + Fraction(n, 10**k)
                check(FUNCTIONS["ln"].compute(argument), mp.log(exact(argument)))


def test_angles_close_to_multiples_of_pi() -> None:
    """There the sine is as small as it gets, and its digits are those that reduction of the angle leaves."""
    with mp.workdps(DIGITS):
        rest, (before, numerator) = +mp.pi, (1, 3)  # numerators of the continued fraction of pi: 3, 22, 333, 355, ...
        while numerator < 10**24:
            check(FUNCTIONS["sin"].compute(numerator), mp.sin(numerator))
            check(FUNCTIONS["cos"].compute(Fraction(numerator, 2)), mp.cos(mp.mpf(numerator) / 2))
            rest = 1 / (rest - mp.floor(rest))
            before, numerator = numerator, int(mp.floor(rest)) * numerator + before


Tree = tuple[str, Callable[[], mpmath.mpf]]


def leaf(value: Fraction) -> Tree:
    return f"({value.numerator}/{value.denominator})", lambda: exact(value)


def apply(name: str, tree: Tree) -> Tree:
    text, true = tree
    return f"{name}({text})", lambda: getattr(mp, name)(true())


def combine(left: Tree, symbol: str, right: Tree) -> Tree:
    compute: dict[str, Callable[[mpmath.mpf, mpmath.mpf], mpmath.mpf]] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x / y,
        "^": lambda x, y: x**y,
    }
    return f"({left[0]}) {symbol} ({right[0]})", lambda: compute[symbol](left[1](), right[1]())


UNARY = ["sqrt", "exp", "ln", "sin", "cos", "tan", "atan", "asin", "acos", "sinh", "tanh", "asinh", "atanh", "cosh"]
trees = st.recursive(
    st.fractions(-20, 20, max_denominator=50).map(leaf)
    | st.sampled_from([("pi", lambda: +mp.pi), ("e", lambda: +mp.e)]),
    lambda inner: st.one_of(
        st.builds(apply, st.sampled_from(UNARY), inner), st.builds(combine, inner, st.sampled_from("+-*/^"), inner)
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=250)
def test_the_true_value_of_an_expression_lies_within_the_error(tree: Tree) -> None:
    text, true = tree
    try:
        result = calculate(text)
    except CalculatorError:
        return
    assert not isinstance(result, bool)
    with mp.workdps(DIGITS):
        check(result, true())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # Ramanujan's constant is 262537412640768743.99999999999925007...: 30 digits are lost, 12 are still right.
        ("e^(pi*sqrt(163)) - 262537412640768744", "-7.49927402802e-13"),
        ("10^40 + sqrt(2) - 10^40", "1.41421356"),  # 50 digits, of which 41 are before the point
        ("sqrt(2)^2 - 2", "0"),
        ("sin(10^22)", "-0.852200849767"),  # the test of argument reduction: a careless one has no right digit
        ("acos(1 - 10^-98)", "1.41421356237e-49"),  # sqrt(2 * 10^-98)
        ("ln(1 + 10^-300) * 10^300", "1"),
        ("sinh(10^-60)", "1e-60"),
        ("(1 + 0.05/365)^3650", "1.64866481377"),
        ("1/3^2080 * 3^2080", "1"),
    ],
)
def test_where_others_lose_digits(text: str, shown: str) -> None:
    assert evaluate(text) == shown


def test_the_precision_that_a_program_sets_for_its_own_decimals_has_no_influence() -> None:
    texts = ("sin(1) + cos(1)^atan(3)", "acosh(7) - ln(2/3)", "floor(-pi * 10^20)", "-1/7^80", "1e-995 * pi", "1/3")
    usual = [(calculate(text), evaluate(text)) for text in texts]
    with localcontext() as context:
        context.prec = 3
        assert [(calculate(text), evaluate(text)) for text in texts] == usual
