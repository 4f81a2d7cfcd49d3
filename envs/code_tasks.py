"""Small data and string tasks that are solved by running Python.

Each task carries its answer, worked out here, and cells of Python that find it from what the question says. They are
written apart from each other, so that running the cells checks both.
"""

import heapq
import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from agentrl.envs.code_answers import (
    affine_power,
    largest_island,
    longest_rise,
    power_remainder,
    prime_sum,
    shortest_path,
)

Rng: TypeAlias = np.random.Generator

_WORDS = tuple(
    re.findall(
        r"\w+",
        """
    amber apple arrow basket beacon bottle branch bridge candle canyon carpet castle cellar circle cotton desert
    engine feather forest garden garlic glacier hammer harbor harvest island jacket kettle ladder lantern lemon
    marble meadow mirror needle orange orchard paper pebble pepper pillow planet pocket ribbon river saddle shadow
    silver spider summer table temple thunder ticket timber tunnel valley velvet violin window winter
    """,
    )
)
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon")
_TOWNS = ("Alby", "Borne", "Calder", "Dale")


class CodeTask(NamedTuple):
    """A question, its answer, and cells that find it one after the other.

    Example:
        CodeTask("What is the remainder of 37 to the power 480, divided by 1009?", 512, ("print(pow(37, 480, 1009))",))
    """

    question: str
    answer: int | str
    cells: tuple[str, ...]


def draw_code_task(rng: Rng, level: int) -> CodeTask:
    """A task of a level from 1 to 3."""
    makers = _LEVELS[level]
    return makers[int(rng.integers(len(makers)))](rng)


# Level 1: one built-in function or one line --------------------------------------------------------------------------


def _power(rng: Rng) -> CodeTask:
    base, exponent, modulus = _int(rng, 12, 999), _int(rng, 1000, 99999), _int(rng, 10_000, 999_999)
    question = f"What is the remainder of {base} to the power {exponent}, divided by {modulus}?"
    return CodeTask(question, power_remainder(base, exponent, modulus), (f"print(pow({base}, {exponent}, {modulus}))",))


def _digit_sum(rng: Rng) -> CodeTask:
    base, exponent = _int(rng, 12, 99), _int(rng, 100, 999)
    digits = str(base**exponent)
    answer = sum(value * digits.count(str(value)) for value in range(10))
    code = f"print(sum(int(digit) for digit in str({base} ** {exponent})))"
    return CodeTask(f"What is the sum of the digits of {base} to the power {exponent}?", answer, (code,))


def _letters(rng: Rng) -> CodeTask:
    words = _words(rng, _int(rng, 30, 45))
    letters = "".join(sorted(rng.choice(list("acdeilnorst"), 4, replace=False)))
    counts = Counter("".join(words))
    text = " ".join(words)
    question = f"How many letters of this text are one of {', '.join(letters)}?\n{text}"
    cells = (f"text = {text!r}", f"sum(letter in {letters!r} for letter in text)")
    return CodeTask(question, sum(counts[letter] for letter in letters), cells)


def _backwards(rng: Rng) -> CodeTask:
    text = " ".join(_words(rng, _int(rng, 5, 8)))
    letters = list(text)
    letters.reverse()
    return CodeTask(
        f"Write this text backwards, letter by letter: {text}", "".join(letters), (f"print({text!r}[::-1])",)
    )


def _sorted_words(rng: Rng) -> CodeTask:
    words = sorted(set(_words(rng, 40)), key=lambda _: rng.random())
    place = _int(rng, 5, len(words) - 5)
    by_length: dict[int, list[str]] = {}
    for word in words:
        by_length.setdefault(len(word), []).append(word)
    ordered = [word for length in sorted(by_length) for word in sorted(by_length[length])]
    question = (
        "Sort these words by length, the shortest first, and words of one length by the alphabet. "
        f"Which word is number {place}?\n{' '.join(words)}"
    )
    cells = (f"words = {' '.join(words)!r}.split()", f"print(sorted(words, key=lambda w: (len(w), w))[{place - 1}])")
    return CodeTask(question, ordered[place - 1], cells)


# Level 2: lists, tables, recurrences, ciphers ------------------------------------------------------------------------


def _sales(rng: Rng) -> CodeTask:
    rows = [
        (_one_of(rng, _NAMES[:4]), _one_of(rng, _WORDS[:4]), _int(rng, 3, 98), _int(rng, 11, 99)) for _ in range(24)
    ]
    seller, product = rows[0][0], rows[0][1]
    table = "\n".join(["seller,product,count,price", *(",".join(map(str, row)) for row in rows)])
    answer = sum(row[2] * row[3] for row in rows if row[:2] == (seller, product))
    question = f"How much money did {seller} take for the product {product}, that is count times price?\n{table}"
    code = (
        "import csv, io\n"
        f"rows = csv.DictReader(io.StringIO({table!r}))\n"
        f'mine = [r for r in rows if r["seller"] == {seller!r} and r["product"] == {product!r}]'
    )
    return CodeTask(question, answer, (code, 'print(sum(int(r["count"]) * int(r["price"]) for r in mine))'))


def _recurrence(rng: Rng) -> CodeTask:
    a, c, m, x = _int(rng, 11, 999), _int(rng, 11, 999), _int(rng, 10_007, 999_983), _int(rng, 1, 99)
    n = _int(rng, 300, 5000)
    # Closed form: x_n = a^n x + c (1 + a + ... + a^(n-1)), the sum by repeated squaring of the affine map.
    factor, offset = affine_power(a, c, n, m)
    question = (
        f"A sequence starts with x(0) = {x}, and x(n+1) is the remainder of {a} * x(n) + {c}, divided by {m}. "
        f"What is x({n})?"
    )
    cells = (f"x = {x}", f"for _ in range({n}):\n    x = ({a} * x + {c}) % {m}\nprint(x)")
    return CodeTask(question, (factor * x + offset) % m, cells)


def _cipher(rng: Rng) -> CodeTask:
    plain, shift = " ".join(_words(rng, _int(rng, 4, 7))), _int(rng, 3, 23)
    letters = string.ascii_lowercase
    secret = plain.translate(str.maketrans(letters, letters[shift:] + letters[:shift]))
    question = (
        f"In this text every letter was moved {shift} places forward in the alphabet, from z on to a. "
        f"What did it say before?\n{secret}"
    )
    code = f'print("".join(chr((ord(c) - 97 - {shift}) % 26 + 97) if c.isalpha() else c for c in secret))'
    return CodeTask(question, plain, (f"secret = {secret!r}", code))


def _largest(rng: Rng) -> CodeTask:
    numbers, k = [_int(rng, 100, 9999) for _ in range(40)], _int(rng, 5, 15)
    question = f"What is the sum of the {k} largest of these numbers?\n{_listed(numbers)}"
    cells = (f"numbers = {numbers}", f"print(sum(sorted(numbers)[-{k}:]))")
    return CodeTask(question, sum(heapq.nlargest(k, numbers)), cells)


def _primes(rng: Rng) -> CodeTask:
    low = _int(rng, 1000, 40_000)
    high = low + _int(rng, 500, 3000)
    question = f"What is the sum of all prime numbers from {low} to {high}?"
    code = "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))"
    cells = (code, f"print(sum(n for n in range({low}, {high} + 1) if is_prime(n)))")
    return CodeTask(question, prime_sum(low, high), cells)


# Level 3: joins and algorithms ---------------------------------------------------------------------------------------


def _join(rng: Rng) -> CodeTask:
    homes = {name: _one_of(rng, _TOWNS) for name in _NAMES}
    orders = [(_one_of(rng, _NAMES), _int(rng, 15, 980)) for _ in range(30)]
    totals = Counter({town: 0 for town in _TOWNS})
    for name, amount in orders:
        totals[homes[name]] += amount
    town = homes[orders[0][0]]
    question = (
        f"What do the orders of all customers from {town} add up to?\nCustomers: "
        f"{', '.join(f'{name} from {home}' for name, home in homes.items())}.\n"
        f"Orders: {', '.join(f'{name} {amount}' for name, amount in orders)}."
    )
    cells = (
        f"homes = {homes}\norders = {orders}",
        f"print(sum(amount for name, amount in orders if homes[name] == {town!r}))",
    )
    return CodeTask(question, totals[town], cells)


def _shortest_path(rng: Rng) -> CodeTask:
    nodes = string.ascii_uppercase[:12]
    order = [nodes[i] for i in rng.permutation(len(nodes))]
    pairs = {(min(pair), max(pair)) for pair in itertools.pairwise(order)}
    while len(pairs) < 22:
        a, b = (nodes[i] for i in sorted(rng.choice(len(nodes), 2, replace=False)))
        pairs.add((a, b))
    roads = [(a, b, _int(rng, 20, 400)) for a, b in sorted(pairs)]
    start, end = order[0], order[-1]
    question = (
        f"How long is the shortest way from {start} to {end} on these roads, which go both ways?\n"
        f"{', '.join(f'{a}-{b} {length}' for a, b, length in roads)}"
    )
    cells = (f"roads = {roads}", _BELLMAN_FORD.format(start=start, end=end))
    return CodeTask(question, shortest_path(roads, start, end), cells)


def _subsequence(rng: Rng) -> CodeTask:
    numbers = [_int(rng, 100, 999) for _ in range(60)]
    question = (
        "Numbers may be left out of this list, but not reordered. What is the greatest length of a list that is left "
        f"and strictly rises? Give it multiplied by {(factor := _int(rng, 113, 997))}.\n{_listed(numbers)}"
    )
    code = (
        "length = []\n"
        "for i, x in enumerate(numbers):\n"
        "    length.append(1 + max((length[j] for j in range(i) if numbers[j] < x), default=0))\n"
        f"print(max(length) * {factor})"
    )
    return CodeTask(question, longest_rise(numbers) * factor, (f"numbers = {numbers}", code))


def _regions(rng: Rng) -> CodeTask:
    rows = ["".join("#" if rng.random() < 0.45 else "." for _ in range(24)) for _ in range(10)]
    question = (
        "Squares with # that touch at a side belong to one island. How many squares does the largest island have, "
        f"multiplied by {(factor := _int(rng, 113, 997))}?\n" + "\n".join(rows)
    )
    cells = (f"rows = {rows}", _FLOOD_FILL.format(factor=factor))
    return CodeTask(question, largest_island(rows) * factor, cells)


def _machine(rng: Rng) -> CodeTask:
    lines, registers = [], {"a": _int(rng, 2, 9), "b": _int(rng, 2, 9), "c": _int(rng, 2, 9)}
    start = dict(registers)
    modulus = _int(rng, 10_007, 99_991)
    rounds = _int(rng, 20, 90)
    for _ in range(6):
        lines.append((_one_of(rng, ("add", "mul")), _one_of(rng, "abc"), _one_of(rng, "abc")))
    for _ in range(rounds):
        for operation, target, source in lines:
            value = (
                registers[target] + registers[source] if operation == "add" else registers[target] * registers[source]
            )
            registers[target] = value % modulus
    program = "\n".join(" ".join(line) for line in lines)
    question = (
        f"A machine has the registers {', '.join(f'{name} = {value}' for name, value in start.items())}. 'add x y' "
        f"adds y to x and 'mul x y' multiplies x by y; each then keeps the remainder of x divided by {modulus}. The "
        f"program runs {rounds} times from top to bottom. What is a + b + c at the end?\n{program}"
    )
    code = (
        f"for _ in range({rounds}):\n"
        "    for line in program.splitlines():\n"
        "        op, x, y = line.split()\n"
        f"        r[x] = (r[x] + r[y] if op == 'add' else r[x] * r[y]) % {modulus}\n"
        "print(sum(r.values()))"
    )
    return CodeTask(question, sum(registers.values()), (f"r = {start}\nprogram = {program!r}", code))


_BELLMAN_FORD = """best = {{"{start}": 0}}
for _ in range(12):
    for a, b, length in roads:
        for x, y in ((a, b), (b, a)):
            if x in best and best[x] + length < best.get(y, 10**9):
                best[y] = best[x] + length
print(best["{end}"])"""

_FLOOD_FILL = """land = {{(y, x) for y, row in enumerate(rows) for x, c in enumerate(row) if c == "#"}}
sizes = []
while land:
    todo, size = [land.pop()], 0
    while todo:
        y, x = todo.pop()
        size += 1
        for n in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if n in land:
                land.remove(n)
                todo.append(n)
    sizes.append(size)
print(max(sizes) * {factor})"""

_LEVELS: dict[int, tuple[Callable[[Rng], CodeTask], ...]] = {
    1: (_power, _digit_sum, _letters, _backwards, _sorted_words),
    2: (_sales, _recurrence, _cipher, _largest, _primes),
    3: (_join, _shortest_path, _subsequence, _regions, _machine),
}


# Numbers and words ---------------------------------------------------------------------------------------------------


def _int(rng: Rng, low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(rng.integers(low, high + 1))


def _one_of(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _words(rng: Rng, count: int) -> list[str]:
    return [_one_of(rng, _WORDS) for _ in range(count)]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
