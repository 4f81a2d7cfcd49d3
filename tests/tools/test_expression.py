"""What the grammar of the calculator accepts, how it groups, and where it stops."""

from fractions import Fraction

import pytest

from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.expression import (
    MAX_DEPTH,
    MAX_NODES,
    Binary,
    Call,
    Comparison,
    Constant,
    Literal,
    Node,
    Unary,
    parse,
)
from agentrl.tools.lexer import MAX_CHARS, tokenize


def show(node: Node) -> str:
    """A tree with all its parentheses."""
    match node:
        case Literal(value):
            return str(value)
        case Constant(name):
            return name
        case Call(name, arguments):
            return f"{name}({', '.join(map(show, arguments))})"
        case Unary(symbol, operand):
            return f"({show(operand)}{symbol})" if symbol in "!%" else f"({symbol}{show(operand)})"
        case Binary(symbol, left, right):
            return f"({show(left)}{symbol}{show(right)})"
        case Comparison(first, links):
            return "".join([show(first), *(f" {symbol} {show(operand)}" for symbol, operand in links)])


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1+2*3", "(1+(2*3))"),
        ("1-2-3", "((1-2)-3)"),
        ("8/4/2*3", "(((8/4)/2)*3)"),
        ("7//2%3", "((7//2)%3)"),
        ("2^3^2", "(2^(3^2))"),
        ("2**3**2", "(2^(3^2))"),
        ("-2^2", "(-(2^2))"),
        ("2^-1", "(2^(-1))"),
        ("2^-2^2", "(2^(-(2^2)))"),
        ("- -5+ +3", "((-(-5))+(+3))"),
        ("-3!", "(-(3!))"),
        ("2^3!", "(2^(3!))"),
        ("√9!", "((√9)!)"),
        ("√4^2", "((√4)^2)"),
        ("√(1+3)", "(√(1+3))"),
        ("(1+2)*3", "((1+2)*3)"),
        ("50%", "(50%)"),
        ("50%%", "((50%)%)"),
        ("50% - 20", "((50%)-20)"),
        ("2*50%+1", "((2*(50%))+1)"),
        ("max(5%, 3)", "max((5%), 3)"),
        ("(5%)", "(5%)"),
        ("10%3", "(10%3)"),
        ("10 % (3)", "(10%3)"),
        ("10 % pi", "(10%pi)"),
        ("10%3%", "(10%(3%))"),
        ("10%(3)", "(10%3)"),
        ("10 %3", "(10%3)"),
        ("15% of 200", "((15%)*200)"),
        ("15 % of (2+3)", "((15%)*(2+3))"),
        ("10% of 50% of 80", "(((10%)*(50%))*80)"),
        ("3+4=", "(3+4)"),
        ("3+4 = ? ", "(3+4)"),
        ("1<2<=3", "1 < 2 <= 3"),
        ("1+1 == 2 != 3", "(1+1) == 2 != 3"),
        ("5! == 120", "(5!) == 120"),
        ("5!=120", "5 != 120"),
        ("log(8, 2)", "log(8, 2)"),
        ("f()", "f()"),
        ("5 − 3 × 2 ÷ 4·π", "(5-(((3*2)/4)*π))"),  # noqa: RUF001 - look-alikes are the point
        ("1≤2≥3≠4", "1 <= 2 >= 3 != 4"),
        (" 1\t+\u00a02\n", "(1+2)"),
    ],
)
def test_grouping(text: str, tree: str) -> None:
    assert show(parse(text)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("00" + "1", None),
        ("0e9999", 0),
        ("0.000e-9999", 0),
        ("1e-900", Fraction(1, 10**900)),
        ("1_000", 1000),
        ("1,000", 1000),
        ("12,345,678.5", Fraction(24691357, 2)),
        ("1,000e-3", 1),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("0.1", Fraction(1, 10)),
        ("1.5e+3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("0e99", 0),
        ("0xFF", 255),
        ("0b1_01", 5),
        ("0o17", 15),
        ("1e3010", 10**3010),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction | int | None) -> None:
    if value is None:
        with pytest.raises(CalculatorError, match="begins with a zero"):
            tokenize(text)
    else:
        assert tokenize(text)[0].value == value
        assert len(tokenize(text)) == 2


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("max(1,234)", "max(1, 234)"),
        ("max(1,234,567)", "max(1, 234, 567)"),
        ("max((1,234), 5)", "max(1234, 5)"),
        ("(1,234)", "1234"),
        ("max(1, 2) + 1,234", "(max(1, 2)+1234)"),
        ("max(2*(1,234), min(1,234))", "max((2*1234), min(1, 234))"),
        ("gcd(12,180,24)", "gcd(12, 180, 24)"),
        ("max(12, (1,800))", "max(12, 1800)"),
        ("max(1,200)+max(1, 2)", "(max(1, 200)+max(1, 2))"),
    ],
)
def test_inside_a_call_a_comma_separates(text: str, tree: str) -> None:
    assert show(parse(text)) == tree


MISSING = "An operator is missing before {!r} at position {}. Write * to multiply, and leave words out."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The expression is empty."),
        (" ", "The expression is empty."),
        ("1+", "The expression ends too early."),
        ("(1", "A ')' is missing at the end."),
        ("max(1", "A ')' is missing at the end."),
        ("1)", "Unexpected ')' at position 2."),
        ("*1", "Unexpected '*' at position 1."),
        ("1<<2", "Unexpected '<' at position 3."),
        ("()", "Unexpected ')' at position 2."),
        ("1 2", "An operator is missing before '2' at position 3."),
        ("2(3)", "An operator is missing before '(' at position 2."),
        ("3 of 4", MISSING.format("of", 3)),
        (
            "20% 50",
            "'%' at position 3 could mean two things: write 'a % b' for the remainder, or 'a% of b' for a percentage.",
        ),
        ("2pi", "'2pi' is not a number; write * to multiply."),
        ("1.2.3", "'1.2.3' is not a number; write * to multiply."),
        ("0x", "'0x' is not a number; write * to multiply."),
        ("1__0", "'1__0' is not a number; write * to multiply."),
        ("1,00", "A comma stands only between arguments of a function, or in a number like 1,000."),
        ("1,2345", "A comma stands only between arguments of a function, or in a number like 1,000."),
        ("1000,000", "A comma stands only between arguments of a function, or in a number like 1,000."),
        ("max(1,000)", "The number '000' begins with a zero. Inside a call a comma separates arguments."),
        ("max(1,)", "Unexpected ')' at position 7."),
        ("1e99999", "The number '1e99999' is out of range."),
        ("1e-" + "9" * 500, "The number '1e-99999999999999...' is out of range."),
        ("1e3011", "The result is too large: more than 3,010 digits."),
        ("1e-3011", "The result is too close to 0: less than 10^-3,010."),
        ("1 " + "y" * 900, MISSING.format("yyyyyyyyyyyyyyyyy...", 3)),
        ("x = 4", "'=' is not an operator; write == to compare."),
        ("3+4=7", "'=' is not an operator; write == to compare."),
        ("= 7", "'=' is not an operator; write == to compare."),
        ("3!!", "'!!' could mean two things; write (n!)! for the factorial of a factorial."),
        ("max(1,200, 900)", "'1,200' could be one number or several: inside a call write 1200 or 1, 200."),
        ("max(900, 1,200)", "'1,200' could be one number or several: inside a call write 1200 or 1, 200."),
        ("max(900 ,1,200)", "'1,200' could be one number or several: inside a call write 1200 or 1, 200."),
        ("'a'", 'Unexpected character "\'" at position 1.'),
        ("a.b", "Unexpected character '.' at position 2."),
        ("a[0]", "Unexpected character '[' at position 2."),
        ("[x for x in y]", "Unexpected character '[' at position 1."),
        ("lambda: 1", "Unexpected character ':' at position 7."),
        ("\u0661+1", "Unexpected character '\u0661' at position 1."),  # an Arabic digit one
        ("\ud800", "Unexpected character '\\ud800' at position 1."),
    ],
)
def test_syntax_errors_are_short_and_say_where(text: str, message: str) -> None:
    with pytest.raises(CalculatorError) as caught:
        parse(text)
    assert str(caught.value) == message


def sum_of(num_nodes: int) -> str:
    """An expression with an odd number of nodes: n numbers and n - 1 additions."""
    return "+".join(["1"] * ((num_nodes + 1) // 2))


@pytest.mark.parametrize(
    ("within", "beyond", "message"),
    [
        ("1" * MAX_CHARS, "1" * (MAX_CHARS + 1), "1,001 characters; at most 1,000"),
        (sum_of(MAX_NODES - 1) + "!", sum_of(MAX_NODES - 1) + "!%", "more than 200 numbers and operators"),
        ("(" * MAX_DEPTH + "f" + ")" * MAX_DEPTH, "(" * 51 + "f" + ")" * 51, "more than 50 levels deep"),
        ("-" * MAX_DEPTH + "1", "-" * (MAX_DEPTH + 1) + "1", "more than 50 levels deep"),
        ("√" * MAX_DEPTH + "1", "√" * (MAX_DEPTH + 1) + "1", "more than 50 levels deep"),
        ("2^" * MAX_DEPTH + "1", "2^" * (MAX_DEPTH + 1) + "1", "more than 50 levels deep"),
        ("f(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, "f(" * 51 + "1" + ")" * 51, "more than 50 levels deep"),
    ],
)
def test_limits(within: str, beyond: str, message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        parse(beyond)
    parse(within)


def test_depth_counts_what_is_open_not_what_was() -> None:
    parse("(1)+" * 60 + "√4 - -1")
