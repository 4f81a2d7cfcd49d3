"""What the calculator refuses to compute: its limits, its budget of work, and the error that it raises.

Three things bound an expression: its text (the lexer and the parser), the length of every number in it, and the work
of all its operations together. An operation is paid for before it is computed.
"""

from typing import NoReturn

from agentrl.errors import ToolError

MAX_BITS = 10_000
"""Longest integer."""
MAX_DIGITS = 3010
"""The same in decimal digits, 10,000 * log10(2); also the largest exponent of a rounded number, up or down."""
MAX_FRACTION_BITS = 3_300
"""Longest numerator or denominator of a fraction, about 990 digits; a longer one is rounded."""
MAX_WORK = 20_000
"""Budget of one expression. A unit of work is about a microsecond of a 2020s core."""


class CalculatorError(ToolError):
    """An expression has no value; the message is short and made for the model."""


class Budget:
    """The work that one expression may still cause."""

    def __init__(self, units: float = MAX_WORK) -> None:
        self.spent = 0.0
        self._units = units

    def spend(self, units: float) -> None:
        """Pays for an operation that is about to be computed.

        Raises:
            CalculatorError: The budget is too small for it.
        """
        if self.spent + units > self._units:
            raise CalculatorError("The expression takes too long to compute: split it into smaller steps.")
        self.spent += units


def refuse_large() -> NoReturn:
    """Ends a computation whose result would be too long."""
    raise CalculatorError(f"The result is too large: more than {MAX_DIGITS:,} digits.")


def refuse_lost() -> NoReturn:
    """Ends a computation whose result would consist of rounding errors."""
    raise CalculatorError("The result is lost in rounding: nearly equal or very large rounded numbers are subtracted.")
