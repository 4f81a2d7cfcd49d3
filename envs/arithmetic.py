"""`agentrl/Arithmetic-v0`: problems in words and numbers that are too large for the head."""

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.arithmetic_problems import draw_problem
from agentrl.envs.episode import Episode
from agentrl.envs.procedural import ProceduralEnv, TaskGenerator
from agentrl.envs.registration import register
from agentrl.envs.rewards import numeric_match
from agentrl.envs.terms import plain
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools.calculator import calculator

_LITERAL = re.compile(r"\d+(?:\.\d+)?")


@register("agentrl/Arithmetic-v0")
class ArithmeticEnv(ProceduralEnv):
    """Word-and-number problems with a calculator.

    Description:
        The agent reads a problem such as "A crate holds 48 pens. How many pens are in 367 crates?" and answers with a
        number. The numbers are too large to do without the tool. Levels:

        1. one operation on whole numbers of two to four digits, bare or in one or two short sentences;
        2. two operations, with brackets or in a story of two steps;
        3. three or four operations, larger numbers, stories with a number that does not matter;
        4. decimals, fractions and percent, rounded to two decimals where needed;
        5. stories of five to seven steps.

    Action Space:
        Text: one assistant turn. Tool: `calculator(expression)`.

    Observation Space:
        Text: the problem, then results of the calculator.

    Starting State:
        A problem of the split. No two problems of different splits hold the same numbers.

    Rewards:
        1 if the last number of the final answer is right (`numeric_match`), else 0.

    Episode End:
        Terminated by a turn without a call, which is the answer. Truncated after 3 turns more than the highest level.

    Arguments:
        level: 1 to 5, or a list of levels of which every problem draws one. Default 1.
        seed: Names the whole family of problems. Default 0.
        split: "train" or "test".
        render_mode: None or "ansi".

    Version History:
        v0: First version.
    """

    levels: ClassVar[range] = range(1, 6)
    tools = (calculator,)

    def __init__(
        self,
        *,
        level: int | Sequence[int] = 1,
        seed: int = 0,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(level=level, seed=seed, split=split, render_mode=render_mode)
        self.max_turns = 3 + max(self.chosen_levels)  # a problem of level n can be solved one operation a turn

    def generator(self, split: str) -> TaskGenerator:
        """The generator is the same for both splits."""
        return _generate

    def reward(self, task: Task, episode: Episode) -> float:
        """1 for the right number."""
        return float(episode.answer is not None and numeric_match(episode.answer, task.answer))

    def oracle(self, task: Task, episode: Episode) -> str:
        """Calculates step by step; all but the longest stories need one step."""
        steps = task.metadata["steps"]
        if len(episode.calls) < len(steps):
            return format_tool_call(ToolCall(calculator.name, {"expression": steps[len(episode.calls)]}))
        return f"The answer is {task.answer}."


def _generate(rng: np.random.Generator, level: int) -> Task:
    problem = draw_problem(rng, level)
    steps = [step.text for step in problem.steps]
    content = " ".join(sorted(_LITERAL.findall(" ".join(steps))))
    metadata = {"level": level, "steps": steps, "content": content}
    return Task("", problem.question, plain(problem.steps[-1].value), metadata)
