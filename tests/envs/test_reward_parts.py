"""Rewards in named parts: their sum is the reward, and the digest of an episode has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import Episode, ToolEnv
from agentrl.envs.reward_parts import parts_of_return
from agentrl.errors import ConfigError
from agentrl.messages import ToolCall
from agentrl.tasks import Task


class Env(ToolEnv):
    """A reward of whatever parts it was given."""

    def __init__(self, judgement: Any) -> None:
        super().__init__()
        self.judgement = judgement

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-0", "Well?", "yes")]

    def reward(self, task: Task, episode: Episode) -> float | Mapping[str, float]:
        judgement: float | Mapping[str, float] = self.judgement
        return judgement


class Turns(Env):
    """The same, and something for every turn."""

    def turn_reward(self, task: Task, episode: Episode) -> float:
        return 0.25 * episode.num_turns


CALL = format_tool_call(ToolCall("nothing"))


def test_the_sum_of_the_parts_is_the_reward() -> None:
    """1 - 0.5 + 0.25; a success is a sum of at least 1."""
    env = Env({"answer": 1, "format": -0.5, "style": 0.25})
    env.reset()
    _, reward, _, _, info = env.step("yes")
    assert reward == 0.75
    assert info["result"]["reward_parts"] == {"answer": 1.0, "format": -0.5, "style": 0.25}
    assert info["result"]["success"] is False
    env = Env({f"part {n}": 0.1 for n in range(10)})
    env.reset()
    _, reward, _, _, info = env.step("yes")
    assert (reward, info["result"]["success"]) == (1.0, True)  # ten tenths are one, not a little less


def test_rewards_of_turns_are_a_part() -> None:
    """Turns get 1/4, 2/4 and 3/4, so the return is 1 + 1.5."""
    env = Turns({"answer": 1.0})
    env.reset()
    rewards = [env.step(action)[1] for action in (CALL, CALL)]
    _, last, _, _, info = env.step("yes")
    assert [*rewards, last] == [0.25, 0.5, 1.75]
    assert info["result"]["reward_parts"] == {"answer": 1.0, "turns": 1.5}
    assert info["result"]["turn_rewards"] == [0.25, 0.5, 1.75]


def test_rewards_of_turns_are_a_part_of_a_truncated_episode_too() -> None:
    env = Turns({"answer": -1.0})
    env.reset()
    env.step(CALL)
    _, reward, *_, info = env.truncate("")  # between turns: nothing for it
    assert reward == -1.0
    assert info["result"]["reward_parts"] == {"answer": -1.0, "turns": 0.25}
    env.reset()
    env.step(CALL)
    _, reward, *_, info = env.truncate("and")
    assert reward == -0.5
    assert info["result"]["reward_parts"] == {"answer": -1.0, "turns": 0.75}
    assert sum(info["result"]["turn_rewards"]) == sum(info["result"]["reward_parts"].values())


@pytest.mark.parametrize("make", [Env, Turns])
def test_a_plain_number_has_no_parts(make: type[Env]) -> None:
    env = make(1.0)
    env.reset()
    assert env.step("yes")[4]["result"]["reward_parts"] == {}


def test_parts_of_one_episode_do_not_stay_for_the_next() -> None:
    env = Env({"answer": 1.0})
    env.reset()
    env.step("yes")
    env.judgement = 0.0
    env.reset()
    assert env.step("yes")[4]["result"]["reward_parts"] == {}


@pytest.mark.parametrize(
    ("make", "judgement", "complaint"),
    [
        (Env, {"answer": float("nan")}, "Env, task train-0: The reward part 'answer' is nan"),
        (Env, {"a": float("inf"), "b": -float("inf")}, "The reward part 'a' is inf"),
        (Turns, {"turns": 1.0}, "The part 'turns' is what the rewards of the turns make up"),
    ],
)
def test_parts_that_are_refused(make: type[Env], judgement: Mapping[str, float], complaint: str) -> None:
    env = make(judgement)
    env.reset()
    with pytest.raises(ConfigError, match=complaint):
        env.step("yes")


def test_without_rewards_of_turns_the_name_is_free() -> None:
    assert parts_of_return({"turns": 2}, turns=None) == {"turns": 2.0}
