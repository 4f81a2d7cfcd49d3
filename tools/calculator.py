"""The calculator: a tool, and the function behind it."""

import difflib

from agentrl.tools import arithmetic
from agentrl.tools.arithmetic import CalculatorError, Number
from agentrl.tools.expression import Binary, Call, Comparison, Constant, Literal, Node, Unary, parse
from agentrl.tools.function import tool
from agentrl.tools.lexer import short
from agentrl.tools.math_functions import CONSTANTS, FUNCTIONS, factorial, square_root
from agentrl.tools.number_text import format_number

_OPERATORS = {
    "+": arithmetic.add,
    "-": arithmetic.subtract,
    "*": arithmetic.multiply,
    "/": arithmetic.divide,
    "//": arithmetic.floor_divide,
    "%": arithmetic.modulo,
    "^": arithmetic.power,
}


def calculate(expression: str) -> Number | bool:
    """The value of an expression; see `evaluate`.

    Returns:
        A bool for a comparison; otherwise int or Fraction where the value is exact, and float where it is not.

    Raises:
        CalculatorError: The expression has no value.
    """
    try:
        return _value(parse(expression))
    except RecursionError:  # the caller's own stack is nearly full
        raise CalculatorError("The expression is nested too deeply.") from None


def evaluate(expression: str) -> str:
    """Calculates an expression with a parser of its own: no `eval`, no attributes, bounded in size and time.

    Decimal literals are exact, so that 0.1 + 0.2 is 0.3. `^` is a power like `**`, `%` is the remainder or, with
    nothing behind it, percent; `round` takes halves away from zero; `log` is natural.

    >>> evaluate("2^10 + 5!"), evaluate("1/3"), evaluate("15% * 80"), evaluate("1,000 < 999")
    ('1144', '1/3 = 0.333333333333', '12', 'False')

    Raises:
        CalculatorError: The expression has no value, or is beyond a limit; nothing else is raised.
    """
    value = calculate(expression)
    return str(value) if isinstance(value, bool) else format_number(value)


@tool(inline=True)
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: For example "(3 + 4) * 2^5", "sqrt(2)", "15% * 80" or "comb(10, 3)".
    """
    return evaluate(expression)


def _value(node: Node) -> Number | bool:
    if isinstance(node, Comparison):
        return _holds(node)
    return _number(node)


def _number(node: Node) -> Number:
    match node:
        case Literal(value):
            return value
        case Constant(name):
            return _constant(name)
        case Unary(symbol, operand):
            return _unary(symbol, _number(operand))
        case Binary(symbol, left, right):
            return _OPERATORS[symbol](_number(left), _number(right))
        case Call(name, arguments):
            return _called(name, [_number(argument) for argument in arguments])
        case Comparison():
            raise CalculatorError("A comparison is true or false; it cannot be calculated with.")


def _holds(node: Comparison) -> bool:
    left = _number(node.first)
    holds = True
    for symbol, operand in node.links:
        right = _number(operand)
        holds &= _compares(symbol, arithmetic.compare(left, right))
        left = right
    return holds


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


def _unary(symbol: str, value: Number) -> Number:
    match symbol:
        case "-":
            return -value
        case "!":
            return factorial(value)
        case "%":
            return arithmetic.divide(value, 100)
        case "√":
            return square_root(value)
        case _:
            return value


def _constant(name: str) -> Number:
    key = name.lower()
    if key in FUNCTIONS:
        raise CalculatorError(f"{key} is a function: write {key}(...).")
    if key not in CONSTANTS:
        raise CalculatorError(f"Unknown name {short(name)!r}.{_suggestion(key, [*CONSTANTS, *FUNCTIONS])}")
    return CONSTANTS[key]


def _called(name: str, arguments: list[Number]) -> Number:
    key = name.lower()
    if key in CONSTANTS:
        raise CalculatorError(f"{key} is a constant, not a function.")
    if key not in FUNCTIONS:
        raise CalculatorError(f"Unknown function {short(name)!r}.{_suggestion(key, list(FUNCTIONS))}")
    function = FUNCTIONS[key]
    if not function.accepts(len(arguments)):
        raise CalculatorError(f"{key} takes {function.arity}, got {len(arguments)}.")
    return arithmetic.checked(function.compute(*arguments))


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
