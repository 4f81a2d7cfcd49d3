"""An environment that a random model solves about every other time."""

from collections.abc import Sequence

from agentrl.envs import Episode, ToolEnv, register
from agentrl.tasks import Task
from agentrl.tools import tool


@tool
def shout(text: str) -> str:
    """Write a text in capitals.

    Args:
        text: What to shout.
    """
    return text.upper()


@register("Parity-v0", max_turns=3)
class Parity(ToolEnv):
    """Answers of an even length are right."""

    tools = (shout,)

    def __init__(self, *, shift: int = 0, split: str = "train", render_mode: str | None = None) -> None:
        super().__init__(split=split, render_mode=render_mode)
        self.shift = shift

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", f"{split} {i}", str(i)) for i in range(12)]

    def reward(self, task: Task, episode: Episode) -> float:
        text = "".join(message["content"] for message in episode.messages if message["role"] == "assistant")
        return float((len(text) + self.shift) % 2 == 0)

    def oracle(self, task: Task, episode: Episode) -> str:
        return "x" * (2 + self.shift % 2)
