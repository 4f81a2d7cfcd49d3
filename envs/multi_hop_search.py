"""`agentrl/MultiHopSearch-v0`: questions whose answer takes one to four searches, each built on the one before."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.chains import draw_chain
from agentrl.envs.episode import Episode
from agentrl.envs.procedural import ProceduralEnv, TaskGenerator
from agentrl.envs.registration import register
from agentrl.envs.rewards import normalized_match, token_f1
from agentrl.envs.world import Kind, World, search_in_world, world
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools.search import SearchTool


@register("agentrl/MultiHopSearch-v0")
class MultiHopSearchEnv(ProceduralEnv):
    """Questions over a collection of 3000 short documents about invented people, towns, companies, books ...

    Description:
        The agent reads a question such as "What is the population of the birthplace of the founder of Velkar Works?"
        and finds the answer by searching: each document tells one step. All names are invented, so nothing
        can be known by heart; training and test questions are about different worlds. The level is the number of
        hops, that is of documents to read. No document that names anything but the last step holds the answer, so a
        question of several hops cannot be answered by one search.

    Action Space:
        Text: one assistant turn. Tool: `search(query, top_k)`, three passages by default.

    Observation Space:
        Text: the question, then the passages found.

    Starting State:
        A question of the split, and the search tool over the split's documents.

    Rewards:
        Token F1 of the final answer (`token_f1`), from 0 to 1. The episode is a success if the answer matches exactly
        up to case, punctuation and articles (`normalized_match`).

    Episode End:
        Terminated by a turn without a call, which is the answer. Truncated after 8 turns.

    Arguments:
        level: Number of hops, 1 to 4, or a list of levels of which every question draws one. Default 1.
        seed: Names the documents and the questions. Default 0.
        split: "train" or "test".
        render_mode: None or "ansi".

    Version History:
        v0: First version.
    """

    levels: ClassVar[range] = range(1, 5)
    system_prompt = (
        "Answer the question with the search tool. Search for one thing at a time. Give only the answer, as in "
        '"Answer: Paris".'
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
        self.tools = (search_in_world(seed, split),)

    def generator(self, split: str) -> TaskGenerator:
        """Questions about the world of a split."""
        return partial(_generate, world(self.seed, split))

    def reward(self, task: Task, episode: Episode) -> float:
        """Token F1 of the answer."""
        return 0.0 if episode.answer is None else token_f1(episode.answer, task.answer)

    def success(self, task: Task, episode: Episode, reward: float) -> bool:
        """Whether the answer is right as a whole."""
        return episode.answer is not None and normalized_match(episode.answer, task.answer)

    def oracle(self, task: Task, episode: Episode) -> str:
        """Searches for each step by its name, which the question or the passage before has told."""
        path = task.metadata["path"]
        if len(episode.calls) < len(path):
            return format_tool_call(ToolCall(SearchTool.name, {"query": path[len(episode.calls)]}))
        return f"Answer: {task.answer[0]}"


def _generate(world: World, rng: np.random.Generator, level: int) -> Task:
    chain = draw_chain(world, rng, level)
    question = f"{'Who' if chain.kind is Kind.PERSON else 'What'} is {chain.phrase}?"
    metadata = {"level": level, "path": list(chain.path), "content": question}
    return Task("", question, list(chain.answers), metadata)
