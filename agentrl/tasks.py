"""Tasks, and lazily generated sets of them with disjoint splits."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, overload

import numpy as np

from agentrl.errors import ConfigError
from agentrl.messages import Message
from agentrl.registry import nearest
from agentrl.seeding import generator

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Task:
    """One problem: what the agent is told, and what a right answer is.

    Example:
        Task(id="train-17", prompt="What is 12 times 34?", answer="408", metadata={"level": 1})
    """

    id: str
    """Unique within its task set; the group key of all episodes of this task."""
    prompt: str | tuple[Message, ...]
    """The user's request, or whole opening messages."""
    answer: Any = None
    """The reference answer (JSON-clean); only the reward function sees it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # immutable by contract: forks of an episode share their task


def split_of(key: str, test_share: float = 0.2) -> str:
    """The split that a task belongs to: a function of its content, so that no two splits can share a task.

    Args:
        key: Canonical text of what makes the task this task.
        test_share: Expected share of tasks that belong to "test".
    """
    draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if draw < test_share else "train"


class ProceduralTasks(Sequence[Task]):
    """A task set whose i-th task is generated when it is asked for, from (seed, split, i) alone.

    A candidate whose content hashes into another split is thrown away and drawn again, which keeps
    the splits disjoint without storing either.

    Args:
        generate: Makes a task from a random stream; its `id` is replaced by `<split>-<index>`.
        split: "train" or "test".
        seed: Names the whole family of task sets.
        size: Number of tasks.
        key: Canonical text of what makes a task the same as another, for the split; by default `task_key`. A coarser
            key also keeps look-alikes in one split, such as two wordings of one problem.

    Raises:
        ConfigError: Unknown split, or a size below 1.
    """

    MAX_DRAWS = 1000

    def __init__(
        self,
        generate: Callable[[np.random.Generator], Task],
        split: str,
        *,
        seed: int,
        size: int,
        key: Callable[[Task], str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"Unknown split {split!r}. {nearest(split, list(SPLITS))}")
        if size < 1:
            raise ConfigError(f"A task set needs at least one task, got size={size}.")
        self._generate = generate
        self.split = split
        self.seed = seed
        self._size = size
        self._key = key or task_key

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(index)
        index %= self._size
        rng = generator(self.seed, "task", self.split, index)
        for _ in range(self.MAX_DRAWS):
            task = self._generate(rng)
            if split_of(self._key(task)) == self.split:
                return Task(f"{self.split}-{index}", task.prompt, task.answer, task.metadata)
        raise ConfigError(f"No {self.split} task in {self.MAX_DRAWS} draws: the generator has too few distinct tasks.")

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(self._size))


def task_key(task: Task) -> str:
    """Canonical text of a task's content: prompt and answer, not its id."""
    return json.dumps([task.prompt, task.answer], sort_keys=True, default=str)
