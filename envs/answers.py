r"""The final answer in a text, and the number in an answer.

One rule finds the final answer, for every environment and reward: the content of the last `\boxed{...}`; else of the
last `<answer>...</answer>`; else what follows the last "answer:" or "answer is" in its line; else the whole text.
Everything here takes time linear in the text, because the text is the model's.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agentrl.errors import DataError

_ANSWER_TAG = re.compile(r"</?answer>")
_ANSWER_WORDS = re.compile(r"\banswer\**\s*(?::|is\b\s*:?)(?:\*\*(?=\s))?", re.IGNORECASE)
_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_QUOTES = ("**", "`", "$", '"', "'")

_BODY = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>(?<![)\]}}])[-+\N{{MINUS SIGN}}])?\$?(?P<body>{_BODY})(?:[eE](?P<exponent>[-+]?\d+))?"
    rf"(?:\s*/\s*(?P<divisor>{_BODY}))?(?P<percent>\s*\\?%|\s+percent\b)?"
)
_FRACTION = re.compile(r"(?P<before>\w)?\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d)")
_MAX_DIGITS = 400
"""A number with more digits, or a larger exponent, is read as none: exact arithmetic with it could take for ever."""

TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it was written.

    Example:
        "12.5 %" is Quantity(value=Fraction(1, 8), percent=True)
    """

    value: Fraction
    percent: bool = False

    def equals(self, gold: "Quantity") -> bool:
        """Whether this is the reference number, within a tolerance.

        The difference may be 1e-6 where the reference is a whole number, and else 1e-6 of it. Where only one of the
        two carries a percent sign, 15 % stands for 15 as well as for 0.15.
        """
        if self.percent == gold.percent:
            return _close(self.value, gold.value)
        factors = (1, 100)
        mine, theirs = (factors if quantity.percent else (1,) for quantity in (self, gold))
        return any(_close(self.value * x, gold.value * y) for x in mine for y in theirs)


def extract_answer(text: str) -> str:
    r"""The final answer in the text of a turn, by the rule at the top of this module.

    >>> extract_answer("So 6 * 7 = 42, and the answer is **42**."), extract_answer(r"Thus \boxed{\frac{1}{2}}.")
    ('42', '\\frac{1}{2}')
    """
    marked = boxed_contents(text) or tagged_contents(text)
    if marked:
        return clean_answer(marked[-1])
    words = list(_ANSWER_WORDS.finditer(text))
    if words:
        following = text[words[-1].end() :].strip()
        return clean_answer(following.split("\n", 1)[0])
    return clean_answer(text)


def boxed_contents(text: str) -> list[str]:
    r"""What stands in each `\boxed{...}` with balanced braces, in order; one inside of another does not count."""
    opened: list[int | None] = []
    spans: list[tuple[int, int]] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, brace.start()))
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0].startswith("\\boxed"):
            opened.append(brace.end())
    return [text[start:end].strip() for start, end in spans]


def tagged_contents(text: str) -> list[str]:
    """What stands in each `<answer>...</answer>`, in order."""
    contents: list[str] = []
    start: int | None = None
    for tag in _ANSWER_TAG.finditer(text):
        if tag[0] == "<answer>":
            start = tag.end()
        elif start is not None:
            contents.append(text[start : tag.start()].strip())
            start = None
    return contents


def clean_answer(text: str) -> str:
    """An answer without what is often put around it: white space, quotes, bold type, math signs, a full stop.

    >>> clean_answer(" '**Paris**'. ")
    'Paris'
    """
    for _ in range(len(_QUOTES)):
        text = text.strip()
        if len(text) > 1 and text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        around = [q for q in _QUOTES if len(text) > 2 * len(q) and text.startswith(q) and text.endswith(q)]
        if not around:
            break
        text = text[len(around[0]) : -len(around[0])]
    return text


def last_number(text: str) -> Quantity | None:
    r"""The last number in a text; None if there is none.

    Thousands are separated by commas. Decimals, powers of ten (`1.5e3`), fractions (`3/4`, `\frac{3}{4}`) and percent
    are read; digits that belong to a word (`B12`) are not.

    >>> last_number("1,234.50 euros"), last_number("It fell by 3/8 percent")
    (Quantity(value=Fraction(2469, 2), percent=False), Quantity(value=Fraction(3, 800), percent=True))
    """
    plain = _FRACTION.sub(_slashed, _THOUSANDS.sub(",", text))
    matches = reversed(list(_NUMBER.finditer(plain)))
    return next((quantity for match in matches if (quantity := _read(match)) is not None), None)


def reference_number(gold: Any) -> Quantity:
    """The number that a reference answer is.

    Raises:
        DataError: It is no number.
    """
    if isinstance(gold, int | float | str) and not isinstance(gold, bool):
        quantity = last_number(str(gold))
        if quantity is not None:
            return quantity
    raise DataError(f"A number was expected as the reference answer, got {gold!r}.")


def _slashed(match: re.Match[str]) -> str:
    r"""`\frac{3}{8}` as 3/8; apart from a digit before it, but not from a sign."""
    return f"{match['before'] + ' ' if match['before'] else ''}{match[2]}/{match[3]}"


def _read(match: re.Match[str]) -> Quantity | None:
    if len(match[0]) > _MAX_DIGITS or abs(int(match["exponent"] or 0)) > _MAX_DIGITS:
        return None
    value = _fraction(match["body"]) * Fraction(10) ** int(match["exponent"] or 0)
    if match["divisor"]:
        divisor = _fraction(match["divisor"])
        if not divisor:
            return None
        value /= divisor
    if match["sign"] not in (None, "+"):
        value = -value
    return Quantity(value / 100, True) if match["percent"] else Quantity(value)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _close(value: Fraction, gold: Fraction) -> bool:
    scale = 1 if gold.denominator == 1 else abs(gold)
    return abs(value - gold) <= TOLERANCE * scale
