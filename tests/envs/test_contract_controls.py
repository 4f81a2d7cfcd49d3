"""Negative controls of the contract: for every check an environment that breaks exactly what it checks."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import gymnasium
import pytest

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import EnvContract, Episode, ToolEnv, register
from agentrl.errors import AgentRLError
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools import StatefulTool


class Tally(StatefulTool):
    """Adds numbers up."""

    inline = True

    def __init__(self) -> None:
        self.total = 0

    def run(self, number: int) -> int:
        """Adds one.

        Args:
            number: What to add.
        """
        self.total += number
        return self.total


@register("controls/Good-v0")
class Good(ToolEnv):
    """Add two numbers, one call each; the answer is what the second call returns."""

    tools: Sequence[Any] = (Tally(),)
    max_turns = 4

    def tasks(self, split: str) -> Sequence[Task]:
        numbers = range(1000, 1020) if split == "train" else range(2000, 2020)
        return [Task(f"{split}-{n}", f"Add {n} and {n + 1}.", 2 * n + 1) for n in numbers]

    def reward(self, task: Task, episode: Episode) -> float:
        return float(episode.answer == str(task.answer))

    def oracle(self, task: Task, episode: Episode) -> str:
        first = (task.answer - 1) // 2
        if len(episode.calls) < 2:
            return format_tool_call(ToolCall("tally", {"number": first + len(episode.calls)}))
        return episode.calls[-1].result.text


class LeaksSurrogates(Good):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation + "\ud800", *rest)


class CannotRender(Good):
    def render(self) -> Any:
        return None


class NeverEnds(Good):
    def step(self, action: str) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


class HandsOutItsState(Good):
    def reset(self, **arguments: Any) -> Any:
        observation, info = super().reset(**arguments)
        return observation, {**info, "messages": self.episode.messages}


class HandsOutItsTools(Good):
    schemas: ClassVar[list[Any]] = [{"name": "tally", "parameters": {}}]

    def reset(self, **arguments: Any) -> Any:
        observation, info = super().reset(**arguments)
        return observation, {**info, "tools": self.schemas}


class IgnoresTheSeed(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=None, options=options or {"task": random.randrange(20)})


class AlwaysTheSameTask(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options or {"task": 3})


class OneTallyForAll(Good):
    class Shared(Tally):
        """Adds up the last two numbers that anybody gave."""

        name = "tally"
        everything: ClassVar[list[int]] = []

        def run(self, number: int) -> int:
            """Adds one.

            Args:
                number: What to add.
            """
            self.everything.append(number)
            return sum(self.everything[-2:])

    tools = (Shared(),)


class PutsASetIntoInfo(Good):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, "tools_used": {"tally"}})


class GivesIntegerRewards(Good):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, int(reward), *rest)


class GoesOnAfterTheEnd(Good):
    def step(self, action: str) -> Any:
        if self.episode.done:
            return "", 0.0, True, False, {}
        return super().step(action)


class HasNoTurnLimit(Good):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, False, info


class SharesItsToolsWithForks(Good):
    def fork(self) -> Self:
        twin = super().fork()
        twin._toolbox = self._toolbox
        return twin


class ForksFromTheStart(Good):
    def fork(self) -> Self:
        twin = type(self)(split=self.split)
        twin.reset(options={"task": self.task_set().index(self.task)})
        return twin


class HasAWrongOracle(Good):
    def oracle(self, task: Task, episode: Episode) -> str:
        return "0"


class PaysForTalking(Good):
    def reward(self, task: Task, episode: Episode) -> float:
        return float(bool(episode.answer))


class PaysForSilence(Good):
    def reward(self, task: Task, episode: Episode) -> float:
        return float(not episode.answer)


class PaysForCalls(Good):
    def turn_reward(self, task: Task, episode: Episode) -> float:
        return 0.1 if episode.calls and episode.calls[-1].result.ok else 0.0


class MeasuresOnTrainingTasks(Good):
    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{task.id}", task.prompt, task.answer) for task in super().tasks("train")]


BROKEN = [
    ("test_gymnasium_check_env", IgnoresTheSeed),
    ("test_gymnasium_check_env", LeaksSurrogates),
    ("test_gymnasium_make", CannotRender),
    ("test_gymnasium_make_vec", NeverEnds),
    ("test_observations_are_in_the_space", LeaksSurrogates),
    ("test_seed_decides_the_episode", IgnoresTheSeed),
    ("test_seed_decides_the_episode", AlwaysTheSameTask),
    ("test_instances_are_isolated", OneTallyForAll),
    ("test_info_belongs_to_the_caller", HandsOutItsState),
    ("test_info_belongs_to_the_caller", HandsOutItsTools),
    ("test_info_is_json_clean_and_rewards_are_finite", PutsASetIntoInfo),
    ("test_info_is_json_clean_and_rewards_are_finite", GivesIntegerRewards),
    ("test_finished_episode_needs_reset", GoesOnAfterTheEnd),
    ("test_step_limit_truncates", HasNoTurnLimit),
    ("test_fork_is_equal_and_independent", SharesItsToolsWithForks),
    ("test_fork_is_equal_and_independent", ForksFromTheStart),
    ("test_oracle_solves_every_task", HasAWrongOracle),
    ("test_agents_that_do_not_work_stay_at_the_floor", PaysForTalking),
    ("test_agents_that_do_not_work_stay_at_the_floor", PaysForSilence),
    ("test_agents_that_do_not_work_stay_at_the_floor", PaysForCalls),
    ("test_splits_share_no_task", MeasuresOnTrainingTasks),
]


class TestGoodEnvironmentPasses(EnvContract):
    env_id = "controls/Good-v0"


def contract_of(cls: type[ToolEnv]) -> EnvContract:
    env_id = f"controls/{cls.__name__}-v0"
    if env_id not in gymnasium.registry:
        register(env_id)(cls)
    return type("Contract", (EnvContract,), {"env_id": env_id})()


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_broken_environment_is_found(check: str, broken: type[ToolEnv]) -> None:
    random.seed(0)
    with pytest.raises((AssertionError, UserWarning, gymnasium.error.Error, AgentRLError)):
        getattr(contract_of(broken), check)()


def test_every_check_has_a_negative_control() -> None:
    checks = {name for name in vars(EnvContract) if name.startswith("test_")}
    assert checks == {check for check, _ in BROKEN}
