"""Arithmetic problems in words and numbers, from one operation on small numbers to stories of six steps.

Every problem is made as a `Term`, so that its exact answer and the expression that gives it come from one source.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from agentrl.envs.terms import Term, number, plain

Rng: TypeAlias = np.random.Generator
Question: TypeAlias = tuple[str, Term]
"""What is asked, and what has to be calculated."""
Template: TypeAlias = Callable[[Rng], Question]

_THINGS = ("pens", "books", "apples", "cups", "lamps", "shirts")
_BOXES = (("crate", "crates"), ("box", "boxes"), ("bag", "bags"))


class Problem(NamedTuple):
    """A question and how it is answered.

    Example:
        Problem("A shop has 900 pens and sells 10% of them ...", (Term("900 - 900 * 10 / 100"), Term("810 * 2.5")))
    """

    question: str
    steps: tuple[Term, ...]
    """Calculations in order, the last of which gives the answer; a later one may use the results of earlier ones."""


def draw_problem(rng: Rng, level: int) -> Problem:
    """A problem of a level from 1 to 5."""
    if level == 5:
        return _long_story(rng)
    question, term = _LEVELS[level][int(rng.integers(len(_LEVELS[level])))](rng)
    return Problem(question, (term,))


# Level 1: one operation on whole numbers of two to four digits -------------------------------------------------------


def _what_is(rng: Rng) -> Question:
    kind = int(rng.integers(4))
    a, b = (_sum, _difference, _product, _quotient)[kind](rng)
    term = (a + b, a - b, a * b, a / b)[kind]
    return f"What is {term}?", term


def _add_story(rng: Rng) -> Question:
    a, b = _sum(rng)
    thing, (one, _) = _thing(rng), _box(rng)
    text = _choose(
        rng,
        f"A shop has {a} {thing} and buys {b} more. How many does it have now?",
        f"There are {a} {thing} in one {one} and {b} in another. How many are there in all?",
    )
    return text, a + b


def _subtract_story(rng: Rng) -> Question:
    a, b = _difference(rng)
    thing = _thing(rng)
    text = _choose(
        rng,
        f"A shop has {a} {thing} and sells {b}. How many are left?",
        f"A shop needs {a} {thing} and has {b}. How many more does it need?",
    )
    return text, a - b


def _multiply_story(rng: Rng) -> Question:
    a, b = _product(rng)
    thing, (one, many) = _thing(rng), _box(rng)
    text = _choose(
        rng,
        f"A {one} holds {a} {thing}. How many {thing} are in {b} {many}?",
        f"One ticket costs {a} dollars. How much do {b} tickets cost?",
    )
    return text, a * b


def _divide_story(rng: Rng) -> Question:
    a, b = _quotient(rng)
    thing, (one, many) = _thing(rng), _box(rng)
    text = _choose(
        rng,
        f"{a} {thing} are packed evenly into {b} {many}. How many are in each {one}?",
        f"{b} tickets cost {a} dollars. How much does one ticket cost?",
    )
    return text, a / b


# Level 2: two operations, brackets -----------------------------------------------------------------------------------


def _two_operations(rng: Rng) -> Question:
    a, b, c, d = (_digits(rng, 2, 4) for _ in range(4))
    dividend, divisor = _quotient(rng)
    high, low = _difference(rng)
    small = number(_int(rng, 12, 99))
    term = _pick(rng, (a + b) * c, (high - low) * c, a * b + c, dividend / divisor + d, a * b * small)
    return f"What is {term}?", term


def _crates_then_sale(rng: Rng) -> Question:
    crates, each, thing, (_, many) = _digits(rng, 2, 3), _digits(rng, 2, 3), _thing(rng), _box(rng)
    stock = crates * each
    other = number(_int(rng, 10, int(stock.value) - 1))
    delivery = f"{crates} {many} of {each} {thing}"
    if rng.random() < 0.5:
        return f"A shop gets {delivery} and sells {other} {thing}. How many {thing} are left?", stock - other
    return f"A shop has {other} {thing}. It gets {delivery}. How many {thing} does it have now?", other + stock


def _part_of_crates(rng: Rng) -> Question:
    a, b = _quotient(rng)
    thing, (_, many) = _thing(rng), _box(rng)
    sold = number(_int(rng, 2, int(b.value) - 1))
    text = f"{a} {thing} are packed evenly into {b} {many}, and {sold} of the {many} are sold."
    return f"{text} How many {thing} are sold?", a / b * sold


def _pairs(rng: Rng) -> Question:
    a, b, c = _digits(rng, 2, 3), _digits(rng, 2, 3), _digits(rng, 2, 3)
    return f"A lamp costs {a} dollars and a shirt {b} dollars. How much do {c} of each cost?", (a + b) * c


def _daily_sale(rng: Rng) -> Question:
    days, daily, thing = number(_int(rng, 11, 60)), _digits(rng, 2, 3), _thing(rng)
    stock = number(int((daily * days).value) + _int(rng, 10, 5000))
    text = f"A shop has {stock} {thing} and sells {daily} a day for {days} days."
    return f"{text} How many {thing} are left?", stock - daily * days


# Level 3: three or four operations, larger numbers, numbers that do not matter ---------------------------------------


def _nested(rng: Rng) -> Question:
    a, b, c, d, e = (_digits(rng, 2, 5) for _ in range(5))
    dividend, divisor = _quotient(rng, 4)
    term = _pick(
        rng,
        (a + b) * (c + d),
        a * b + c * d,
        (a * b + c) * d - e,
        (dividend / divisor + a) * b,
        a * (b + c) + dividend / divisor,
        (a + b + c) * d,
    )
    return f"What is {term}?", term


def _two_deliveries(rng: Rng) -> Question:
    a, b, c, d = (_digits(rng, 2, 3) for _ in range(4))
    stock = a * b + c * d
    sold = number(_int(rng, 100, int(stock.value) - 1))
    thing = _thing(rng)
    text = f"A shop gets {a} crates of {b} {thing} and {c} boxes of {d} {thing}. {_aside(rng, 'shop')}"
    return f"{text} It sells {sold} {thing}. How many {thing} are left?", stock - sold


def _repacked(rng: Rng) -> Question:
    a, b, crates = _digits(rng, 2, 3), _digits(rng, 3, 3), number(_int(rng, 12, 48))
    spoiled = number(int((a * b).value % crates.value + crates.value * _int(rng, 1, 9)))
    text = (
        f"A farm picks {a} baskets of {b} apples and throws {spoiled} apples away. {_aside(rng, 'farm')} "
        f"The rest is packed evenly into {crates} crates. How many apples are in each crate?"
    )
    return text, (a * b - spoiled) / crates


def _breakage(rng: Rng) -> Question:
    weeks, broken, price = number(_int(rng, 11, 52)), _digits(rng, 2, 2), _digits(rng, 2, 3)
    stock = number(int((weeks * broken).value) + _int(rng, 500, 9000))
    text = (
        f"A shop has {stock} cups. {_aside(rng, 'shop')} For {weeks} weeks, {broken} cups a week are broken. "
        f"The shop then sells all the others for {price} dollars each. How many dollars does it get?"
    )
    return text, (stock - broken * weeks) * price


# Level 4: decimals, fractions and percent ----------------------------------------------------------------------------


def _decimals(rng: Rng) -> Question:
    a, b, c = _price(rng, 10, 900), _price(rng, 10, 900), _price(rng, 2, 90)
    term = _pick(rng, (a + b) * c, a * c - b, a * b + c, a / c, (a + b) / c)
    return _asked("What is {}", term)


def _percent_of(rng: Rng) -> Question:
    share, whole, extra = number(_int(rng, 11, 99)), _digits(rng, 4, 5), _price(rng, 10, 900)
    part = share.percent_of(whole)
    if rng.random() < 0.5:
        return _asked(f"What is {share}% of {whole}", part, shown=False)
    return _asked(f"What is {share}% of {whole}, plus {extra}", part + extra, shown=False)


def _two_percents(rng: Rng) -> Question:
    price, down, up = _price(rng, 40, 900), number(_int(rng, 6, 45)), number(_int(rng, 6, 45))
    term = (number(100) - down).percent_of(price)
    text = f"A lamp costs {price} dollars. Its price falls by {down}%"
    if rng.random() < 0.5:
        term = (number(100) + up).percent_of(term)
        text += f" and then rises by {up}%"
    return _asked(f"{text}. What does it cost now, in dollars", term, shown=False)


def _tank(rng: Rng) -> Question:
    liters, parts, added = _digits(rng, 4, 5), _int(rng, 7, 19), _price(rng, 10, 900)
    used = _int(rng, 2, parts - 1)
    term = liters - liters * number(used) / number(parts) + added
    text = f"A tank holds {liters} liters. {used}/{parts} of it is used, and then {added} liters are added."
    return _asked(f"{text} How many liters are in it now", term, shown=False)


def _unit_price(rng: Rng) -> Question:
    count, price, wanted, thing = number(_int(rng, 11, 99)), _price(rng, 20, 900), _digits(rng, 2, 3), _thing(rng)
    text = f"{count} {thing} cost {price} dollars. How many dollars do {wanted} {thing} cost"
    return _asked(text, price / count * wanted, shown=False)


# Level 5: stories of four to six steps -------------------------------------------------------------------------------


def _long_story(rng: Rng) -> Problem:
    thing, (_, many) = _thing(rng), _box(rng)
    stock = _digits(rng, 3, 4)
    lines = [f"A shop starts the week with {stock} {thing}."]
    if rng.random() < 0.5:
        lines.append(_aside(rng, "shop"))
    steps = []
    days = ("On Monday", "On Tuesday", "On Wednesday", "On Thursday", "On Friday")
    for day in days[: _int(rng, 3, 5)]:
        text, after = _day(rng, stock, thing, many)
        lines.append(f"{day} {text}.")
        steps.append(after)
        stock = number(plain(after.value))
    price = _price(rng, 2, 60)
    rent = number(_int(rng, 10, min(900, int((stock * price).value) // 2)))
    lines.append(f"On Saturday it sells all it has for {price} dollars each and pays {rent} dollars of rent.")
    question, rest = _asked(f"{' '.join(lines)} How many dollars are left", stock * price - rent, shown=False)
    return Problem(question, (*steps, rest))


def _day(rng: Rng, stock: Term, thing: str, many: str) -> tuple[str, Term]:
    """What happens on a day, and the stock after it: a whole number again."""
    have = int(stock.value)
    shares = [share for share in (5, 10, 12, 15, 20, 25, 30, 35, 40) if have * share % 100 == 0]
    divisors = [divisor for divisor in range(3, 10) if have % divisor == 0]
    kind = int(rng.integers(4))
    if kind == 0 and shares:
        share = number(shares[int(rng.integers(len(shares)))])
        return f"it sells {share}% of what it has", stock - share.percent_of(stock)
    if kind == 1 and divisors:
        divisor = number(divisors[int(rng.integers(len(divisors)))])
        return f"it gives 1/{divisor} of what it has to a school", stock - stock / divisor
    if kind == 2 and have > 100:
        sold = number(_int(rng, 10, have // 2))
        return f"it sells {sold} {thing}", stock - sold
    crates, each = _digits(rng, 2, 2), _digits(rng, 2, 3)
    return f"it gets {crates} {many} of {each} {thing}", stock + crates * each


_LEVELS: dict[int, tuple[Template, ...]] = {
    1: (_what_is, _what_is, _add_story, _subtract_story, _multiply_story, _divide_story),
    2: (_two_operations, _two_operations, _crates_then_sale, _part_of_crates, _pairs, _daily_sale),
    3: (_nested, _nested, _two_deliveries, _repacked, _breakage),
    4: (_decimals, _percent_of, _two_percents, _tank, _unit_price),
}


# Numbers and words ---------------------------------------------------------------------------------------------------


def _int(rng: Rng, low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(rng.integers(low, high + 1))


def _digits(rng: Rng, fewest: int, most: int) -> Term:
    """A whole number; each number of digits is equally likely."""
    length = _int(rng, fewest, most)
    return number(_int(rng, 10 ** (length - 1), 10**length - 1))


def _price(rng: Rng, low: int, high: int) -> Term:
    """A number with one or two decimals."""
    whole = _int(rng, low, high)
    return number(f"{whole}.{_int(rng, 1, 9)}" if rng.random() < 0.3 else f"{whole}.{_int(rng, 1, 99):02d}")


def _sum(rng: Rng) -> tuple[Term, Term]:
    return _digits(rng, 2, 4), _digits(rng, 3, 4)


def _difference(rng: Rng) -> tuple[Term, Term]:
    low = _int(rng, 10, 5000)
    return number(_int(rng, max(100, low + 10), 9999)), number(low)


def _product(rng: Rng) -> tuple[Term, Term]:
    return _digits(rng, 2, 4), _digits(rng, 2, 3)


def _quotient(rng: Rng, digits: int = 3) -> tuple[Term, Term]:
    """Dividend and divisor without a remainder; the dividend has at most `digits` + 1 digits."""
    divisor = _int(rng, 12, 99)
    return number(divisor * _int(rng, 10, (10 ** (digits + 1) - 1) // divisor)), number(divisor)


def _choose(rng: Rng, *texts: str) -> str:
    return texts[int(rng.integers(len(texts)))]


def _pick(rng: Rng, *terms: Term) -> Term:
    return terms[int(rng.integers(len(terms)))]


def _thing(rng: Rng) -> str:
    return _choose(rng, *_THINGS)


def _box(rng: Rng) -> tuple[str, str]:
    return _BOXES[int(rng.integers(len(_BOXES)))]


def _aside(rng: Rng, place: str) -> str:
    """A sentence whose number does not matter."""
    count = _int(rng, 12, 98)
    return _choose(
        rng,
        f"The {place} is open {count} hours a week.",
        f"The {place} has been there for {count} years.",
        f"The {place} has house number {count}.",
    )


def _asked(question: str, term: Term, *, shown: bool = True) -> Question:
    """A question with a request to round where the answer has more than two decimals."""
    rounded = term.rounded()
    text = question.format(term.text) if shown else question
    return (f"{text}?" if rounded is term else f"{text}? Round to two decimals."), rounded
