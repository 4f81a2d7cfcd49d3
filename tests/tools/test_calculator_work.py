"""An expression is paid for before it is computed, so that none takes long. Times are in benchmarks/calculator.py."""

import contextlib
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.tools import calculator_work as work
from agentrl.tools.arithmetic import Number, square_root
from agentrl.tools.calculator import calculate, evaluate
from agentrl.tools.calculator_bounds import MAX_BITS, MAX_FRACTION_BITS, MAX_WORK, Budget, CalculatorError
from agentrl.tools.math_functions import FUNCTIONS

TOO_LONG = "The expression takes too long to compute: split it into smaller steps."
LONG = 2**MAX_BITS - 1
LONG_FRACTION = Fraction(2**MAX_FRACTION_BITS - 1, 3**2000)
ROOT_2 = square_root(2)


def spent(text: str) -> float:
    """What is paid for until an expression ends or is refused."""
    budget = Budget()
    with contextlib.suppress(CalculatorError):
        calculate(text, budget)
    return budget.spent


def test_a_budget() -> None:
    budget = Budget(10)
    budget.spend(4)
    budget.spend(6)
    with pytest.raises(CalculatorError) as caught:
        budget.spend(0.5)
    assert str(caught.value) == TOO_LONG
    assert budget.spent == 10, "what is refused is not computed"


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("comb(10005,5000)", 3),
        ("log2(7!^300)", 24),
        ("acosh(3)", 60),
        ("cbrt(10^3009+1)", 19),
    ],
)
def test_too_much_of_what_is_cheap_alone_is_refused(text: str, times: int) -> None:
    evaluate(text)
    assert_refused("+".join([text] * times))


@pytest.mark.parametrize(
    ("name", "piece", "times"),
    [("median", "pi", 198), ("lcm", "3^6300", 49), ("gcd", "3^6300", 49), ("sum", "1/3^999", 39)],
)
def test_too_long_lists_are_refused(name: str, piece: str, times: int) -> None:
    assert_refused(f"{name}({','.join([piece] * times)})")
    evaluate(f"{name}({','.join([piece] * 5)})")


def assert_refused(text: str) -> None:
    with pytest.raises(CalculatorError) as caught:
        evaluate(text)
    assert str(caught.value) == TOO_LONG
    assert spent(text) <= MAX_WORK


@pytest.mark.parametrize(
    "text",
    [
        "+".join(f"1/{n}" for n in range(1, 51)),  # the 50th harmonic number
        "*".join(f"{n}/{n + 1}" for n in range(1, 51)),
        f"mean({', '.join(f'{n}.{n:02}' for n in range(10, 99))})",
        f"median({', '.join(str(n * 7919 % 1009) for n in range(150))})",
        f"gcd({', '.join(str(n * 360360) for n in range(1, 90))})",
        " + ".join(f"1000 * 1.0{n}^{n}" for n in range(1, 31)),
        " + ".join(f"sin({n}) * cos({n})^2" for n in range(1, 21)),
        "1000! / 998! + comb(52, 5) * comb(100, 50) + sqrt(2)^100",
    ],
)
def test_ordinary_expressions_are_far_from_the_limit(text: str) -> None:
    evaluate(text)
    assert spent(text) < MAX_WORK / 2


def test_the_work_of_whole_expressions_is_that_of_their_parts() -> None:
    pair = work.of_operator("+", 1, 1)
    assert spent("1+1") == pair
    assert spent("1+1+1") == pair + work.of_operator("+", 2, 1)
    assert spent("1 < 1 == 1") == 2 * pair
    assert spent("-(+1)") == 0
    assert spent("50%") == work.of_operator("/", 50, 100)
    assert spent("5!") == FUNCTIONS["factorial"].work([5])
    assert spent("√2") == spent("sqrt(2)") == FUNCTIONS["sqrt"].work([2])


LONGER: list[tuple[str, list[Number], list[Number]]] = [
    ("+", [1, 1], [LONG, 1]),
    ("*", [3, 1], [3, ROOT_2]),
    ("*", [ROOT_2, 1], [ROOT_2, LONG]),
    ("//", [7, 2], [LONG, 2]),
    ("/", [1, 3], [1, LONG]),
    ("+", [Fraction(1, 3), 1], [LONG_FRACTION, 1]),
    ("%", [ROOT_2, 2], [ROOT_2, LONG]),
    ("^", [3, 5], [3, 5000]),
    ("^", [Fraction(2, 3), 5], [Fraction(2, 3), 2000]),
    ("^", [2, -5], [2, -2000]),
    ("^", [2, 9], [2, Fraction(1, 2)]),
    ("^", [2, Fraction(1, 2)], [LONG, Fraction(1, 2)]),
]


@pytest.mark.parametrize(("symbol", "less", "more"), LONGER)
def test_longer_numbers_cost_more(symbol: str, less: list[Number], more: list[Number]) -> None:
    assert 0 < 2 * work.of_operator(symbol, *less) < work.of_operator(symbol, *more) < MAX_WORK / 10


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        (("^", 2, 2000), ("^", 2, -2000)),  # a fraction has to be kept in lowest terms
        (("/", ROOT_2, 2), ("//", ROOT_2, 2)),
        (("*", LONG, 2), ("/", LONG, 2)),
        (("+", 1, 2), ("+", 1, ROOT_2)),
    ],
)
def test_dear_operations(cheap: tuple[str, Number, Number], dear: tuple[str, Number, Number]) -> None:
    assert 1.5 * work.of_operator(*cheap) < work.of_operator(*dear)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_more_and_longer_arguments_cost_more(name: str) -> None:
    function = FUNCTIONS[name]
    few = max(function.min_arguments, 1)
    assert function.work([LONG] * few) > function.work([3] * few) > 0
    if function.max_arguments is None:
        assert function.work([3] * 20) >= 10 * function.work([3] * 2)


def test_the_steps_of_combinations_are_counted_from_the_nearer_end() -> None:
    comb = FUNCTIONS["comb"].work
    assert comb([10_000, 9_990]) == comb([10_000, 10]) < comb([10_000, 1000]) / 10
    assert comb([10**9, 10**8]) < MAX_WORK, "more than MAX_BITS of them are refused, not computed"


pieces = st.sampled_from(
    ["comb(9999,4999)", "7/3^2000", "(2^9999-1)", "sin(1)", "acosh(3)", "7^.1", "1/7", "gcd(3^6300,7^3000)", "pi", "9"]
)


@given(st.lists(st.tuples(pieces, st.sampled_from("+-*/%^<")), max_size=120))
@settings(max_examples=60)
def test_no_expression_spends_more_than_the_budget(parts: list[tuple[str, str]]) -> None:
    text = "".join(piece + symbol for piece, symbol in parts)[:990] + "1"
    budget = Budget()
    with contextlib.suppress(CalculatorError):
        calculate(text, budget)
    assert 0 <= budget.spent <= MAX_WORK
    assert math.isfinite(budget.spent)
