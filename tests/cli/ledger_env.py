"""An environment with tools of every kind that a replay meets: steady, drifting, failing, with effects."""

import os
from collections.abc import Sequence
from pathlib import Path

from agentrl.envs import Episode, ToolEnv, register
from agentrl.errors import InfrastructureError
from agentrl.tasks import Task
from agentrl.tools import StatefulTool, ToolError, tool


def world() -> str:
    """What the tools read; LEDGER_WORLD names the file."""
    return Path(os.environ["LEDGER_WORLD"]).read_text()


@tool(idempotent=True, inline=True)
def look(what: str) -> str:
    """Reads the world.

    Args:
        what: Of no importance; "missing" fails while the world is empty, "down" while it is "down".
    """
    if what == "missing" and not world():
        raise ToolError("there is nothing")
    if what == "down" and world() == "down":
        raise InfrastructureError("the world is gone")
    return world()


@tool(inline=True)
def write(text: str) -> str:
    """Writes to the world.

    Args:
        text: To append.
    """
    with Path(os.environ["LEDGER_WORLD"]).open("a") as file:
        file.write(text)
    return "written"


class Total(StatefulTool):
    """Adds up."""

    idempotent = True
    inline = True

    def __init__(self) -> None:
        self.total = 0

    def run(self, amount: int) -> int:
        """Adds.

        Args:
            amount: What to add.
        """
        self.total += amount
        return self.total


@register("Ledger-v0")
class Ledger(ToolEnv):
    tools = (look, write, Total())

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", f"{split} {i}", str(i)) for i in range(12)]

    def reward(self, task: Task, episode: Episode) -> float:
        return 1.0
