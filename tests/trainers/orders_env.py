"""An environment whose tool has an effect in the world: every order is a line in a file, and nothing takes it back.

`ORDERS_KILL=MOMENT:N` ends the process by SIGKILL at its N-th order, "before" or "after" its effect while the call is
still running, or "between" two calls.
"""

import hashlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import Episode, ToolEnv, register
from agentrl.messages import JsonDict, ToolCall
from agentrl.tasks import Task
from agentrl.tools import tool
from agentrl.trainers.settings import TrainSettings
from agentrl.trainers.training import train

orders = 0
"""Begun by this process."""


def die_if_told(moment: str) -> None:
    if os.environ.get("ORDERS_KILL") == f"{moment}:{orders}":
        os.kill(os.getpid(), signal.SIGKILL)


def place(item: str) -> str:
    """Orders an item.

    Args:
        item: What to order.
    """
    global orders
    orders += 1
    die_if_told("before")
    with Path(os.environ["ORDERS_FILE"]).open("a") as file:
        file.write(f"{item}\n")
    die_if_told("after")
    return f"ordered {item}"


class Orders(ToolEnv):
    """Whatever the agent says in its first turn is ordered; that keeps a random model busy."""

    max_turns = 3

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", f"Order {i}.", str(i)) for i in range(20)]

    def reward(self, task: Task, episode: Episode) -> float:
        return len(episode.answer or "") % 2

    def oracle(self, task: Task, episode: Episode) -> str:
        return f"{task.id}"

    def step(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        if self.episode.num_turns == 0:
            said = hashlib.sha256(action.encode()).hexdigest()[:12]
            action = format_tool_call(ToolCall("place", {"item": f"{self.task.id} {said}"}))
        outcome = super().step(action)
        die_if_told("between")
        return outcome

    def truncate(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        # A random model seldom ends a turn, so that most are cut off by the limit of tokens.
        return super().truncate(action) if self.episode.num_turns else self.step(action)


@register("FinalOrders-v0")
class FinalOrders(Orders):
    """One order at a time, so that a kill meets exactly one."""

    tools = (tool(inline=True)(place),)


@register("HarmlessOrders-v0")
class HarmlessOrders(Orders):
    """Declared idempotent, which is a lie here: the control that shows what the declaration does."""

    tools = (tool(idempotent=True, inline=True)(place),)


def run_training(values: dict[str, Any], *, resume: bool, console: Console) -> None:
    """Trains in one of these environments."""
    train(TrainSettings.model_validate(values), resume=resume, console=console)


def train_to_death(values: dict[str, Any], environ: dict[str, str], *, resume: bool) -> None:
    """What the process that dies runs."""
    os.environ |= environ
    run_training(values, resume=resume, console=Console(quiet=True))
