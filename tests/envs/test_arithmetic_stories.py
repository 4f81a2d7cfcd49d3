"""Every problem of `agentrl/Arithmetic-v0` read as a person reads it: the words, and nothing else, give the answer.

The patterns below were written from the texts. A problem that fits none of them, or two, fails the test, so a new
kind of problem needs a new reading.
"""

import re
from collections.abc import Callable
from fractions import Fraction as F
from typing import Any

import pytest

from agentrl.envs import ArithmeticEnv
from agentrl.tasks import Task

THING = r"(?:pens|books|apples|cups|lamps|shirts)"
BOX = r"(?:crate|box|bag)"
BOXES = r"(?:crates|boxes|bags)"
ASIDE = r"(?:The (?:shop|farm) (?:is open \d+ hours a week|has been there for \d+ years|has house number \d+)\. )?"
N, D = r"(\d+)", r"(\d+\.\d+)"

READINGS: list[tuple[str, Callable[..., F]]] = [
    # Level 1
    (rf"A shop has {N} {THING} and buys {N} more\. How many does it have now\?", lambda a, b: a + b),
    (rf"There are {N} {THING} in one {BOX} and {N} in another\. How many are there in all\?", lambda a, b: a + b),
    (rf"A shop has {N} {THING} and sells {N}\. How many are left\?", lambda a, b: a - b),
    (rf"A shop needs {N} {THING} and has {N}\. How many more does it need\?", lambda a, b: a - b),
    (rf"A {BOX} holds {N} {THING}\. How many {THING} are in {N} {BOXES}\?", lambda a, b: a * b),
    (rf"One ticket costs {N} dollars\. How much do {N} tickets cost\?", lambda a, b: a * b),
    (rf"{N} {THING} are packed evenly into {N} {BOXES}\. How many are in each {BOX}\?", lambda a, b: a / b),
    (rf"{N} tickets cost {N} dollars\. How much does one ticket cost\?", lambda n, total: total / n),
    # Level 2
    (
        rf"A shop gets {N} {BOXES} of {N} {THING} and sells {N} {THING}\. How many {THING} are left\?",
        lambda a, b, sold: a * b - sold,
    ),
    (
        rf"A shop has {N} {THING}\. It gets {N} {BOXES} of {N} {THING}\. How many {THING} does it have now\?",
        lambda stock, a, b: stock + a * b,
    ),
    (
        rf"{N} {THING} are packed evenly into {N} {BOXES}, and {N} of the {BOXES} are sold\. "
        rf"How many {THING} are sold\?",
        lambda total, boxes, sold: total / boxes * sold,
    ),
    (
        rf"A lamp costs {N} dollars and a shirt {N} dollars\. How much do {N} of each cost\?",
        lambda lamp, shirt, n: n * lamp + n * shirt,
    ),
    (
        rf"A shop has {N} {THING} and sells {N} a day for {N} days\. How many {THING} are left\?",
        lambda stock, daily, days: stock - daily * days,
    ),
    # Level 3
    (
        rf"A shop gets {N} crates of {N} {THING} and {N} boxes of {N} {THING}\. {ASIDE}It sells {N} {THING}\. "
        rf"How many {THING} are left\?",
        lambda a, b, c, d, sold: a * b + c * d - sold,
    ),
    (
        rf"A farm picks {N} baskets of {N} apples and throws {N} apples away\. {ASIDE}The rest is packed evenly into "
        rf"{N} crates\. How many apples are in each crate\?",
        lambda baskets, each, bad, crates: (baskets * each - bad) / crates,
    ),
    (
        rf"A shop has {N} cups\. {ASIDE}For {N} weeks, {N} cups a week are broken\. The shop then sells all the others "
        rf"for {N} dollars each\. How many dollars does it get\?",
        lambda cups, weeks, broken, price: (cups - weeks * broken) * price,
    ),
    # Level 4
    (rf"What is {N}% of {N}\?", lambda share, whole: whole * share / 100),
    (rf"What is {N}% of {N}, plus {D}\?", lambda share, whole, extra: whole * share / 100 + extra),
    (
        rf"A lamp costs {D} dollars\. Its price falls by {N}%\. What does it cost now, in dollars\?",
        lambda price, down: price * (1 - down / 100),
    ),
    (
        rf"A lamp costs {D} dollars\. Its price falls by {N}% and then rises by {N}%\. What does it cost now, "
        r"in dollars\?",
        lambda price, down, up: price * (1 - down / 100) * (1 + up / 100),
    ),
    (
        rf"A tank holds {N} liters\. {N}/{N} of it is used, and then {D} liters are added\. How many liters are in "
        r"it now\?",
        lambda liters, part, parts, added: liters * (1 - part / parts) + added,
    ),
    (
        rf"{N} {THING} cost {D} dollars\. How many dollars do {N} {THING} cost\?",
        lambda n, price, wanted: price * wanted / n,
    ),
]

DAYS: list[tuple[str, Callable[..., F]]] = [
    (rf"it gets {N} {BOXES} of {N} {THING}", lambda stock, boxes, each: stock + boxes * each),
    (rf"it sells {N} {THING}", lambda stock, sold: stock - sold),
    (rf"it sells {N}% of what it has", lambda stock, share: stock * (100 - share) / 100),
    (rf"it gives 1/{N} of what it has to a school", lambda stock, part: stock - stock / part),
]


def matches(readings: list[tuple[str, Any]], text: str) -> list[tuple[Any, list[F]]]:
    found = [(formula, re.fullmatch(pattern, text)) for pattern, formula in readings]
    return [(formula, [F(group) for group in match.groups()]) for formula, match in found if match]


def read(task: Task) -> F:
    """The answer to a problem."""
    text = str(task.prompt).removesuffix(" Round to two decimals.")
    bare = re.fullmatch(r"What is ([-+*/()\d. ]+)\?", text)
    if bare:
        exact = eval(re.sub(r"\d+(?:\.\d+)?", lambda match: f"F('{match[0]}')", bare[1]), {"F": F})
    elif text.startswith("A shop starts the week"):
        exact = read_week(text)
    else:
        ((formula, numbers),) = matches(READINGS, text)
        exact = formula(*numbers)
    return rounded(exact) if text != task.prompt else F(exact)


def read_week(text: str) -> F:
    start, rest = re.fullmatch(rf"A shop starts the week with {N} {THING}\. {ASIDE}(.*)", text).groups()  # type: ignore[union-attr]
    stock = F(start)
    *days, question = re.split(r" ?On (?:Mon|Tues|Wednes|Thurs|Fri|Satur)day ", rest)[1:]
    weekdays = ["Mon", "Tues", "Wednes", "Thurs", "Fri"]
    assert re.findall(r"On (\w+)day", rest) == [*weekdays[: len(days)], "Satur"]
    for day in days:
        ((formula, numbers),) = matches(DAYS, day.removesuffix("."))
        stock = formula(stock, *numbers)
        assert stock.denominator == 1, "nobody sells a part of a lamp"
        assert stock > 0
    price, rent = re.fullmatch(
        r"it sells all it has for (\d+\.\d+) dollars each and pays (\d+) dollars of rent\. How many dollars are left\?",
        question,
    ).groups()  # type: ignore[union-attr]
    return stock * F(price) - F(rent)


def rounded(value: F) -> F:
    """To two decimals, halves away from zero."""
    cents, rest = divmod(abs(value) * 100, 1)
    return F(int(cents) + (rest >= F(1, 2)), 100) * (1 if value > 0 else -1)


@pytest.mark.parametrize("level", range(1, 6))
def test_the_words_give_the_answer(level: int) -> None:
    for task in ArithmeticEnv(level=level).task_set()[:400]:
        assert read(task) == F(task.answer), task


def test_every_reading_is_of_a_problem_that_exists() -> None:
    """So that the list above is the list of problems."""
    texts = [str(task.prompt) for level in range(1, 5) for task in ArithmeticEnv(level=level).task_set()[:400]]
    for pattern, _ in READINGS:
        assert any(re.fullmatch(pattern, text.removesuffix(" Round to two decimals.")) for text in texts), pattern


def test_whole_things_are_left_in_stories_about_things() -> None:
    for level in (1, 2, 3):
        for task in ArithmeticEnv(level=level).task_set()[:400]:
            assert F(task.answer).denominator == 1
            assert F(task.answer) > 0 or str(task.prompt).startswith("What is")
