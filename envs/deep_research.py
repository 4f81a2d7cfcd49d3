r"""`agentrl/DeepResearch-v0`: questions that need facts from several documents and a calculation with them."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.arpo_reward import arpo_reward
from agentrl.envs.chains import Chain, draw_chain
from agentrl.envs.episode import Episode
from agentrl.envs.procedural import ProceduralEnv, TaskGenerator
from agentrl.envs.registration import register
from agentrl.envs.rewards import numeric_match
from agentrl.envs.terms import Term, number, plain
from agentrl.envs.world import QUANTITIES, World, search_in_world, world
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools.calculator import calculator
from agentrl.tools.search import SearchTool

_HOPS = {1: (1, 1), 2: (2, 2), 3: (3, 2, 1)}
"""Documents to read for each fact of a question, by level; the longest first, since few facts end a long chain."""


@register("agentrl/DeepResearch-v0")
class DeepResearchEnv(ProceduralEnv):
    r"""Search and calculation together, with the reward of ARPO.

    Description:
        The agent reads a question such as "What percentage of the population of Velby is the population of the
        birthplace of Anna Ostrin? Round to two decimals.", finds the facts with the search tool (in the documents of
        `agentrl/MultiHopSearch-v0`) and calculates the answer. Levels:

        1. two facts of one document each, one operation;
        2. two facts of two hops each, one operation;
        3. three facts of one, two and three hops, two or three operations.

    Action Space:
        Text: one assistant turn. Tools: `search(query, top_k)` and `calculator(expression)`.

    Observation Space:
        Text: the question, then passages and results.

    Starting State:
        A question of the split, and the search tool over the split's documents.

    Rewards:
        -1 for a bad format; else 1 for the right number and 0 for a wrong one, and 0.1 more for a right one if both
        tools were called with success. `agentrl.envs.arpo_reward` says what the format is and how all this maps to
        the paper. The episode is a success if the number is right, whatever its format.

    Episode End:
        Terminated by a turn without a call, which is the answer. Truncated after 16 turns.

    Arguments:
        level: 1 to 3, or a list of levels of which every question draws one. Default 1.
        seed: Names the documents and the questions. Default 0.
        split: "train" or "test".
        render_mode: None or "ansi".

    Version History:
        v0: First version.
    """

    levels: ClassVar[range] = range(1, 4)
    max_turns = 16
    system_prompt = (
        "Find the facts with the search tool, one at a time, and calculate with the calculator. Give the final answer, "
        "a number, once, as in \\boxed{12.5}."
    )

    def __init__(
        self,
        *,
        level: int | Sequence[int] = 1,
        seed: int = 0,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(level=level, seed=seed, split=split, render_mode=render_mode)
        self.tools = (search_in_world(seed, split), calculator)

    def generator(self, split: str) -> TaskGenerator:
        """Questions about the world of a split."""
        return partial(_generate, world(self.seed, split))

    def reward(self, task: Task, episode: Episode) -> float:
        """The reward of ARPO."""
        return arpo_reward(episode, task.answer, [tool.name for tool in self.tools])

    def success(self, task: Task, episode: Episode, reward: float) -> bool:
        """Whether the number is right."""
        return episode.answer is not None and numeric_match(episode.answer, task.answer)

    def oracle(self, task: Task, episode: Episode) -> str:
        """Looks up every fact, step by step, and then calculates."""
        path, num_calls = task.metadata["path"], len(episode.calls)
        if num_calls < len(path):
            return format_tool_call(ToolCall(SearchTool.name, {"query": path[num_calls]}))
        if num_calls == len(path):
            return format_tool_call(ToolCall(calculator.name, {"expression": task.metadata["expression"]}))
        return f"The answer is \\boxed{{{task.answer}}}."


def _generate(world: World, rng: np.random.Generator, level: int) -> Task:
    facts: list[Chain] = []
    for hops in _HOPS[level]:
        fact = draw_chain(world, rng, hops, last={facts[0].fact} if facts else QUANTITIES)
        while fact.path[-1] in {earlier.path[-1] for earlier in facts}:  # no number twice
            fact = draw_chain(world, rng, hops, last={fact.fact})
        facts.append(fact)
    order = rng.permutation(len(facts))
    question, term = _QUESTIONS[len(facts)](rng, [facts[i] for i in order])
    path = [title for i in order for title in facts[i].path]
    metadata = {"level": level, "path": path, "expression": term.text, "content": question}
    return Task("", question, plain(term.value), metadata)


def _about_two(rng: np.random.Generator, facts: Sequence[Chain]) -> tuple[str, Term]:
    first, second = (fact.phrase for fact in facts)
    a, b = (number(fact.answers[0]) for fact in facts)
    match int(rng.integers(3)):
        case 0:
            return f"What is the sum of {first} and {second}?", a + b
        case 1:
            return f"What is {first} minus {second}?", a - b
        case _:
            return _rounded(f"What percentage of {first} is {second}?", b / a * number(100))


def _about_three(rng: np.random.Generator, facts: Sequence[Chain]) -> tuple[str, Term]:
    first, second, third = (fact.phrase for fact in facts)
    a, b, c = (number(fact.answers[0]) for fact in facts)
    match int(rng.integers(3)):
        case 0:
            return _rounded(f"What is the average of {first}, {second} and {third}?", (a + b + c) / number(3))
        case 1:
            return f"Take the sum of {first} and {second}. How much is left if you subtract {third}?", a + b - c
        case _:
            text = f"Take the sum of {first} and {second}. What percentage of it is {third}?"
            return _rounded(text, c / (a + b) * number(100))


_QUESTIONS = {2: _about_two, 3: _about_three}


def _rounded(question: str, term: Term) -> tuple[str, Term]:
    return f"{question} Round to two decimals.", term.rounded()
