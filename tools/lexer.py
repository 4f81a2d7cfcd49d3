"""From the text of an expression to its tokens, numbers included."""

import enum
import re
from dataclasses import dataclass
from fractions import Fraction

from agentrl.tools.arithmetic import MAX_BITS, CalculatorError, Exact, Number, checked

MAX_CHARS = 1000

_SAME_AS = str.maketrans("×·⋅∙∗÷∕⁄−–—", "*****///---")  # noqa: RUF001 - look-alikes are the point
_COMPARISONS = {"≤": "<=", "≥": ">=", "≠": "!="}

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_REST = rf"(?:\.(?:{_DIGITS})?)?(?:[eE][+-]?{_DIGITS})?"
_RADIX = re.compile(r"0(?:[xX][0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|[bB][01]+(?:_[01]+)*|[oO][0-7]+(?:_[0-7]+)*)")
_GROUPED = re.compile(rf"[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+(?![0-9_]){_REST}")
_DECIMAL = re.compile(rf"{_DIGITS}{_REST}|\.{_DIGITS}(?:[eE][+-]?{_DIGITS})?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[πτ]")
_SYMBOL = re.compile(r"\*\*|//|<=|>=|==|!=|[-+*/%^(),<>!√≤≥≠]")
_GLUED = re.compile(r"[A-Za-z0-9_.πτ]+")


class TokenKind(enum.Enum):
    """What a token is."""

    NUMBER = enum.auto()
    NAME = enum.auto()
    SYMBOL = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class Token:
    """One word of an expression.

    Example:
        Token(TokenKind.NUMBER, "1,000", position=1, value=1000)
    """

    kind: TokenKind
    text: str
    position: int
    """Counted from 1."""
    value: Number = 0
    """Of a number."""


def tokenize(text: str) -> list[Token]:
    """Cuts an expression into tokens, with an END token behind them.

    A comma is part of a number only as in `1,000`, and never directly inside the parentheses of a function call,
    where it separates arguments: `max(1,000)` is an error, `max((1,000), 2)` is 1000.

    Raises:
        CalculatorError: A character or a number cannot be read.
    """
    if len(text) > MAX_CHARS:
        raise CalculatorError(f"The expression has {len(text):,} characters; at most {MAX_CHARS:,} are allowed.")
    text = text.translate(_SAME_AS)
    tokens: list[Token] = []
    calls: list[bool] = []  # for each open parenthesis: does it hold the arguments of a call?
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        token, position = _token_at(text, position, in_call=bool(calls) and calls[-1])
        if token.text == "(":
            calls.append(bool(tokens) and tokens[-1].kind is TokenKind.NAME)
        elif token.text == ")" and calls:
            calls.pop()
        tokens.append(token)
    return [*tokens, Token(TokenKind.END, "", len(text) + 1)]


def _token_at(text: str, start: int, *, in_call: bool) -> tuple[Token, int]:
    """The token that begins at an index, and the index behind it."""
    number = (
        _RADIX.match(text, start) or (None if in_call else _GROUPED.match(text, start)) or _DECIMAL.match(text, start)
    )
    if number:
        glued = _GLUED.match(text, number.end())
        if glued:
            raise CalculatorError(f"{short(number[0] + glued[0])!r} is not a number; write * to multiply.")
        return Token(TokenKind.NUMBER, number[0], start + 1, _value(number[0], in_call=in_call)), number.end()
    if name := _NAME.match(text, start):
        return Token(TokenKind.NAME, name[0], start + 1), name.end()
    if text[start] == "," and not in_call:
        raise CalculatorError("A comma stands only between arguments of a function, or in a number like 1,000.")
    if symbol := _SYMBOL.match(text, start):
        return Token(TokenKind.SYMBOL, _COMPARISONS.get(symbol[0], symbol[0]), start + 1), symbol.end()
    if text[start] == "=":
        raise CalculatorError("'=' is not an operator; write == to compare.")
    raise CalculatorError(f"Unexpected character {text[start]!r} at position {start + 1}.")


def _value(text: str, *, in_call: bool) -> Number:
    """The exact value of a number token."""
    digits = text.replace(",", "").replace("_", "").lower()
    if digits[:2] in ("0x", "0b", "0o"):
        return int(digits, 0)
    if re.match("0[0-9]", digits):
        hint = " Inside a call a comma separates arguments." if in_call else ""
        raise CalculatorError(f"The number {short(text)!r} begins with a zero.{hint}")
    mantissa, _, exponent = digits.partition("e")
    # A mantissa has at most 1000 digits: beyond this exponent the number is too long whatever its digits are.
    if exponent and abs(int(exponent)) > MAX_BITS:
        raise CalculatorError(f"The number {short(text)!r} is out of range.")
    value: Exact = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
    return checked(value)


def short(text: str) -> str:
    """A token as an error message repeats it."""
    return text if len(text) <= 20 else text[:17] + "..."
