r"""The final answer in a text and the numbers in it: golden cases, properties, and time on hostile text."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs.answers import (
    Quantity,
    boxed_contents,
    clean_answer,
    extract_answer,
    last_number,
    reference_number,
    tagged_contents,
)
from agentrl.errors import DataError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        ("  Paris. ", "Paris"),
        ("The answer is 408.", "408"),
        ("The final answer is: **408**", "408"),
        ("so the answer is **408**.", "408"),
        ("Answer: Paris\nI hope this helps.", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("**Answer**: `Paris`", "Paris"),
        ("answer:\n\n  Paris", "Paris"),
        ("The answer is 5. No, the answer is 6.", "6"),  # the last one counts
        ("An answering machine is 5 euros", "An answering machine is 5 euros"),  # no such words
        (r"So \boxed{42} it is", "42"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \} b}", r"a \} b"),  # an escaped brace is no brace
        (r"Answer: 7, that is \boxed{8}", "8"),  # a box comes before words
        (r"<answer>9</answer> and \boxed{8}", "8"),  # and before tags
        ("Answer: 7 <answer>9</answer>", "9"),  # tags come before words
        (r"\boxed{8", r"\boxed{8"),  # not closed: no box
        ("<answer>9", "<answer>9"),
        ("<answer>a<answer>b</answer>", "b"),
        ("wait...", "wait..."),  # an ellipsis is no full stop
        ("", ""),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value", "percent"),
    [
        ("408", Fraction(408), False),
        ("4,821 pens", Fraction(4821), False),
        ("1,234,567.25", Fraction(4938269, 4), False),  # 1234567.25 = 4938269 / 4
        ("12 boxes of 34", Fraction(34), False),  # the last number
        ("-7", Fraction(-7), False),
        ("\N{MINUS SIGN}7", Fraction(-7), False),
        ("+7", Fraction(7), False),
        ("10-3", Fraction(3), False),  # a difference, not minus three
        ("(2)-3", Fraction(3), False),
        ("= -3", Fraction(-3), False),
        ("-$5.50", Fraction(-11, 2), False),
        (".5", Fraction(1, 2), False),
        ("2.", Fraction(2), False),
        ("3/8", Fraction(3, 8), False),
        ("-3 / 8", Fraction(-3, 8), False),
        (r"-\frac{3}{8}", Fraction(-3, 8), False),
        (r"x=\frac{3}{8}", Fraction(3, 8), False),
        (r"2\frac{3}{8}", Fraction(3, 8), False),  # not 23/8; mixed numbers are not read
        (r"\dfrac{3}{8}", Fraction(3, 8), False),
        ("1.5e3", Fraction(1500), False),
        ("1E-2", Fraction(1, 100), False),
        ("12.5%", Fraction(1, 8), True),
        (r"12.5 \%", Fraction(1, 8), True),
        ("12.5 percent", Fraction(1, 8), True),
        ("12.5 percentages", Fraction(25, 2), False),
        (r"1{,}234", Fraction(1234), False),
        (r"1\,234", Fraction(1234), False),
        ("1,2345", Fraction(2345), False),  # no group of thousands: two numbers
        ("12,34", Fraction(34), False),
        ("5/0", None, False),
        ("B12", None, False),
        ("x_2", None, False),
        ("none", None, False),
        ("", None, False),
        ("7 and then 5/0", Fraction(7), False),  # what is no number is passed over
    ],
)
def test_last_number(text: str, value: Fraction | None, percent: bool) -> None:
    assert last_number(text) == (None if value is None else Quantity(value, percent))


@given(st.integers(-(10**15), 10**15))
def test_any_integer_is_read_with_and_without_thousands(number: int) -> None:
    for text in (str(number), f"{number:,}", f"so {number} .", f"Answer: {number:,}."):
        assert last_number(text) == Quantity(Fraction(number))


@given(st.decimals(-(10**9), 10**9, places=4))
def test_any_decimal_is_read_exactly(number: object) -> None:
    assert last_number(f"It is {number}.") == Quantity(Fraction(str(number)))


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    answer = extract_answer(text)
    assert answer == answer.strip()
    last_number(text)
    assert clean_answer(answer) in (answer, clean_answer(answer))


@pytest.mark.parametrize(
    ("given_text", "gold", "equal"),
    [
        # whole numbers: 1e-6 absolute, so that no digit of a large one may be wrong
        ("99980001", 99980001, True),
        ("99980000", 99980001, False),
        ("407.9999995", 408, True),  # off by 5e-7
        ("407.999998", 408, False),  # off by 2e-6
        # others: 1e-6 of the reference
        ("0.3333333", "1/3", True),  # off by 3.3e-8
        ("0.333333", "1/3", True),  # off by 1e-6 / 3, the tolerance itself
        ("0.33333", "1/3", False),  # off by 3.3e-6
        ("12.750000001", 12.75, True),
        ("12.76", 12.75, False),
        # percent: both readings where only one side says percent
        ("15%", 0.15, True),
        ("15%", 15, True),
        ("15", "15%", True),
        ("0.15", "15%", True),
        ("1500%", "15%", False),  # both say percent: compared as they are
        ("15%", 1500, False),
        ("-3.5", 35, False),
    ],
)
def test_quantities_are_equal_within_tolerance(given_text: str, gold: object, equal: bool) -> None:
    quantity = last_number(given_text)
    assert quantity is not None
    assert quantity.equals(reference_number(gold)) is equal


@pytest.mark.parametrize("gold", ["Paris", None, True, [1], ""])
def test_reference_that_is_no_number_is_refused(gold: object) -> None:
    with pytest.raises(DataError, match="A number was expected"):
        reference_number(gold)


def test_boxes_and_tags() -> None:
    assert boxed_contents(r"\boxed{1} {\boxed{ 2 }} \boxed {3}") == ["1", "2", "3"]
    assert boxed_contents(r"\boxed{outer \boxed{inner}}") == [r"outer \boxed{inner}"]
    assert boxed_contents(r"\boxed{open \boxed{inner}") == ["inner"]
    assert boxed_contents(r"} \boxed{1}") == ["1"]
    assert tagged_contents("<answer> a </answer></answer><answer>b</answer><answer>") == ["a", "b"]


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "{",
        "}",
        "<answer>",
        "answer is ",
        "1,",
        "1,234",
        "1",
        "1 ",
        "1/",
        "answer ",
        "'",
        "**",
        "1e9",
        "\\frac{1}",
    ],
)
def test_time_grows_with_the_length_of_the_text_only(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        started = time.process_time()
        last_number(extract_answer(text))
        return time.process_time() - started

    seconds(10_000)
    # Quadratic time would be 10,000 times as long for 100 times the text.
    assert seconds(60_000) < 1000 * max(seconds(600), 1e-3)


def test_numbers_too_long_for_exact_arithmetic_are_none() -> None:
    assert last_number("9" * 5000) is None
    assert last_number("1e999999999") is None
    assert last_number("1e" + "9" * 50) is None
    assert last_number("7 1e999999999") == Quantity(Fraction(7))
