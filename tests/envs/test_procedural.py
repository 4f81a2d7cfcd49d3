"""Procedural environments and the task sets beneath them: reproducible, disjoint, and honest about small worlds."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from agentrl.envs import Episode, ProceduralEnv
from agentrl.envs.procedural import NUM_TASKS, TaskGenerator
from agentrl.errors import ConfigError
from agentrl.tasks import ProceduralTasks, Task, split_of, task_key


def small(rng: np.random.Generator) -> Task:
    """One of 60 problems in two wordings."""
    number = int(rng.integers(60))
    wording = ("What is {} squared?", "Square {}.")[int(rng.integers(2))]
    return Task("", wording.format(number), number**2, {"content": str(number)})


def by_number(task: Task) -> str:
    return str(task.metadata["content"])


def drawn(split: str, size: int = 300, **options: Any) -> Sequence[Task]:
    return ProceduralTasks(small, split, seed=0, size=size, **options)[:]


def test_splits_of_a_small_set_are_disjoint_and_together_whole() -> None:
    train, test = ({task_key(task) for task in drawn(split, 2000)} for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 120  # 60 numbers in two wordings; each is drawn 33 times on average


def test_a_key_keeps_two_wordings_of_one_problem_together() -> None:
    train, test = ({by_number(task) for task in drawn(split, key=by_number)} for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 60
    train, test = ({by_number(task) for task in drawn(split)} for split in ("train", "test"))
    assert train & test, "without the key some number is in both, in different words"


def test_about_a_fifth_of_all_keys_are_for_testing() -> None:
    share = sum(split_of(str(number)) == "test" for number in range(10_000)) / 10_000
    assert abs(share - 0.2) < 0.016  # four standard deviations of sqrt(0.2 * 0.8 / 10000) = 0.004
    assert split_of("one content") == split_of("one content")


def test_tasks_follow_seed_split_and_index_alone() -> None:
    tasks = ProceduralTasks(small, "train", seed=3, size=50)
    backwards = [tasks[index] for index in reversed(range(50))][::-1]
    assert list(tasks) == backwards == [ProceduralTasks(small, "train", seed=3, size=999)[i] for i in range(50)]
    assert tasks[-1] == tasks[49]
    assert tasks[10:12] == [tasks[10], tasks[11]]
    assert [task.id for task in tasks[:2]] == ["train-0", "train-1"]
    assert list(tasks) != list(ProceduralTasks(small, "train", seed=4, size=50))
    with pytest.raises(IndexError):
        tasks[50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset", "size": 5}, "Unknown split 'tset'. Did you mean 'test'?"),
        ({"split": "test", "size": 0}, "at least one task, got size=0"),
    ],
)
def test_wrong_task_set_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ProceduralTasks(small, seed=0, **arguments)
    assert message in str(caught.value)


def test_a_generator_with_no_task_for_a_split_is_found_out() -> None:
    only = Task("", "always", "the same")
    missing = "test" if split_of(task_key(only)) == "train" else "train"
    with pytest.raises(ConfigError, match=f"No {missing} task in 1000 draws"):
        ProceduralTasks(lambda rng: only, missing, seed=0, size=1)[0]


class Leveled(ProceduralEnv):
    """Say the level."""

    levels: ClassVar[range] = range(2, 5)

    def generator(self, split: str) -> TaskGenerator:
        return lambda rng, level: Task(
            "", f"{level} {rng.integers(10**9)}", level, {"content": str(rng.integers(10**9))}
        )

    def reward(self, task: Task, episode: Episode) -> float:
        return 0.0


def test_levels_are_drawn_from_those_that_were_chosen() -> None:
    assert {task.answer for task in Leveled(level=3).task_set()[:50]} == {3}
    assert {task.answer for task in Leveled(level=[2, 4]).task_set()[:50]} == {2, 4}
    assert {task.answer for task in Leveled(level=range(2, 5)).task_set()[:50]} == {2, 3, 4}
    with pytest.raises(ConfigError, match="level must be a number from 2 to 4"):
        Leveled()  # the default, 1, is none of its levels
    with pytest.raises(ConfigError, match="got 5"):
        Leveled(level=5)


def test_sizes() -> None:
    assert len(Leveled(level=2).task_set("train")) == NUM_TASKS["train"] == 20_000
    assert len(Leveled(level=2).task_set("test")) == NUM_TASKS["test"] == 1_000
