"""The calculator: a tool, and the function behind it."""

import difflib

from agentrl.tools import arithmetic
from agentrl.tools import calculator_work as work
from agentrl.tools.arithmetic import Number
from agentrl.tools.calculator_bounds import Budget, CalculatorError
from agentrl.tools.expression import Binary, Call, Comparison, Constant, Literal, Node, Unary, parse
from agentrl.tools.function import tool
from agentrl.tools.lexer import short
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS
from agentrl.tools.number_text import format_number
from agentrl.tools.units import UNITS

_OPERATORS = {
    "+": arithmetic.add,
    "-": arithmetic.subtract,
    "*": arithmetic.multiply,
    "/": arithmetic.divide,
    "//": arithmetic.floor_divide,
    "%": arithmetic.modulo,
    "^": arithmetic.power,
}


def calculate(expression: str, budget: Budget | None = None) -> Number | bool:
    """The value of an expression; see `evaluate`.

    Args:
        expression: At most 1,000 characters.
        budget: What it may cost; by default `MAX_WORK`.

    Returns:
        A bool for a comparison; otherwise int or Fraction where the value is exact, and Real where it is rounded.

    Raises:
        CalculatorError: The expression has no value.
    """
    try:
        return _Evaluation(budget or Budget()).value(parse(expression))
    except RecursionError:  # the caller's own stack is nearly full
        raise CalculatorError("The expression is nested too deeply.") from None


def evaluate(expression: str) -> str:
    """Calculates an expression with a parser of its own: no `eval`, no attributes, bounded in size and time.

    Numbers are exact as long as they are rational, so that 0.1 + 0.2 is 0.3 and sqrt(16) is 4. From the first
    irrational function on they have 50 digits with a known error, of which 12 are shown, or fewer where fewer are
    certain; what cannot be told from a whole number is one, so that sqrt(2)**2 is 2. `^` is a power like `**`,
    `round` takes halves away from zero, `log` is natural, angles are in radians.

    | percent          | means                                                    | here      |
    |------------------|----------------------------------------------------------|-----------|
    | 15%              | 15 / 100                                                 | 0.15      |
    | 15% * 80         | the same times 80                                        | 12        |
    | 15% of 80        | the same times 80                                        | 12        |
    | 1 + 5%           | 1.05, whichever way it is read                           | 1.05      |
    | 10% + 5%         | a sum of percentages                                     | 0.15      |
    | 200 + 10%        | 200.1, or 220 on a pocket calculator                     | refused   |
    | 200 * (1 + 10%)  | 10% more                                                 | 220       |
    | 7 % 3, 7%3       | the remainder, as a number follows                       | 1         |
    | 20% 50           | a percentage or a remainder                              | refused   |

    Units are left out where the value cannot depend on them: `$1,200 * 3` and `3 kg * 4` are accepted, two units in
    one expression (`12 km / 3 h`, `3 km + 500 m`) and a power of a unit (`3 cm^2`) are not. A final "=" or "= ?" is
    left out, too. The error says what to write instead.

    >>> evaluate("2^10 + 5!"), evaluate("1/3"), evaluate("15% of 80"), evaluate("$1,000 < $999"), evaluate("sqrt(2)")
    ('1144', '1/3 = 0.333333333333', '12', 'False', '1.41421356237')

    Raises:
        CalculatorError: The expression has no value, or is beyond a limit; nothing else is raised.
    """
    value = calculate(expression)
    return str(value) if isinstance(value, bool) else format_number(value)


@tool(idempotent=True, inline=True)
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: For example "(3 + 4) * 2^5", "sqrt(2)", "15% * 80" or "comb(10, 3)".
    """
    return evaluate(expression)


class _Evaluation:
    """Walks the tree of one expression, and pays for every operation before it is computed."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def value(self, node: Node) -> Number | bool:
        return self._holds(node) if isinstance(node, Comparison) else self._number(node)

    def _number(self, node: Node) -> Number:
        match node:
            case Literal(value):
                return value
            case Constant(name):
                return _constant(name)
            case Unary(symbol, operand):
                return self._unary(symbol, self._number(operand))
            case Binary(symbol, left, right):
                return self._binary(node, self._number(left), self._number(right))
            case Call(name, arguments):
                return self._called(name, [self._number(argument) for argument in arguments])
            case Comparison():
                raise CalculatorError("A comparison is true or false; it cannot be calculated with.")

    def _holds(self, node: Comparison) -> bool:
        left = self._number(node.first)
        holds = True
        for symbol, operand in node.links:
            right = self._number(operand)
            self._budget.spend(work.of_operator(symbol, left, right))
            holds &= _compares(symbol, arithmetic.compare(left, right))
            left = right
        return holds

    def _unary(self, symbol: str, value: Number) -> Number:
        match symbol:
            case "-":
                return -value
            case "!":
                return self._called("factorial", [value])
            case "%":
                self._budget.spend(work.of_operator("/", value, 100))
                return arithmetic.divide(value, 100)
            case "√":
                return self._called("sqrt", [value])
            case _:
                return value

    def _binary(self, node: Binary, left: Number, right: Number) -> Number:
        if node.symbol in ("+", "-") and _is_percentage(node.right) and not _is_percentage(node.left) and left != 1:
            raise CalculatorError(
                f"'a {node.symbol} b%' could mean two things: write a * (1 {node.symbol} b%) for a share of a, "
                f"or a {node.symbol} b / 100."
            )
        self._budget.spend(work.of_operator(node.symbol, left, right))
        return _OPERATORS[node.symbol](left, right)

    def _called(self, name: str, arguments: list[Number]) -> Number:
        key = name.lower()
        if key in CONSTANTS:
            raise CalculatorError(f"{key} is a constant, not a function.")
        if key not in FUNCTIONS:
            raise CalculatorError(f"Unknown function {short(name)!r}.{_suggestion(key, list(FUNCTIONS))}")
        function = FUNCTIONS[key]
        if not function.accepts(len(arguments)):
            raise CalculatorError(f"{key} takes {function.arity}, got {len(arguments)}.")
        self._budget.spend(function.work(arguments))
        return function.compute(*arguments)


def _is_percentage(node: Node) -> bool:
    """Whether a part of an expression is written as a percentage, or as a sum of them."""
    match node:
        case Unary(symbol, operand):
            return symbol == "%" or (symbol in "+-" and _is_percentage(operand))
        case Binary(symbol, left, right):
            return symbol in "+-" and _is_percentage(left) and _is_percentage(right)
        case _:
            return False


def _compares(symbol: str, order: int) -> bool:
    """Whether a comparison holds for operands that are less (-1), equal (0) or greater (1)."""
    match symbol:
        case "<":
            return order < 0
        case "<=":
            return order <= 0
        case ">":
            return order > 0
        case ">=":
            return order >= 0
        case "==":
            return order == 0
        case _:
            return order != 0


def _constant(name: str) -> Number:
    key = name.lower()
    if key in FUNCTIONS:
        raise CalculatorError(f"{key} is a function: write {key}(...).")
    if key not in CONSTANTS:
        hint = " Leave units out." if name in UNITS else _suggestion(key, [*CONSTANTS, *FUNCTIONS])
        raise CalculatorError(f"Unknown name {short(name)!r}.{hint}")
    return CONSTANTS[key]


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
