"""Rounded numbers: how their errors grow, which digits are right, and when they are whole numbers."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools import real
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.number_text import format_number
from agentrl.tools.real import Real


def number(value: str, error: str = "0") -> Real:
    return Real(Decimal(value), Decimal(error))


@pytest.mark.parametrize(
    ("value", "error", "num_digits", "text"),
    [
        ("3.14159", "0.0001", 4, "3.142"),  # half a unit of the last digit is 0.0005
        ("3.14159", "0.0004", 4, "3.142"),
        ("3.14159", "0.0006", 3, "3.14"),
        ("9.99", "0.04", 2, "10"),  # 9.95 to 10.03
        ("0.00314159", "0.0000004", 4, "0.003142"),
        ("314159", "60", 3, "314000"),
        ("-314159", "0.000001", 11, "-314159"),
        ("2.5", "1", 0, None),
        ("2.5", "1.3", 0, None),
        ("0.5", "0", 50, "0.5"),
    ],
)
def test_only_the_right_digits_are_shown(value: str, error: str, num_digits: int, text: str | None) -> None:
    assert number(value, error).num_digits == num_digits
    if text is not None:
        assert format_number(number(value, error)) == text
    else:
        with pytest.raises(CalculatorError, match="lost in rounding"):
            format_number(number(value, error))


wide = st.builds(
    lambda value, error: (value, error),
    st.fractions(-9, 9, max_denominator=99),
    st.sampled_from(["1.23457e-9", "9.99999e-3"]),
)


@given(wide, wide)
def test_the_worst_case_lies_within_the_error(first: tuple[Fraction, str], second: tuple[Fraction, str]) -> None:
    (x, a), (y, b) = first, second
    left, right = (Real(real.from_exact(value).value, Decimal(error)) for value, error in (first, second))
    corners = [(x + i * Fraction(a), y + j * Fraction(b)) for i in (-1, 1) for j in (-1, 1)]
    slack = Fraction(1, 10**40)  # the operands are thirds and the like, rounded
    for operation, exact in (
        (real.add, lambda u, v: u + v),
        (real.multiply, lambda u, v: u * v),
        (real.divide, lambda u, v: u / v),
    ):
        if operation is real.divide and abs(y) <= 2 * Fraction(b):
            continue
        result = operation(left, right)
        assert isinstance(result, Real)
        largest = max(abs(exact(u, v) - Fraction(result.value)) for u, v in corners)
        assert largest <= Fraction(result.error) + slack
        assert Fraction(result.error) <= largest * Fraction(11, 10) + Fraction(1, 10**9), (
            "and the error is no larger than that"
        )


@pytest.mark.parametrize(
    ("compute", "slope"),
    [
        (real.square_root, Fraction(1, 4)),  # of sqrt(x) at 4
        (real.ln, Fraction(1, 4)),
        (real.exp, Fraction(546, 10)),  # e^4
        (real.sin, Fraction(1)),
        (real.cos, Fraction(1)),
        (real.atan, Fraction(1, 17)),  # 1 / (1 + 4^2)
    ],
)
def test_functions_pass_errors_on_by_their_slope(compute: object, slope: Fraction) -> None:
    assert callable(compute)
    result = compute(number("4", "1e-9"))
    assert slope * Fraction(99, 100) <= Fraction(result.error) * 10**9 <= slope * Fraction(201, 100)


def test_errors_are_rounded_up() -> None:
    product = real.multiply(number("9"), number("0.7", "1.23457e-10"))  # 9 * 1.23457 = 11.11113, more than 6 digits
    assert isinstance(product, Real)
    assert product.error > 9 * Decimal("1.23457e-10")


def test_what_cannot_be_told_from_a_whole_number_is_one() -> None:
    assert real.rounded(Decimal("3"), Decimal("1e-21")) == 3
    assert isinstance(real.rounded(Decimal("3.00000000000000000001"), Decimal("2e-21")), Real)
    assert isinstance(real.rounded(Decimal("3"), Decimal("1e-20")), Real), "with so large an error it may be another"
    assert real.rounded(Decimal("1e-40"), Decimal("1e-39")) == 0
    assert isinstance(real.rounded(Decimal("1e-40"), Decimal("1e-41")), Real)


def test_exact_numbers_of_few_digits_have_no_error() -> None:
    assert real.from_exact(-(10**49)) == number("-1" + "0" * 49)
    assert real.from_exact(10**50).error > 0
    assert real.from_exact(Fraction(1, 3)).error > 0
