"""`ToolEnv`: turns, results, rewards, limits, failures and forks, with tools small enough to see through."""

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import pytest

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import Episode, ToolEnv
from agentrl.errors import ConfigError, ForkError, InfrastructureError
from agentrl.messages import ToolCall, system, user
from agentrl.sandbox import UnsafeSubprocess
from agentrl.tasks import Task
from agentrl.tools import InterpreterTool, StatefulTool, Tool, tool
from agentrl.trajectory import StopReason


@tool(idempotent=True, inline=True)
def double(number: int) -> int:
    """Doubles.

    Args:
        number: A whole number.
    """
    return 2 * number


class Memory(StatefulTool):
    """Remembers words."""

    idempotent = True

    def __init__(self) -> None:
        self.words: list[str] = []

    def run(self, word: str) -> str:
        """Remembers a word and says all.

        Args:
            word: To remember.
        """
        self.words.append(word)
        return " ".join(self.words)


class ReplayOnly(Tool):
    """Keeps state that cannot be copied, but comes out the same when its calls are repeated."""

    name = "replay_only"
    description = "Counts."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}, "required": []}
    idempotent = True
    inline = True
    opened: ClassVar[list["ReplayOnly"]] = []

    def __init__(self, start: Callable[[], int] = lambda: 0) -> None:
        self.start, self.count, self.closed = start, start(), False

    def call(self, arguments: Mapping[str, Any]) -> str:
        self.count += 1
        return str(self.count)

    def open(self) -> "ReplayOnly":
        self.opened.append(type(self)(self.start))
        return self.opened[-1]

    def close(self) -> None:
        self.closed = True


class Broken(ReplayOnly):
    name = "broken"

    def call(self, arguments: Mapping[str, Any]) -> str:
        if self.count == self.start():
            return super().call(arguments)
        raise InfrastructureError("the server is gone")


class Env(ToolEnv):
    """Say "yes"."""

    def __init__(self, *tools: Tool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.tools = tools

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{n}", f"Question {n}?", "yes") for n in range(3)] if split != "none" else []

    def turn_reward(self, task: Task, episode: Episode) -> float:
        return 0.25

    def reward(self, task: Task, episode: Episode) -> float:
        return 1.0 if episode.answer == task.answer else 0.0


def call(name: str, **arguments: Any) -> str:
    return format_tool_call(ToolCall(name, arguments))


@pytest.fixture(autouse=True)
def _forget_opened() -> None:
    ReplayOnly.opened.clear()


def test_an_episode_from_start_to_end() -> None:
    env = Env(double, render_mode="ansi")
    observation, info = env.reset(options={"task": 1})
    assert observation == "Question 1?"
    assert info == {"task_id": "train-1", "messages": [user("Question 1?")], "tools": [double.schema]}

    action = "Hm. " + call("double", number=21)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == ("42", 0.25, False, False)
    assert info == {"task_id": "train-1", "messages": [{"role": "tool", "name": "double", "content": "42"}]}

    observation, reward, terminated, truncated, info = env.step("<think>sure?</think> yes")
    assert (observation, reward, terminated, truncated) == ("", 1.25, True, False)  # 0.25 for the turn, 1 at the end
    assert info["messages"] == []
    assert info["result"] == {
        "success": True,
        "stop_reason": "answered",
        "answer": "yes",
        "num_turns": 2,
        "turn_rewards": [0.25, 1.25],
        "reward_parts": {},
        "tool_calls": {"double": 1},
        "tool_errors": {},
    }
    assert env.render() == f"[user] Question 1?\n[assistant] {action}\n[tool] 42\n[assistant] <think>sure?</think> yes"
    assert env.task.id == "train-1"


def test_several_calls_in_a_turn_run_in_order_and_bad_ones_are_observations() -> None:
    env = Env(double)
    env.reset()
    turn = "".join([call("double", number=1), call("tripel"), "<tool_call>{", call("double", number=3)])
    observation, _, terminated, _, info = env.step(turn)
    texts = [message["content"] for message in info["messages"]]
    assert observation == "\n\n".join(texts)
    assert not terminated
    assert [texts[0], texts[3]] == ["2", "6"]
    assert texts[1].startswith("Unknown tool 'tripel'")
    assert texts[2].startswith("Malformed tool call")
    *_, info = env.step("no")
    assert info["result"]["tool_calls"] == {"double": 2, "tripel": 1, "(malformed)": 1}
    assert info["result"]["tool_errors"] == {"tripel": 1, "(malformed)": 1}
    assert info["result"]["success"] is False


def test_turn_limit_runs_the_last_calls_and_truncates() -> None:
    env = Env(double)
    env.max_turns = 2
    env.reset()
    env.step(call("double", number=1))
    observation, reward, terminated, truncated, info = env.step(call("double", number=2))
    assert (observation, reward, terminated, truncated) == ("4", 0.25, False, True)
    assert info["result"]["stop_reason"] == StopReason.MAX_TURNS
    assert info["result"]["answer"] is None


def test_truncation_in_a_turn_counts_it_and_between_turns_does_not() -> None:
    env = Env(double)
    env.reset()
    env.step(call("double", number=1))
    _, reward, terminated, truncated, info = env.truncate("and so I thi")
    assert (reward, terminated, truncated) == (0.25, False, True)
    assert info["result"]["num_turns"] == 2
    assert info["result"]["turn_rewards"] == [0.25, 0.25]
    assert info["result"]["stop_reason"] == StopReason.MAX_TOKENS

    env.reset()
    env.step(call("double", number=1))
    _, reward, *_, info = env.truncate("")
    assert reward == 0.0, "the turn before was rewarded already"
    assert info["result"]["num_turns"] == 1
    assert info["result"]["turn_rewards"] == [0.25]


def test_truncation_runs_no_tool() -> None:
    env = Env(Memory())
    env.reset()
    *_, info = env.truncate(call("memory", word="a"))
    assert info["result"]["tool_calls"] == {}
    assert env.episode.messages[-1]["role"] == "assistant"


def test_system_prompt_stands_before_the_task_unless_it_brings_its_own() -> None:
    env = Env()
    env.system_prompt = "Be short."
    assert env.reset()[1]["messages"][0] == system("Be short.")
    env.tasks = lambda split: [Task("t", (system("Be long."), user("Why?")), "yes")]  # type: ignore[method-assign]
    env._task_sets.clear()
    observation, info = env.reset()
    assert observation == "Why?"
    assert info["messages"] == [system("Be long."), user("Why?")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": 3}, "Task 3 does not exist: the train split has 3 tasks"),
        ({"task": -1}, "Task -1 does not exist"),
        ({"task": "1"}, "index of a task, got '1'"),
        ({"task": True}, "index of a task, got True"),
        ({"taks": 1}, "does not know the option 'taks'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Env().reset(options=options)


def test_empty_split_and_unknown_render_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match="Env has no tasks in its none split"):
        Env(split="none").reset()
    with pytest.raises(ConfigError, match="render_mode must be None or 'ansi', got 'human'"):
        Env(render_mode="human")


def test_action_must_be_text_and_is_made_safe() -> None:
    env = Env()
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction, match="got int"):
        env.step(3)  # type: ignore[arg-type]
    *_, info = env.step("a\ud800b")
    assert info["result"]["answer"] == "a\N{REPLACEMENT CHARACTER}b"


def test_reward_that_is_not_finite_is_refused() -> None:
    env = Env()
    env.reward = lambda task, episode: float("nan")  # type: ignore[method-assign]
    env.reset()
    with pytest.raises(ValueError, match="Env gave a reward of nan for task train-"):
        env.step("yes")


def test_infrastructure_failure_ends_the_episode_as_invalid() -> None:
    env = Env(Broken())
    env.reset()
    env.step(call("broken"))
    with pytest.raises(InfrastructureError, match="the server is gone"):
        env.step(call("broken"))
    assert env.episode.stop_reason is StopReason.INVALID
    assert ReplayOnly.opened[0].closed
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("yes")
    assert env.reset()[0]


def test_tools_are_opened_per_episode_and_closed_at_its_end() -> None:
    env = Env(ReplayOnly())
    for end in (lambda: env.step("yes"), lambda: env.truncate(""), env.reset, env.close):
        env.reset()
        env.step(call("replay_only"))
        current = ReplayOnly.opened[-1]
        assert not current.closed
        end()
        assert current.closed
    env.close()


def test_tools_are_closed_when_the_reward_fails() -> None:
    env = Env(ReplayOnly())
    env.reward = lambda task, episode: 1 / 0  # type: ignore[method-assign]
    env.reset()
    with pytest.raises(ZeroDivisionError):
        env.step("yes")
    assert ReplayOnly.opened[-1].closed


def test_inline_if_all_tools_are() -> None:
    assert Env(double).inline
    assert Env().inline
    assert not Env(double, Memory()).inline


# Forks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Memory, ReplayOnly], ids=["copied", "replayed"])
def test_fork_goes_on_from_the_same_state_apart(make: Callable[[], Tool]) -> None:
    env = Env(double, make())
    arguments = {"word": "a"} if make is Memory else {}
    turn = call(make().name, **arguments)
    env.reset(seed=1)
    env.step(turn)
    twin = env.fork()
    assert twin.step(turn) == env.step(turn)
    twin.step(turn)
    assert env.episode.num_turns == 2
    assert env.step(turn)[0] == ("a a a" if make is Memory else "3")
    assert twin.episode.messages[:4] == env.episode.messages[:4]
    assert twin.np_random.bit_generator.state == env.np_random.bit_generator.state
    assert twin.np_random is not env.np_random
    assert twin.task is env.task
    assert twin.task_set() is env.task_set()


def test_fork_closes_its_own_tools_only() -> None:
    env = Env(ReplayOnly())
    env.reset()
    env.step(call("replay_only"))
    twin = env.fork()
    mine, its = ReplayOnly.opened
    twin.close()
    assert its.closed
    assert not mine.closed


def test_attributes_of_a_subclass_are_copied() -> None:
    env = Env(double)
    env.notes = ["a"]  # type: ignore[attr-defined]
    env.reset()
    twin = env.fork()
    twin.notes.append("b")  # type: ignore[attr-defined]
    assert env.notes == ["a"]  # type: ignore[attr-defined]


def test_fork_says_what_cannot_be_copied() -> None:
    env = Env(double)
    env.stream = (number for number in range(3))  # type: ignore[attr-defined]
    env.reset()
    with pytest.raises(ForkError, match=r"An attribute of Env cannot be copied.*generator"):
        env.fork()


def test_fork_refuses_a_replay_that_comes_out_otherwise() -> None:
    counter = itertools.count(step=10)
    env = Env(ReplayOnly(lambda: next(counter)))
    env.reset()
    env.step(call("replay_only"))
    with pytest.raises(ForkError, match="Repeating call 0 of tool 'replay_only' gave another result"):
        env.fork()
    assert ReplayOnly.opened[-1].closed
    assert not ReplayOnly.opened[0].closed


def test_fork_closes_what_it_opened_when_a_replay_fails() -> None:
    env = Env(Broken())
    env.reset()
    env.step(call("broken"))
    env.episode.calls.append(copy.deepcopy(env.episode.calls[0]))
    with pytest.raises(InfrastructureError):
        env.fork()
    assert ReplayOnly.opened[-1].closed


def test_fork_refuses_where_repeating_has_effects() -> None:
    unrepeatable = ReplayOnly()
    unrepeatable.idempotent = False
    opened = len(ReplayOnly.opened)
    env = Env(unrepeatable)
    env.reset()
    with pytest.raises(ForkError, match=r"does not define fork.*replay_only may not be called again"):
        env.fork()
    assert len(ReplayOnly.opened) == opened + 1, "refused before anything was repeated"


def test_only_a_running_episode_forks() -> None:
    env = Env(double)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.fork()
    env.reset()
    env.step("yes")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.fork()


def test_task_before_the_first_episode() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        _ = Env().task


def test_oracle_is_optional() -> None:
    with pytest.raises(ConfigError, match="Env defines no oracle"):
        Env().oracle(Task("t", "?"), Episode())


def test_a_reward_can_look_at_what_the_agent_has_made() -> None:
    class WriteFile(ToolEnv):
        tools = (InterpreterTool(UnsafeSubprocess()),)

        def tasks(self, split: str) -> Sequence[Task]:
            return [Task("0", "Write 42 to out.txt", "42")]

        def reward(self, task: Task, episode: Episode) -> float:
            tool = self.toolbox["python"]
            assert isinstance(tool, InterpreterTool)
            return float(tool.read("out.txt").decode() == task.answer)

    env = WriteFile()
    env.reset(seed=0)
    env.step(format_tool_call(ToolCall("python", {"code": "_ = open('out.txt', 'w').write('42')"})))
    assert env.step("Done.")[1] == 1.0
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.toolbox  # noqa: B018
    env.reset(seed=0)
    with pytest.raises(LookupError, match="Did you mean 'python'"):
        env.toolbox["pyton"]
    env.close()
