r"""ARPO's reward: -1 for a bad format, else the score, and 0.1 more for a right answer with both tools used."""

from typing import Any

import pytest

from agentrl.envs.arpo_reward import arpo_reward, arpo_score, is_well_formed
from agentrl.envs.episode import CallRecord, Episode
from agentrl.messages import MalformedCall, ToolCall, assistant, user
from agentrl.tools.core import ToolResult, ToolStatus
from agentrl.trajectory import StopReason

TOOLS = ("search", "calculator")


def call(tool: str, status: ToolStatus = ToolStatus.OK) -> CallRecord:
    return CallRecord(0, ToolCall(tool, {}), ToolResult(tool, "text", status))


def episode(
    final: str, *calls: CallRecord, turns: tuple[str, ...] = (), stop: StopReason = StopReason.ANSWERED
) -> Episode:
    messages = [user("?"), *map(assistant, turns), assistant(final)]
    answered = stop is StopReason.ANSWERED
    return Episode(messages=messages, calls=list(calls), answer=final if answered else None, stop_reason=stop)


BOTH = (call("search"), call("calculator"))


@pytest.mark.parametrize(
    ("final", "calls", "reward"),
    [
        (r"\boxed{12}", BOTH, 1.1),  # 1 + 0.1
        (r"\boxed{12}", (call("search"),), 1.0),
        (r"\boxed{12}", (call("calculator"),), 1.0),
        (r"\boxed{12}", (), 1.0),
        (r"\boxed{13}", BOTH, 0.0),  # no bonus for a wrong answer
        (r"\boxed{13}", (), 0.0),
        ("12", BOTH, -1.0),  # right, but not marked
        (r"\boxed{12}", (call("search"), call("calculator", ToolStatus.ERROR)), 1.0),  # it failed: no bonus
        (r"\boxed{12}", (call("search", ToolStatus.TIMEOUT), *BOTH), 1.1),  # it worked the second time
        (r"\boxed{12}", (*BOTH, call("calculator", ToolStatus.INVALID_CALL)), -1.0),
        ("I used </search> and </python>, <tool_call>s of search and calculator: \\boxed{12}", (), 1.0),  # mentioned
    ],
)
def test_reward_of_a_number(final: str, calls: tuple[CallRecord, ...], reward: float) -> None:
    assert arpo_reward(episode(final, *calls), "12", TOOLS) == pytest.approx(reward, abs=1e-12)


@pytest.mark.parametrize(
    ("final", "reward"),
    [
        (r"\boxed{River Talvern}", 1.1),
        # Precision 1/1, recall 1/2: F1 = 2 * 1 * 0.5 / 1.5 = 2/3, and 0.1 for the tools.
        (r"\boxed{Talvern}", 2 / 3 + 0.1),
        (r"\boxed{Velby}", 0.0),
    ],
)
def test_reward_of_a_text(final: str, reward: float) -> None:
    assert arpo_reward(episode(final, *BOTH), "River Talvern", TOOLS) == pytest.approx(reward, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        (r"\boxed{-3.5}", "-3.5", 1.0),
        (r"\boxed{35}", "-3.5", 0.0),  # token F1 would take it for right
        (r"\boxed{1,234.0}", "1234", 1.0),
        (r"\boxed{12.34\%}", "12.34", 1.0),
        (r"\boxed{1234 pens}", "1234", 1.0),
        (r"\boxed{in 1843}", "year 1843", 0.5),  # no number alone: common 1 of 2 and 2, F1 = 2 * 0.5 * 0.5 / 1
        (r"\boxed{b}", ["a c", "b"], 1.0),
    ],
)
def test_score_compares_numbers_as_numbers(text: str, gold: Any, score: float) -> None:
    assert arpo_score(text, gold) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("final", "well_formed"),
    [
        (r"So \boxed{12}.", True),
        ("<answer>12</answer>", True),
        (r"<answer>It is \boxed{12}</answer>", True),  # the paper's own form
        ("12", False),
        ("Answer: 12", False),
        (r"\boxed{12} or \boxed{13}", False),
        (r"\boxed{}", False),
        ("<answer></answer>", False),
        (r"<answer>\boxed{}</answer>", False),
        ("<answer>12</answer><answer>12</answer>", False),
        ("<answer>12", False),
        ("12</answer>", False),
        (r"<answer>12</answer> \boxed{12}", False),  # marked twice
        (r"<answer>\boxed{1} \boxed{2}</answer>", False),
        (r"\boxed{12", False),
        ("", False),
    ],
)
def test_exactly_one_answer_is_marked(final: str, well_formed: bool) -> None:
    assert is_well_formed(episode(final)) is well_formed


@pytest.mark.parametrize(
    ("turn", "well_formed"),
    [
        ("no thinking", True),
        ("<think>a</think> b", True),
        ("opened by the template</think> b", True),
        ("<think>a</think> b <think>c</think>", True),
        ("a</think> b <think>c</think>", True),
        ("<think>a", False),
        ("<think>a</think> <think>b", False),
        ("<think>a<think>b</think></think>", False),
        ("a</think> b</think>", False),
        ('<tool_call>{"name": "search", "arguments": {"query": "<think>"}}</tool_call>', True),  # said in a call
    ],
)
def test_thinking_is_paired_in_every_turn(turn: str, well_formed: bool) -> None:
    assert is_well_formed(episode(r"\boxed{12}", turns=(turn,))) is well_formed


@pytest.mark.parametrize("stop", [StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.TERMINATED])
def test_episode_without_an_answer_is_bad_format(stop: StopReason) -> None:
    assert arpo_reward(episode(r"\boxed{12}", *BOTH, stop=stop), "12", TOOLS) == -1.0


def test_malformed_call_is_bad_format() -> None:
    record = CallRecord(
        0, MalformedCall("<tool_call>", "not closed"), ToolResult("(malformed)", "", ToolStatus.INVALID_CALL)
    )
    assert arpo_reward(episode(r"\boxed{12}", record, *BOTH), "12", TOOLS) == -1.0
