"""Environment ids and the space of texts."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs import ArithmeticEnv, Episode, TextSpace, ToolEnv, make, register
from agentrl.errors import ConfigError, UnknownNameError
from agentrl.tasks import Task


class Echo(ToolEnv):
    """Say what the task says."""

    def __init__(self, *, loud: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.loud = loud

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(word, word) for word in ("a", "b")]

    def reward(self, task: Task, episode: Episode) -> float:
        return float(episode.answer == task.prompt)


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_register_puts_a_class_into_gymnasiums_table() -> None:
    assert register("Echo-v0", max_turns=3)(Echo) is Echo
    env = gymnasium.make("agentrl/Echo-v0", loud=True)
    assert isinstance(env.unwrapped, Echo)
    assert env.unwrapped.loud
    assert env.unwrapped.max_turns == 3
    register("other/Echo-v1")(Echo)
    assert gymnasium.make("other/Echo-v1").spec.id == "other/Echo-v1"


def test_make_finds_ids_with_and_without_namespace() -> None:
    assert isinstance(make("Arithmetic-v0").unwrapped, ArithmeticEnv)
    assert make("agentrl/Arithmetic-v0", split="test", level=2).unwrapped.split == "test"


def test_make_imports_a_module_that_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_envs_8841.py").write_text(
        "from agentrl.envs import ArithmeticEnv, register\n@register('Mine-v0')\nclass Mine(ArithmeticEnv):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make("my_envs_8841:Mine-v0").unwrapped.__class__.__name__ == "Mine"
    sys.modules.pop("my_envs_8841")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Arithmetics-v0", "Unknown environment 'Arithmetics-v0'. Did you mean 'agentrl/Arithmetic-v0'?"),
        ("agentrl/Arithmetic-v7", "Did you mean 'agentrl/Arithmetic-v0'?"),
        ("agentrl/No such thing", "Unknown environment"),
        ("elsewhere/Arithmetic-v0", "Unknown environment"),
        ("no_such_module_7:Arithmetic-v0", "names a module that cannot be imported"),
    ],
)
def test_unknown_environment(env_id: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        make(env_id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levle": 1}, "refuses its arguments {'levle': 1}"),
        ({"level": 9}, "level must be a number from 1 to 5, or a list of such numbers"),
        ({"level": [1, 9]}, "got [1, 9]"),
        ({"level": []}, "got []"),
        ({"level": "1"}, "got '1'"),
        ({"split": "tset"}, "Unknown split 'tset'. Did you mean 'test'?"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make("Arithmetic-v0", **arguments)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_that_utf8_holds_is_in_the_space(text: str) -> None:
    assert text in TextSpace()


@pytest.mark.parametrize("other", ["\ud800", "a\udfff", 3, None, b"text", ["text"]])
def test_nothing_else_is(other: object) -> None:
    assert other not in TextSpace()


def test_samples_are_in_the_space_and_follow_the_seed() -> None:
    first, second = TextSpace(seed=3), TextSpace()
    second.seed(3)
    samples = [first.sample() for _ in range(50)]
    assert samples == [second.sample() for _ in range(50)]
    assert all(sample in first for sample in samples)
    assert len(set(samples)) > 10
    with pytest.raises(ValueError, match="neither mask nor probability"):
        first.sample(mask=np.ones(3))


def test_spaces_are_equal_and_can_be_batched() -> None:
    assert TextSpace(1) == TextSpace(2)
    assert TextSpace() != gymnasium.spaces.Text(5)
    assert len({TextSpace(1), TextSpace(2)}) == 1
    assert repr(TextSpace()) == "TextSpace()"
    assert not TextSpace().is_np_flattenable
    assert gymnasium.vector.utils.batch_space(TextSpace(), 2).contains(("a", "b"))
