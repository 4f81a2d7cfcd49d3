"""Which states an environment calls the same, in the base class and in the environments that come with agentrl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

import agentrl
from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import Episode, ToolEnv, observation_key
from agentrl.messages import ToolCall
from agentrl.tasks import Task
from agentrl.tools import tool


@tool(inline=True)
def echo(text: str) -> str:
    """Says it again.

    Args:
        text: What to say.
    """
    return text.strip()


class Plain(ToolEnv):
    """Does not name its states."""

    tools = (echo,)

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{n}", f"Say {n}.", str(n)) for n in range(3)]

    def reward(self, task: Task, episode: Episode) -> float:
        return float(episode.answer == task.answer)


class Named(Plain):
    """Names them by what was said last, and by the task's number to show that it is at hand."""

    def state_key(self, task: Task, episode: Episode) -> str | None:
        return f"{task.answer}:{[result.text for result in episode.results()][-1:]}"


def say(text: str) -> str:
    return format_tool_call(ToolCall("echo", {"text": text}))


def test_keys_are_read_after_reset_and_after_every_step_that_leads_to_a_turn() -> None:
    env = Named()
    assert env.gives_state_keys
    assert env.reset(options={"task": 2})[1]["state_key"] == "2:[]"
    assert env.step(say("a"))[4]["state_key"] == "2:['a']"
    twin = env.fork()
    assert twin.step(say("b"))[4]["state_key"] == "2:['b']"
    assert env.step(say("c"))[4]["state_key"] == "2:['c']"
    assert "state_key" not in env.step("2")[4]  # no turn is taken any more
    assert "state_key" not in twin.truncate("")[4]
    check_env(Named(), skip_render_check=True)


def test_an_environment_that_does_not_name_its_states_has_no_key() -> None:
    env = Plain()
    assert not env.gives_state_keys
    assert "state_key" not in env.reset(options={"task": 0})[1]
    assert "state_key" not in env.step(say("a"))[4]
    env.close()


def test_an_observation_counts_whatever_led_to_it() -> None:
    class Observed(Plain):
        def state_key(self, task: Task, episode: Episode) -> str:
            return observation_key(episode)

    def keys(env: ToolEnv, *turns: str, task: int = 0) -> list[str]:
        found = [env.reset(options={"task": task})[1]["state_key"]]
        return found + [env.step(turn)[4]["state_key"] for turn in turns]

    env = Observed()
    start, a, b = keys(env, say("a"), say("b"))
    assert len({start, a, b}) == 3
    assert keys(env, say("b"), say(" a ")) == [start, b, a]  # another way, and another spelling of the call
    assert keys(env, "Hm. " + say("a"))[1] == a
    assert keys(env, say("a") + say("b"))[1] not in {a, b}  # two results are another observation
    assert keys(env, say("a"), task=1)[0] != start
    env.close()


DATA = '{"prompt": "What is 17 * 23?", "answer": 391}\n{"prompt": "And 2 + 2?", "answer": 4}\n'
CALCULATIONS = ("6", "2 * 3", "7")
SHIPPED: Mapping[str, tuple[str, str, tuple[str, str, str]]] = {
    "agentrl/Arithmetic-v0": ("calculator", "expression", CALCULATIONS),
    "agentrl/MultiHopSearch-v0": ("search", "query", ("town", " town ", "river")),
    "agentrl/DeepResearch-v0": ("calculator", "expression", CALCULATIONS),
    "agentrl/CodeInterpreter-v0": ("python", "code", ("print(6)", "print(2 * 3)", "print(7)")),
    "agentrl/Dataset-v0": ("calculator", "expression", CALCULATIONS),
}
"""Tool, argument, and three calls of which the first two have the same result."""


@pytest.mark.parametrize("env_id", SHIPPED)
def test_shipped_environments_name_states_by_what_the_tools_returned(env_id: str, tmp_path: Path) -> None:
    name, argument, texts = SHIPPED[env_id]
    options: dict[str, Any] = {"sandbox": "unsafe_subprocess"} if env_id == "agentrl/CodeInterpreter-v0" else {}
    if env_id == "agentrl/Dataset-v0":
        (tmp_path / "data.jsonl").write_text(DATA)
        options = {"path": {"train": tmp_path / "data.jsonl"}, "tools": ["calculator"], "reward": "numeric"}
    env = agentrl.make(env_id, **options)
    inner = env.unwrapped
    assert isinstance(inner, ToolEnv)
    assert inner.gives_state_keys

    def ask(text: str) -> str:
        return str(env.step(format_tool_call(ToolCall(name, {argument: text})))[4]["state_key"])

    starts = [env.reset(options={"task": task})[1]["state_key"] for task in (0, 1, 0)]
    assert starts[0] == starts[2] != starts[1]
    first, again, other = (ask(text) for text in texts)
    assert first == again
    assert len({starts[0], first, other}) == 3
    env.close()
