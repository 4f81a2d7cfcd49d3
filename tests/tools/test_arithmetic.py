"""Numbers stay exact as long as possible, and bounded always."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools.arithmetic import (
    MAX_BITS,
    CalculatorError,
    Exact,
    Number,
    add,
    checked,
    compare,
    divide,
    exact_root,
    floor_divide,
    modulo,
    multiply,
    power,
    snap,
)

LARGEST = 2**MAX_BITS - 1


def test_results_take_their_simplest_form() -> None:
    for value, expected in [
        (divide(6, 3), 2),
        (add(Fraction(1, 3), Fraction(2, 3)), 1),
        (divide(3, 6), Fraction(1, 2)),
    ]:
        assert value == expected
        assert type(value) is type(expected)


def test_the_limit_is_exact() -> None:
    assert checked(LARGEST) == LARGEST
    assert power(2, MAX_BITS - 1) == 2 ** (MAX_BITS - 1)
    assert divide(1, LARGEST) == Fraction(1, LARGEST)
    too_large = (
        lambda: add(LARGEST, 1),
        lambda: multiply(LARGEST, 2),
        lambda: power(2, MAX_BITS),
        lambda: divide(Fraction(1, LARGEST), 2),
        lambda: power(10, -4000),
    )
    for compute in too_large:
        with pytest.raises(CalculatorError, match=r"more than 3,010 digits"):  # 10,000 * log10(2) = 3010.3
            compute()


@pytest.mark.parametrize(
    ("base", "exponent"), [(9, 9**9), (10**5, 10**5), (Fraction(1, 3), 10**100), (-7, 10**3000), (7, -(10**3000))]
)
def test_a_large_power_is_refused_without_being_computed(base: Exact, exponent: int) -> None:
    with pytest.raises(CalculatorError, match="too large"):
        power(base, exponent)


@pytest.mark.parametrize(
    ("base", "exponent", "expected"),
    [
        (1, 10**3000, 1),
        (-1, 10**3000, 1),
        (-1, -(10**3000) - 1, -1),
        (0, 10**3000, 0),
        (0, 0, 1),
        (Fraction(2, 3), -2, Fraction(9, 4)),
        (-2, 3, -8),
        (8, Fraction(1, 3), 2),
        (Fraction(4, 9), Fraction(-3, 2), Fraction(27, 8)),  # (2/3) ** -3
        (10**40, Fraction(1, 2), 10**20),
    ],
)
def test_exact_powers(base: Exact, exponent: Exact, expected: Exact) -> None:
    result = power(base, exponent)
    assert result == expected
    assert not isinstance(result, float)


def test_inexact_powers() -> None:
    assert power(2, Fraction(1, 2)) == math.sqrt(2)
    assert power(math.e, 2) == math.e**2


@pytest.mark.parametrize(
    ("base", "exponent", "message"),
    [
        (0, -1, "zero has no negative power"),
        (0.0, -1, "zero has no negative power"),
        (0, Fraction(-1, 2), "zero has no negative power"),
        (-8, Fraction(1, 3), "no real power"),
        (-8, 0.5, "no real power"),
        (10.0, 400, "too large for a decimal"),
        (10**400, 0.5, "limit 1.8e308"),
    ],
)
def test_powers_without_a_value(base: Number, exponent: Number, message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        power(base, exponent)


@pytest.mark.parametrize("operation", [divide, floor_divide, modulo])
@pytest.mark.parametrize("left", [1, Fraction(1, 2), 0.5])
@pytest.mark.parametrize("right", [0, 0.0])
def test_division_by_zero(operation: object, left: Number, right: Number) -> None:
    assert callable(operation)
    with pytest.raises(CalculatorError, match=r"^Division by zero\.$"):
        operation(left, right)


@given(st.integers(0, 10**30), st.integers(1, 40))
def test_roots_are_found_where_they_are_rational(root: int, degree: int) -> None:
    value = root**degree
    assert exact_root(value, degree) == root
    if root > 1 and degree > 1:  # between two neighboring powers there is none
        assert exact_root(value + 1, degree) is None
        assert exact_root(value - 1, degree) is None or (root, degree) == (2, 1)
    assert exact_root(Fraction(value, 3**degree), degree) == Fraction(root, 3)


def test_roots_that_do_not_exist() -> None:
    assert exact_root(-4, 2) is None
    assert exact_root(5, 10**1000) is None
    assert exact_root(1, 10**1000) == 1


exact = st.fractions(max_denominator=1000) | st.integers()


@given(exact, exact)
def test_exact_operations_are_those_of_fractions(left: Exact, right: Exact) -> None:
    x, y = Fraction(left), Fraction(right)
    assert compare(left, right) == (x > y) - (x < y)
    if right != 0:
        assert divide(left, right) == x / y
        assert floor_divide(left, right) == x // y
        assert modulo(left, right) == x - y * (x // y)


def test_floats_are_equal_within_their_rounding_only() -> None:
    third = 0.1 + 0.2  # 0.30000000000000004, one unit in the last place above
    assert compare(third, Fraction(3, 10)) == 0
    assert compare(1.0 + 4 * math.ulp(1.0), 1) == 0
    assert compare(1.0 + 5 * math.ulp(1.0), 1) == 1
    assert compare(1 - 1e-12, 1) == -1
    assert compare(10**400, 1.5) == 1
    assert compare(Fraction(1, 3), Fraction(333333333333333333, 10**18)) == 1, "exact numbers have no tolerance"


def test_snapping() -> None:
    assert snap(math.exp(math.log(5))) == 5  # 4.999999999999999
    assert snap(4.99999999) == Fraction(499999999, 10**8)
    assert snap(Fraction(1, 3)) == Fraction(1, 3)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(CalculatorError):
        checked(value)
    with pytest.raises(CalculatorError):
        multiply(1e308, 10)
