"""An environment with a tool of its own in at most 15 lines: whole, and held to the contract."""
# ruff: noqa: ANN001, ANN201, I001, RUF012 - between the marks stands what a reader types, annotated or not

from pathlib import Path

from gymnasium.utils.env_checker import check_env

import agentrl
from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import EnvContract, Episode
from agentrl.messages import ToolCall

# Example: begin
from agentrl import Task, ToolEnv, register, tool


@tool
def to_hex(number: int) -> str:
    """Write a number in base 16.

    Args:
        number: A whole number.
    """
    return f"{number:x}"


@register("Hex-v0")
class Hex(ToolEnv):
    tools = [to_hex]

    def tasks(self, split):  # even numbers to train on, odd ones to test with
        return [Task(str(n), f"What is {n} in base 16?", f"{n:x}") for n in range(1000 + (split == "test"), 10_000, 2)]

    def reward(self, task, episode):
        return float(episode.answer == task.answer)


# Example: end


def test_the_example_has_at_most_15_lines() -> None:
    example = Path(__file__).read_text().split("# Example: begin\n")[1].split("# Example: end\n")[0]
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) == 15


def test_an_episode() -> None:
    env = agentrl.make("Hex-v0", split="test")
    observation, info = env.reset(options={"task": 0})
    assert observation == "What is 1001 in base 16?"
    assert info["tools"][0]["function"]["parameters"]["required"] == ["number"]
    assert env.step(format_tool_call(ToolCall("to_hex", {"number": 1001})))[:2] == ("3e9", 0.0)  # 3 * 256 + 14 * 16 + 9
    _, reward, terminated, _, info = env.step("3e9")
    assert (reward, terminated, info["result"]["success"]) == (1.0, True, True)


def test_gymnasium_accepts_it() -> None:
    check_env(agentrl.make("Hex-v0").unwrapped)


class _HexWithOracle(Hex):
    """The same with what the whole contract needs besides: an agent that knows how."""

    def oracle(self, task: Task, episode: Episode) -> str:
        if not episode.calls:
            return format_tool_call(ToolCall("to_hex", {"number": int(task.id)}))
        return episode.calls[0].result.text


register("controls/HexWithOracle-v0")(_HexWithOracle)


class TestHex(EnvContract):
    env_id = "controls/HexWithOracle-v0"
