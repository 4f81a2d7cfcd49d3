"""Units that the calculator leaves out, and words that it tells the model to write as a number.

A unit is left out only where the number cannot depend on it: behind a number or a bracket ($ and its like in front),
with no power, factorial or percent sign behind it, and no second unit in the expression. So "3 kg * 4" is 12, while
"3 km + 500 m", "12 km / 3 h" and "3 cm^2" are refused: nothing is converted, and whether km / h, km / min or m / s is
wanted only the model knows. Single letters that are more than one thing (m: metres, minutes, millions) are no units.
"""

import re

from agentrl.tools.calculator_bounds import CalculatorError

_SPELLINGS = """
    $ dollar dollars USD | € euro euros EUR | £ GBP | ¥ yen JPY | ¢ cent cents
    mm millimeter millimeters millimetre millimetres | cm centimeter centimeters centimetre centimetres
    meter meters metre metres | km kilometer kilometers kilometre kilometres
    inch inches | ft foot feet | yd yard yards | mi mile miles
    mg milligram milligrams | g gram grams | kg kilogram kilograms | ton tons tonne tonnes
    lb lbs pound pounds | oz ounce ounces
    ms millisecond milliseconds | s sec secs second seconds | min mins minute minutes | h hr hrs hour hours
    day days | week weeks | month months | year years
    mL ml milliliter milliliters millilitre millilitres | L liter liters litre litres | gallon gallons
    kWh | mph
"""
UNITS = {
    spelling: group.split()[0]
    for line in _SPELLINGS.strip().splitlines()
    for group in line.split("|")
    for spelling in group.split()
}
"""The unit that a spelling stands for: `{"kilometers": "km", ...}`."""
CURRENCY_SIGNS = "$€£¥¢"

_INSTEAD = {
    "hundred": "* 100",
    "thousand": "* 10^3",
    "million": "* 10^6",
    "billion": "* 10^9",
    "trillion": "* 10^12",
    "dozen": "* 12",
    "percent": "%",
    "squared": "^2",
    "cubed": "^3",
    "²": "^2",
    "³": "^3",
    "x": "* to multiply",
    "times": "*",
    "plus": "+",
    "minus": "-",
    "mod": "%",
    "deg": "radians(...) around the angle",
    "degree": "radians(...) around the angle",
    "degrees": "radians(...) around the angle",
    "°": "radians(...) around the angle",
}
_CHANGES_THE_UNIT = re.compile(r"\s*(?:\^|\*\*|!(?!=)|%|²|³)")


def instead_of(word: str) -> str:
    """What to write instead of a word behind a number, as the end of an error message; nothing if that is not known."""
    return f" Write {_INSTEAD[word]} instead of {word!r}." if word in _INSTEAD else ""


class LeftOut:
    """The one unit that an expression may hold."""

    def __init__(self) -> None:
        self._unit: str | None = None

    def leave_out(self, spelling: str, behind: str) -> None:
        """Notes a unit.

        Args:
            spelling: As it is written.
            behind: The text behind it.

        Raises:
            CalculatorError: Without the unit the value may be another.
        """
        unit = UNITS[spelling]
        if self._unit not in (None, unit):
            raise CalculatorError(
                f"Two units, {self._unit!r} and {unit!r}: convert to the same unit yourself and write numbers only."
            )
        self._unit = unit
        if _CHANGES_THE_UNIT.match(behind):
            raise CalculatorError(f"Leave the unit {spelling!r} out: what stands behind it could belong to the unit.")
