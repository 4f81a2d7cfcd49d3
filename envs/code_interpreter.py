"""`agentrl/CodeInterpreter-v0`: small tasks on data and text, answered by running Python."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.code_tasks import draw_code_task
from agentrl.envs.episode import Episode
from agentrl.envs.procedural import ProceduralEnv, TaskGenerator
from agentrl.envs.registration import register
from agentrl.envs.rewards import exact_match, numeric_match
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools.interpreter import InterpreterTool, python_interpreter


@register("agentrl/CodeInterpreter-v0")
class CodeInterpreterEnv(ProceduralEnv):
    """Data and string tasks with a Python interpreter that keeps its state over the turns of an episode.

    Warning:
        The sandbox "unsafe_subprocess" is NOT a security boundary: code that the model writes runs with your rights,
        can read and write your files and use the network. It limits accidents only (time, memory, output, processes),
        and runs only if you ask for it by that name.

    Description:
        The agent reads a task such as "What is the sum of all prime numbers from 3417 to 5021?" and answers with a
        number or a text. Levels:

        1. one function call or line: powers, digits, counting letters, turning a text around, sorting;
        2. lists, tables, sequences, ciphers;
        3. joining tables, and algorithms on graphs, grids and lists.

    Action Space:
        Text: one assistant turn. Tool: `python(code)`; names, imports and files are kept from call to call.

    Observation Space:
        Text: the task, then what the code printed.

    Starting State:
        A task of the split, and a fresh interpreter, which starts with the first call.

    Rewards:
        1 if the final answer is right, else 0: numbers by `numeric_match`, texts by `exact_match`.

    Episode End:
        Terminated by a turn without a call, which is the answer. Truncated after 8 turns.

    Arguments:
        level: 1 to 3, or a list of levels of which every task draws one. Default 1.
        sandbox: Name of the sandbox that runs the code; see docs/sandboxes.md. Default "auto": docker, else
            bubblewrap, else an error that says what to install.
        seed: Names the whole family of tasks. Default 0.
        split: "train" or "test".
        render_mode: None or "ansi".

    Version History:
        v0: First version.
    """

    levels: ClassVar[range] = range(1, 4)
    system_prompt = 'Work the task out with the python tool. Give only the result, as in "Answer: 2048".'

    def __init__(
        self,
        *,
        level: int | Sequence[int] = 1,
        sandbox: str = "auto",
        seed: int = 0,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(level=level, seed=seed, split=split, render_mode=render_mode)
        self.tools = (python_interpreter(sandbox=sandbox),)

    def generator(self, split: str) -> TaskGenerator:
        """The generator is the same for both splits."""
        return _generate

    def reward(self, task: Task, episode: Episode) -> float:
        """1 for the right number or text."""
        if episode.answer is None:
            return 0.0
        compare = exact_match if isinstance(task.answer, str) else numeric_match
        return float(compare(episode.answer, task.answer))

    def oracle(self, task: Task, episode: Episode) -> str:
        """Runs the data and the program in cells of their own."""
        cells = task.metadata["cells"]
        if len(episode.calls) < len(cells):
            return format_tool_call(ToolCall(InterpreterTool.name, {"code": cells[len(episode.calls)]}))
        return f"Answer: {task.answer}"


def _generate(rng: np.random.Generator, level: int) -> Task:
    question, answer, cells = draw_code_task(rng, level)
    return Task("", question, answer, {"level": level, "cells": list(cells), "content": question})
