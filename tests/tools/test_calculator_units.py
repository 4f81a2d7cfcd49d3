"""Units are left out where the number cannot depend on them, and refused in words where it can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.tools.calculator import evaluate
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS
from agentrl.tools.units import CURRENCY_SIGNS, UNITS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 kg * 4", "12"),
        ("3kg * 4", "12"),
        ("$1,200 * 3", "3600"),
        ("-$5 + $ 2.50", "-2.5"),
        ("$.5 + 50 dollars", "50.5"),
        ("20 USD - $3", "17"),
        ("5 € / 2", "2.5"),
        ("5€+5€", "10"),
        ("1,000km + 2.5e2km", "1250"),
        ("12 km / 3 km", "4"),
        ("2 hours * 60", "120"),
        ("1 hour + 3 h + 0.5hr", "4.5"),
        ("(3 + 4) kg / 2", "3.5"),
        ("sqrt(16) cm * 2", "8"),
        ("max(3 min, 4 min)", "4"),
        ("min(3 min, 4 minutes)", "3"),
        ("3 kg < 4 kg", "True"),
        ("3 kg != 4 kg", "True"),
        ("2^3 kg", "8"),
        ("(2 cm)^2", "4"),
        ("10% of 50 kg", "5"),
        ("1 L = ?", "1"),
    ],
)
def test_one_unit_is_left_out(text: str, value: str) -> None:
    assert evaluate(text) == value


TWO = "Two units, {!r} and {!r}: convert to the same unit yourself and write numbers only."
POWER = "Leave the unit {!r} out: what stands behind it could belong to the unit."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12 km / 3 h", TWO.format("km", "h")),
        ("3 km + 500 meters", TWO.format("km", "meter")),
        ("$3 + 20 cents", TWO.format("$", "¢")),
        ("1 hour + 30min", TWO.format("h", "min")),
        ("3 cm^2", POWER.format("cm")),
        ("3 cm ** 2", POWER.format("cm")),
        ("5 kg!", POWER.format("kg")),
        ("7 kg % 2", POWER.format("kg")),
        ("3 cm²", POWER.format("cm")),
        ("60 km/h * 2", "Unknown name 'h'. Leave units out."),
        ("kg * 3", "Unknown name 'kg'. Leave units out."),
        ("$x", "No number behind '$' at position 1. Leave units out."),
        ("3 * $", "No number behind '$' at position 5. Leave units out."),
        ("3 million", "Unexpected 'million' at position 3. Write * 10^6 instead of 'million'."),
        ("15 percent", "Unexpected 'percent' at position 4. Write % instead of 'percent'."),
        (
            "sin(30 degrees)",
            "Unexpected 'degrees' at position 8. Write radians(...) around the angle instead of 'degrees'.",
        ),
        ("sin(30°)", "Unexpected character '°' at position 7. Write radians(...) around the angle instead of '°'."),
        ("5²", "Unexpected character '²' at position 2. Write ^2 instead of '²'."),
        ("3 x 4", "Unexpected 'x' at position 3. Write * to multiply instead of 'x'."),
        ("7 mod 3", "Unexpected 'mod' at position 3. Write % instead of 'mod'."),
        ("3 apples", "An operator is missing before 'apples' at position 3. Write * to multiply, and leave words out."),
        ("3 m + 2", "An operator is missing before 'm' at position 3. Write * to multiply, and leave words out."),
        ("3m", "'3m' is not a number; write * to multiply."),
        ("3kg2", "'3kg2' is not a number; write * to multiply."),
        ("3 kg 4", "An operator is missing before '4' at position 6."),
        ("5 min(3)", "An operator is missing before 'min' at position 3. Write * to multiply, and leave words out."),
        ("5 min (3)", "An operator is missing before 'min' at position 3. Write * to multiply, and leave words out."),
    ],
)
def test_what_could_change_the_value_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalculatorError) as caught:
        evaluate(text)
    assert str(caught.value) == message


def test_the_words_of_the_language_are_no_units() -> None:
    assert set(UNITS) & {*FUNCTIONS, *CONSTANTS} == {"min"}  # which is one only where no bracket follows
    assert set(CURRENCY_SIGNS) < set(UNITS)
    assert not {"m", "k", "K", "M", "x", "e", "C", "F"} & set(UNITS), "one letter, several meanings"


numbers = st.integers(0, 999).map(str)
spellings = st.sampled_from(sorted(set(UNITS) - set(CURRENCY_SIGNS)))


@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=6), spellings, st.sampled_from("+-*<"))
def test_a_unit_never_changes_a_number(parts: list[tuple[str, bool]], unit: str, symbol: str) -> None:
    with_unit = f" {symbol} ".join(f"{number} {unit}" if has_unit else number for number, has_unit in parts)
    assert evaluate(with_unit) == evaluate(f" {symbol} ".join(number for number, _ in parts))


@given(numbers, spellings, numbers, spellings, st.sampled_from("+-*/<"))
def test_two_units_never_give_a_number(left: str, unit: str, right: str, other: str, symbol: str) -> None:
    text = f"{left} {unit} {symbol} {right} {other}"
    if UNITS[unit] == UNITS[other]:
        assert UNITS[unit] in UNITS
    else:
        with pytest.raises(CalculatorError, match=r"^Two units"):
            evaluate(text)
