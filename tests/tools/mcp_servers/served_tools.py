"""Tools that the tests serve over MCP."""

import os
import sys
import time
from pathlib import Path
from typing import Literal

import pydantic

from agentrl import ToolError, tool
from agentrl.errors import InfrastructureError
from agentrl.tools import StatefulTool


class Item(pydantic.BaseModel):
    name: str
    price: float


@tool
def total(items: list[Item], currency: Literal["EUR", "USD"] = "EUR") -> dict[str, object]:
    """Adds prices.

    Args:
        items: What was bought.
        currency: Of the prices.
    """
    return {"total": sum(item.price for item in items), "currency": currency}


@tool
async def divide(a: int, b: int) -> float:
    """Divides.

    Args:
        a: Dividend.
        b: Divisor.
    """
    if b == 0:
        raise ToolError("b must not be 0, got 0")
    return a / b


@tool
def crash(how: Literal["value", "exit", "broken"]) -> None:
    """Fails in one of several ways.

    Args:
        how: The way.
    """
    if how == "broken":
        raise InfrastructureError("the database is gone")
    raise SystemExit(3) if how == "exit" else ValueError("unexpected")


@tool(deadline_s=0.3)
def stall() -> None:
    """Takes too long."""
    time.sleep(600)


@tool(deadline_s=300.0)
def hang(mark: str) -> str:
    """Hangs until it is let go.

    Args:
        mark: A file that is written first; another one ends the call.
    """
    Path(mark).touch()
    while not Path(mark).with_suffix(".go").exists():
        time.sleep(0.01)
    return "let go"


@tool
def shout(text: str) -> str:
    """Writes on standard output, in every way there is.

    Args:
        text: What to write.
    """
    print(text)
    sys.__stdout__.write(f"{text}\n")
    os.write(1, f"{text}\n".encode())
    return "done"


class Notebook(StatefulTool):
    """Remembers lines of text."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def run(self, line: str) -> list[str]:
        """Adds a line and returns all.

        Args:
            line: The line.
        """
        self.lines.append(line)
        return self.lines

    def close(self) -> None:
        print(f"closed with {self.lines}", file=sys.stderr, flush=True)


TOOLS = [total, divide, crash, stall, hang, shout, Notebook()]
