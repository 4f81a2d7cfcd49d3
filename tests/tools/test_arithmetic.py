"""Numbers stay exact as long as possible, and bounded always."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools.arithmetic import (
    Exact,
    Number,
    absolute,
    add,
    checked,
    compare,
    divide,
    exact_root,
    exp,
    floor,
    floor_divide,
    ln,
    modulo,
    multiply,
    power,
    sign,
    square_root,
    subtract,
)
from agentrl.tools.calculator_bounds import MAX_BITS, MAX_FRACTION_BITS, CalculatorError
from agentrl.tools.real import Real, from_exact

LARGEST = 2**MAX_BITS - 1
ROOT_2 = square_root(2)
ROUNDED_HALF = Real(Decimal("0.5"), Decimal("1e-49"))


def test_results_take_their_simplest_form() -> None:
    for value, expected in [
        (divide(6, 3), 2),
        (add(Fraction(1, 3), Fraction(2, 3)), 1),
        (divide(3, 6), Fraction(1, 2)),
        (multiply(ROOT_2, ROOT_2), 2),
        (subtract(ROOT_2, ROOT_2), 0),
    ]:
        assert value == expected
        assert type(value) is type(expected)


def test_the_limit_of_integers_is_exact() -> None:
    assert checked(LARGEST) == LARGEST
    assert power(2, MAX_BITS - 1) == 2 ** (MAX_BITS - 1)
    assert power(Fraction(1, 2), 1 - MAX_BITS) == 2 ** (MAX_BITS - 1)
    too_large = (lambda: add(LARGEST, 1), lambda: multiply(LARGEST, 2), lambda: power(2, MAX_BITS))
    for compute in too_large:
        with pytest.raises(CalculatorError, match=r"more than 3,010 digits"):  # 10,000 * log10(2) = 3010.3
            compute()


def test_longer_fractions_are_rounded() -> None:
    longest = 2**MAX_FRACTION_BITS - 1
    assert divide(1, longest) == Fraction(1, longest)
    rounded = divide(1, longest + 1)
    assert isinstance(rounded, Real)
    assert abs(Fraction(rounded.value) - Fraction(1, longest + 1)) <= Fraction(rounded.error)
    # Daily interest for ten years: as a fraction, 13 bits * 3650
    growth = power(add(1, Fraction(5, 36500)), 3650)
    assert isinstance(growth, Real)
    assert float(growth) == pytest.approx(math.exp(3650 * math.log1p(0.05 / 365)), rel=1e-12)


def test_rounded_numbers_have_a_range() -> None:
    assert float(multiply(power(10, -3000), 10**3000)) == 1
    with pytest.raises(CalculatorError, match=r"too close to 0: less than 10\^-3,010\."):
        power(10, -4000)
    with pytest.raises(CalculatorError, match=r"too close to 0: less than 10\^-3,010\."):
        exp(-7001)
    for compute in (lambda: exp(7001), lambda: exp(6999), lambda: multiply(multiply(ROOT_2, 10**3000), 10**11)):
        with pytest.raises(CalculatorError, match="too large: more than 3,010 digits"):
            compute()


@pytest.mark.parametrize(
    ("base", "exponent"), [(9, 9**9), (10**5, 10**5), (3, 10**3000), (Fraction(1, 7), -(10**3000))]
)
def test_a_large_power_is_refused_without_being_computed(base: Exact, exponent: int) -> None:
    with pytest.raises(CalculatorError, match="too large"):
        power(base, exponent)


@pytest.mark.parametrize(("base", "exponent"), [(Fraction(1, 3), 10**100), (7, -(10**300)), (Fraction(-2, 3), 10**9)])
def test_a_small_power_is_refused_without_being_computed(base: Exact, exponent: int) -> None:
    with pytest.raises(CalculatorError, match="too close to 0"):
        power(base, exponent)


@pytest.mark.parametrize(
    ("base", "exponent", "expected"),
    [
        (1, 10**3000, 1),
        (-1, 10**3000, 1),
        (-1, -(10**3000) - 1, -1),
        (0, 10**3000, 0),
        (0, 0, 1),
        (0, Fraction(1, 2), 0),
        (Fraction(7, 3), 0, 1),
        (Fraction(2, 3), -2, Fraction(9, 4)),
        (-2, 3, -8),
        (-2, -2, Fraction(1, 4)),
        (8, Fraction(1, 3), 2),
        (Fraction(4, 9), Fraction(-3, 2), Fraction(27, 8)),  # (2/3) ** -3
        (10**40, Fraction(1, 2), 10**20),
        (ROOT_2, 4, 4),
        (ROOT_2, 0, 1),
        (2, ROUNDED_HALF, None),
    ],
)
def test_exact_powers(base: Number, exponent: Number, expected: Exact | None) -> None:
    result = power(base, exponent)
    assert isinstance(result, Real) == (expected is None)
    assert expected is None or result == expected


@pytest.mark.parametrize(
    ("base", "exponent", "value"),
    [(2, Fraction(1, 2), 2**0.5), (3, ROUNDED_HALF, 3**0.5), (-ROOT_2, 3, -(2**1.5)), (ROOT_2, -3, 2**-1.5)],
)
def test_inexact_powers(base: Number, exponent: Number, value: float) -> None:
    result = power(base, exponent)
    assert isinstance(result, Real)
    assert float(result) == pytest.approx(value, rel=1e-15)
    assert result.num_digits > 40


@pytest.mark.parametrize(
    ("base", "exponent", "message"),
    [
        (0, -1, "zero has no negative power"),
        (0, Fraction(-1, 2), "zero has no negative power"),
        (0, -ROOT_2, "zero has no negative power"),
        (-8, Fraction(1, 3), "no real power"),
        (-8, ROOT_2, "no real power"),
        (-ROOT_2, Fraction(1, 2), "no real power"),
    ],
)
def test_powers_without_a_value(base: Number, exponent: Number, message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        power(base, exponent)


@pytest.mark.parametrize("operation", [divide, floor_divide, modulo])
@pytest.mark.parametrize("left", [0, 1, Fraction(1, 2), ROOT_2])
@pytest.mark.parametrize("right", [0, Real(Decimal("1e-19"), Decimal("1e-18"))])
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


@given(st.integers(2, 2**5000), st.integers(2, 2500))
def test_roots_of_long_numbers(root: int, degree: int) -> None:
    root >>= max(0, root.bit_length() - MAX_BITS // degree)  # so that its power is within the limit
    root = max(root, 2)
    assert exact_root(root**degree, degree) == root
    assert exact_root(root**degree + 1, degree) is None


def test_roots_that_do_not_exist() -> None:
    assert exact_root(-4, 2) is None
    assert exact_root(Fraction(4, 3), 2) is None
    assert exact_root(Fraction(3, 4), 2) is None
    assert exact_root(5, 10**1000) is None
    assert exact_root(1, 10**1000) == 1
    assert exact_root(0, 3) == 0


exact = st.fractions(max_denominator=1000) | st.integers()


@given(exact, exact)
def test_exact_operations_are_those_of_fractions(left: Exact, right: Exact) -> None:
    x, y = Fraction(left), Fraction(right)
    assert (add(left, right), subtract(left, right), multiply(left, right)) == (x + y, x - y, x * y)
    assert compare(left, right) == (x > y) - (x < y)
    assert (absolute(left), sign(left), floor(left)) == (abs(x), (x > 0) - (x < 0), math.floor(x))
    if right != 0:
        assert divide(left, right) == x / y
        assert floor_divide(left, right) == x // y
        assert modulo(left, right) == x - y * (x // y)


ordinary = st.fractions(-(10**9), 10**9, max_denominator=1000) | st.integers(-(10**12), 10**12)


@given(ordinary, ordinary)
def test_rounded_operations_contain_the_exact_result(left: Exact, right: Exact) -> None:
    x, y = Fraction(left), Fraction(right)
    pairs = [(add, x + y), (subtract, x - y), (multiply, x * y)]
    if right != 0:
        pairs += [(divide, x / y), (floor_divide, Fraction(x // y)), (modulo, x % y)]
    for operation, expected in pairs:
        result = operation(Real(*_parts(left)), right)
        value, error = (
            (Fraction(result.value), result.error) if isinstance(result, Real) else (result, Decimal("1e-20"))
        )
        assert abs(value - expected) <= Fraction(error), operation
    assert compare(from_exact(left), right) == compare(left, right)


def _parts(value: Exact) -> tuple[Decimal, Decimal]:
    rounded = from_exact(value)
    return rounded.value, rounded.error


def test_rounded_numbers_are_equal_where_their_difference_cannot_be_told_from_0() -> None:
    assert compare(multiply(ROOT_2, ROOT_2), 2) == 0
    assert compare(ROOT_2, Fraction(141421356237, 10**11)) == 1
    assert compare(Fraction(141421356238, 10**11), ROOT_2) == 1
    assert compare(Fraction(1, 3), Fraction(333333333333333333, 10**18)) == 1, "exact numbers have no tolerance"


def test_what_is_lost_in_rounding_is_refused() -> None:
    lost = subtract(add(10**40, ROOT_2), 10**40)  # 1.41421356 and 1e-9 of error
    assert isinstance(lost, Real)
    assert lost.num_digits == 9
    for compute in (
        lambda: compare(lost, ROOT_2),
        lambda: compare(multiply(ROOT_2, 10**60), square_root(2 * 10**120)),
        lambda: floor(multiply(ROOT_2, 10**60)),
        lambda: floor_divide(multiply(ROOT_2, 10**60), 7),
        lambda: sign(subtract(lost, ROOT_2)),
        lambda: exp(subtract(add(10**60, ROOT_2), 10**60)),
    ):
        with pytest.raises(CalculatorError, match="lost in rounding"):
            compute()


def test_whole_numbers_are_recognized() -> None:
    assert exp(ln(5)) == 5
    assert floor(exp(ln(5))) == 5
    assert floor(Real(Decimal("4.99999999"), Decimal("1e-49"))) == 4
    assert floor(-ROOT_2) == -2
    assert modulo(add(ROOT_2, 7), ROOT_2) != 0
    assert modulo(multiply(ROOT_2, 6), ROOT_2) == 0
