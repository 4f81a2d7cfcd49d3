"""From the text of an expression to its tokens, numbers included."""

import enum
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from agentrl.tools.arithmetic import Number, checked
from agentrl.tools.calculator_bounds import MAX_BITS, CalculatorError
from agentrl.tools.real import rounded
from agentrl.tools.units import CURRENCY_SIGNS, UNITS, LeftOut, instead_of

MAX_CHARS = 1000

_SAME_AS = str.maketrans("×·⋅∙∗÷∕⁄−–—", "*****///---")  # noqa: RUF001 - look-alikes are the point
_MEANS = {"≤": "<=", "≥": ">=", "≠": "!=", "of": "*"}

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_REST = rf"(?:\.(?:{_DIGITS})?)?(?:[eE][+-]?{_DIGITS})?"
_RADIX = re.compile(r"0(?:[xX][0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|[bB][01]+(?:_[01]+)*|[oO][0-7]+(?:_[0-7]+)*)")
_GROUPED = re.compile(rf"[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+(?![0-9_]){_REST}")
_DECIMAL = re.compile(rf"{_DIGITS}{_REST}|\.{_DIGITS}(?:[eE][+-]?{_DIGITS})?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[πτ]")
_SYMBOL = re.compile(r"\*\*|//|<=|>=|==|!=|[-+*/%^(),<>!√≤≥≠]")
_GLUED = re.compile(r"[A-Za-z0-9_.πτ]+")
_OPENING = re.compile(r"\s*\(")
_AMOUNT = re.compile(r"\s*\.?[0-9]")
_SPACED_COMMA = re.compile(r"\s,|.,\s", re.DOTALL)
_MAX_PLACES = 1000
"""A number that begins further behind the point is rounded at once: as a fraction it would be too long."""
_FINAL_EQUALS = re.compile(r"=\s*\??\s*\Z")


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

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + len(self.text)


def tokenize(text: str) -> list[Token]:
    """Cuts an expression into tokens, with an END token behind them; a unit (see `units`) and a final "=" is no token.

    A comma is part of a number only as in `1,000`, and never directly inside the parentheses of a function call,
    where it separates arguments: `max(1,234)` is 234, `max((1,234), 2)` is 1234. A call that may mean either,
    such as `max(1,200, 3,400)`, is refused.

    Raises:
        CalculatorError: A character or a number cannot be read.
    """
    if len(text) > MAX_CHARS:
        raise CalculatorError(f"The expression has {len(text):,} characters; at most {MAX_CHARS:,} are allowed.")
    return _Lexer(text.translate(_SAME_AS)).tokens()


@dataclass(slots=True)
class _Call:
    """How commas are written between the arguments of one call."""

    grouped: str = ""
    """A pair that could be a number such as 1,200."""
    spaced: bool = False

    def refuse_if_ambiguous(self) -> None:
        if self.grouped and self.spaced:
            raise CalculatorError(
                f"{short(self.grouped)!r} could be one number or several: inside a call write "
                f"{short(self.grouped.replace(',', ''))} or {short(self.grouped.replace(',', ', '))}."
            )


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._tokens: list[Token] = []
        self._brackets: list[_Call | None] = []  # the open ones; None where they only group
        self._units = LeftOut()

    def tokens(self) -> list[Token]:
        while self._at < len(self._text):
            if self._text[self._at].isspace():
                self._at += 1
            else:
                self._read()
        return [*self._tokens, Token(TokenKind.END, "", len(self._text) + 1)]

    @property
    def _call(self) -> _Call | None:
        return self._brackets[-1] if self._brackets else None

    @property
    def _behind_a_value(self) -> bool:
        return bool(self._tokens) and (self._tokens[-1].kind is TokenKind.NUMBER or self._tokens[-1].text == ")")

    def _read(self) -> None:
        """The token, unit or equals sign that begins here."""
        character = self._text[self._at]
        if number := self._number():
            self._add(TokenKind.NUMBER, number, _value(number, in_call=self._call is not None))
        elif name := _NAME.match(self._text, self._at):
            self._name(name[0])
        elif character in CURRENCY_SIGNS:
            self._currency(character)
        elif symbol := _SYMBOL.match(self._text, self._at):
            self._symbol(symbol[0])
        elif final := _FINAL_EQUALS.match(self._text, self._at):
            self._at = final.end()
        elif character == "=":
            raise CalculatorError("'=' is not an operator; write == to compare.")
        else:
            raise CalculatorError(
                f"Unexpected character {character!r} at position {self._at + 1}.{instead_of(character)}"
            )

    def _add(self, kind: TokenKind, text: str, value: Number = 0) -> None:
        means = _MEANS.get(text, text) if kind is TokenKind.SYMBOL else text
        self._tokens.append(Token(kind, means, self._at + 1, value))
        self._at += len(text)

    def _number(self) -> str | None:
        grouped = _GROUPED.match(self._text, self._at)
        if grouped and self._call is not None:
            self._call.grouped = grouped[0]
            self._call.refuse_if_ambiguous()
            grouped = None
        number = _RADIX.match(self._text, self._at) or grouped or _DECIMAL.match(self._text, self._at)
        if number is None:
            return None
        glued = _GLUED.match(self._text, number.end())
        if glued and glued[0] not in UNITS:
            raise CalculatorError(f"{short(number[0] + glued[0])!r} is not a number; write * to multiply.")
        return number[0]

    def _name(self, name: str) -> None:
        end = self._at + len(name)
        if self._behind_a_value and not _OPENING.match(self._text, end):
            if name in UNITS:
                self._leave_out(name)
                return
            if hint := instead_of(name):
                raise CalculatorError(f"Unexpected {name!r} at position {self._at + 1}.{hint}")
        if name == "of" and self._tokens and self._tokens[-1].text == "%":
            self._add(TokenKind.SYMBOL, name)
        else:
            self._add(TokenKind.NAME, name)

    def _currency(self, sign: str) -> None:
        if not self._behind_a_value and not _AMOUNT.match(self._text, self._at + 1):
            raise CalculatorError(f"No number behind {sign!r} at position {self._at + 1}. Leave units out.")
        self._leave_out(sign)

    def _leave_out(self, unit: str) -> None:
        end = self._at + len(unit)
        self._units.leave_out(unit, behind=self._text[end:])
        self._at = end

    def _symbol(self, symbol: str) -> None:
        if symbol == "(":
            called = bool(self._tokens) and self._tokens[-1].kind is TokenKind.NAME
            self._brackets.append(_Call() if called else None)
        elif symbol == ")" and self._brackets:
            self._brackets.pop()
        elif symbol == ",":
            if self._call is None:
                raise CalculatorError("A comma stands only between arguments of a function, or in a number like 1,000.")
            self._call.spaced |= _SPACED_COMMA.match(self._text, self._at - 1) is not None
            self._call.refuse_if_ambiguous()
        self._add(TokenKind.SYMBOL, symbol)


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
    number = Decimal(f"{mantissa}e{int(exponent or 0)}")
    if number.adjusted() < -_MAX_PLACES:
        return rounded(number)
    return checked(Fraction(number)) if number else 0


def short(text: str) -> str:
    """A token as an error message repeats it."""
    return text if len(text) <= 20 else text[:17] + "..."
