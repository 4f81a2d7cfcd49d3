"""Environments whose tasks are generated: what they have in common."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np

from agentrl.envs.episode import Episode, observation_key
from agentrl.envs.tool_env import ToolEnv
from agentrl.errors import ConfigError
from agentrl.registry import nearest
from agentrl.tasks import SPLITS, ProceduralTasks, Task

TaskGenerator: TypeAlias = Callable[[np.random.Generator, int], Task]
"""Makes a task of a level from a random stream. Its metadata has "content", the text that decides its split."""

NUM_TASKS = {"train": 20_000, "test": 1_000}


class ProceduralEnv(ToolEnv):
    """Base of environments with levels, whose tasks are drawn from (seed, split, index) when they are asked for.

    The splits share no task: which split a task belongs to is decided by a hash of its content (`ProceduralTasks`).
    A subclass says which `levels` there are and gives a `generator`.
    """

    levels: ClassVar[range]

    def __init__(
        self,
        *,
        level: int | Sequence[int] = 1,
        seed: int = 0,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(split=split, render_mode=render_mode)
        if split not in SPLITS:
            raise ConfigError(f"Unknown split {split!r}. {nearest(split, list(SPLITS))}")
        self.seed = seed
        self.chosen_levels = self._checked(level)

    @abstractmethod
    def generator(self, split: str) -> TaskGenerator:
        """What makes the tasks of a split; it holds no reference to this environment."""
        raise NotImplementedError

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split."""
        draw = partial(_draw, self.generator(split), self.chosen_levels)
        return ProceduralTasks(draw, split, seed=self.seed, size=NUM_TASKS[split], key=_content)

    def state_key(self, task: Task, episode: Episode) -> str | None:
        """What the agent was told last; override it where tools remember what their results do not tell."""
        return observation_key(episode)

    def _checked(self, level: Any) -> tuple[int, ...]:
        levels = (level,) if isinstance(level, int) else tuple(level) if isinstance(level, Sequence) else ()
        if not levels or not all(number in self.levels for number in levels):
            known = f"{self.levels[0]} to {self.levels[-1]}"
            raise ConfigError(
                f"level must be a number from {known}, or a list of such numbers of which every task draws one; "
                f"got {level!r}."
            )
        return levels


def _draw(generate: TaskGenerator, levels: Sequence[int], rng: np.random.Generator) -> Task:
    return generate(rng, levels[int(rng.integers(len(levels)))])


def _content(task: Task) -> str:
    return str(task.metadata["content"])
