"""The grammar of the calculator: from text to a small syntax tree, within bounds.

    comparison := sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)*
    sum        := product (("+" | "-") product)*
    product    := signed (("*" | "/" | "//" | "%") signed)*
    signed     := ("+" | "-") signed | power
    power      := postfix (("**" | "^") signed)?          -2^2 is -4, and 2^3^2 is 2^9
    postfix    := atom ("!" | "%")*                       "%" is percent where nothing follows that it could divide by
    atom       := NUMBER | NAME | NAME "(" comparison ("," comparison)* ")" | "(" comparison ")" | "√" atom

`!=` is always "not equal": write `5! == 120` with a space. "a% b", with a space only behind the sign, is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from agentrl.tools.arithmetic import Number
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.lexer import Token, TokenKind, short, tokenize

MAX_NODES = 200
MAX_DEPTH = 50

_LEVELS = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})
_POWERS = frozenset({"**", "^"})


@dataclass(frozen=True, slots=True)
class Literal:
    """A number as it was written, exact."""

    value: Number


@dataclass(frozen=True, slots=True)
class Constant:
    """A name that stands alone."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    name: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """A sign, a root, a factorial or a percentage: one of + - √ ! %."""

    symbol: str
    operand: "Node"


@dataclass(frozen=True, slots=True)
class Binary:
    """One of + - * / // % ^."""

    symbol: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain such as 1 < x <= 3, true if every link of it is."""

    first: "Node"
    links: tuple[tuple[str, "Node"], ...]


Node: TypeAlias = Literal | Constant | Call | Unary | Binary | Comparison


def parse(text: str) -> Node:
    """Reads an expression.

    Raises:
        CalculatorError: It does not follow the grammar, or is too long, too large or too deep.
    """
    return _Parser(tokenize(text)).parse()


class _Parser:
    """Recursive descent, with the binary operators by precedence climbing."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._num_nodes = 0

    def parse(self) -> Node:
        if self._at_end:
            raise CalculatorError("The expression is empty.")
        node = self._comparison()
        if not self._at_end:
            raise self._unexpected()
        return node

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    @property
    def _at_end(self) -> bool:
        return self._token.kind is TokenKind.END

    @property
    def _symbol(self) -> str | None:
        """The symbol that comes next, or None."""
        return self._token.text if self._token.kind is TokenKind.SYMBOL else None

    def _advance(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1].text

    def _expect(self, symbol: str) -> None:
        if self._at_end:
            raise CalculatorError(f"A {symbol!r} is missing at the end.")
        if self._symbol != symbol:
            raise self._unexpected()
        self._advance()

    def _unexpected(self) -> CalculatorError:
        token = self._token
        if self._at_end:
            return CalculatorError("The expression ends too early.")
        if self._starts_atom(token):
            hint = " Write * to multiply, and leave words out." if token.kind is TokenKind.NAME else ""
            return CalculatorError(
                f"An operator is missing before {short(token.text)!r} at position {token.position}.{hint}"
            )
        return CalculatorError(f"Unexpected {token.text!r} at position {token.position}.")

    @staticmethod
    def _starts_atom(token: Token) -> bool:
        return token.kind in (TokenKind.NUMBER, TokenKind.NAME) or token.text in ("(", "√")

    @contextmanager
    def _nested(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculatorError(f"The expression is nested more than {MAX_DEPTH} levels deep.")
        yield
        self._depth -= 1

    def _made(self, node: Node) -> Node:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise CalculatorError(f"The expression has more than {MAX_NODES} numbers and operators.")
        return node

    def _comparison(self) -> Node:
        first = self._binary(1)
        links: list[tuple[str, Node]] = []
        while self._symbol in _COMPARISONS:
            links.append((self._advance(), self._binary(1)))
        return self._made(Comparison(first, tuple(links))) if links else first

    def _binary(self, level: int) -> Node:
        """Operators of at least this level, which bind to the left."""
        left = self._signed()
        while self._symbol is not None and _LEVELS.get(self._symbol, 0) >= level:
            if self._symbol == "%":
                self._refuse_percent_before_number()
            symbol = self._advance()
            left = self._made(Binary(symbol, left, self._binary(_LEVELS[symbol] + 1)))
        return left

    def _refuse_percent_before_number(self) -> None:
        """`20% 50` is written like a percentage, but a number follows: 20% of 50, or the remainder?"""
        before, sign, behind = self._tokens[self._next - 1 : self._next + 2]
        if before.end == sign.position and sign.end < behind.position:
            raise CalculatorError(
                f"'%' at position {sign.position} could mean two things: write 'a % b' for the remainder, "
                "or 'a% of b' for a percentage."
            )

    def _signed(self) -> Node:
        if self._symbol in ("+", "-"):
            with self._nested():
                return self._made(Unary(self._advance(), self._signed()))
        base = self._postfix()
        if self._symbol not in _POWERS:
            return base
        self._advance()
        with self._nested():
            return self._made(Binary("^", base, self._signed()))

    def _postfix(self) -> Node:
        node = self._atom()
        while self._symbol == "!" or (self._symbol == "%" and not self._starts_atom(self._tokens[self._next + 1])):
            symbol = self._advance()
            if symbol == "!" == self._symbol:
                raise CalculatorError("'!!' could mean two things; write (n!)! for the factorial of a factorial.")
            node = self._made(Unary(symbol, node))
        return node

    def _atom(self) -> Node:
        token = self._token
        if not self._starts_atom(token):
            raise self._unexpected()
        self._advance()
        if token.kind is TokenKind.NUMBER:
            return self._made(Literal(token.value))
        if token.kind is TokenKind.NAME and self._symbol != "(":
            return self._made(Constant(token.text))
        with self._nested():
            if token.text == "√":
                return self._made(Unary("√", self._atom()))
            if token.kind is TokenKind.NAME:
                return self._made(Call(token.text, self._arguments()))
            node = self._comparison()
            self._expect(")")
            return node

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        if self._symbol == ")":
            self._advance()
            return ()
        arguments = [self._comparison()]
        while self._symbol == ",":
            self._advance()
            arguments.append(self._comparison())
        self._expect(")")
        return tuple(arguments)
