"""A counting environment whose tool has state, and a policy that plays a script."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from agentrl.envs import Episode, ToolEnv
from agentrl.errors import InfrastructureError
from agentrl.policies.core import Completion, Request
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.tasks import Task
from agentrl.tools.core import Tool


class Counter(Tool):
    """Adds to a number that it remembers, and can break."""

    name = "add"
    description = "Adds to the counter."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "required": ["amount"],
    }
    inline = True
    idempotent = True
    live = 0

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def open(self) -> Self:
        Counter.live += 1
        return type(self)()

    def fork(self) -> Self:
        Counter.live += 1
        return type(self)(self.total)

    def close(self) -> None:
        Counter.live -= 1

    def call(self, arguments: Mapping[str, Any]) -> str:
        if arguments["amount"] == 666:
            raise InfrastructureError("the counter's server is gone")
        self.total += arguments["amount"]
        return f"total {self.total}"


class ThreadedCounter(Counter):
    """The same, called in a thread with a deadline."""

    inline = False


class Counting(ToolEnv):
    """Reward 1 for telling the counter's total."""

    tools: Sequence[Tool] = (Counter(),)
    max_turns = 6

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", f"Count to {i}.", str(i)) for i in range(50)]

    def reward(self, task: Task, episode: Episode) -> float:
        results = episode.results("add")
        return float(bool(results) and episode.answer == results[-1].text)


class SlowCounting(Counting):
    """The same with the tool in threads."""

    tools: Sequence[Tool] = (ThreadedCounter(),)


def call(amount: int) -> str:
    return f'<tool_call>\n{{"name": "add", "arguments": {{"amount": {amount}}}}}\n</tool_call>'


def random_script(request: Request, text: str) -> Reply:
    """Calls, with some probability again, then answers rightly or wrongly: all drawn from the request's seed."""
    rng = random.Random(request.seed)
    turn = text.count("<|im_start|>assistant")
    entropy = rng.random() * 3
    if turn == 1 or (turn < 5 and rng.random() < 0.5):
        return Reply(call(rng.randint(1, 9)), entropy, delay=rng.randint(0, 3))
    total = text.rsplit("<tool_response>\n", 1)[1].split("\n", 1)[0]
    return Reply(total if rng.random() < 0.6 else "no idea", entropy, delay=rng.randint(0, 3))


class WatchedPolicy(ScriptedPolicy):
    """Keeps count of the sequences that begin between one poll and the next."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._known: set[int] = set()
        self._begun = [0]

    @property
    def launches(self) -> list[int]:
        """How many began together, each time that any did."""
        return [count for count in self._begun if count]

    def submit(self, request: Request) -> None:
        self._begun[-1] += request.sequence not in self._known
        self._known.add(request.sequence)
        super().submit(request)

    def poll(self) -> list[Completion]:
        self._begun.append(0)
        return super().poll()
