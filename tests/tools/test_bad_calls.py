"""One turn with a bad call and a good one: both are answered, whatever is bad and in whatever order things stand.

The tools are dispatched by name. Asking one tool after the other whether a call is its own, as some frameworks do,
makes the outcome depend on their order: a failure of the first is forgotten when the second does not know the call.
"""

import threading

import pytest

from agentrl.chat.tool_calls import format_tool_call, parse_tool_calls
from agentrl.errors import ToolError
from agentrl.messages import ToolCall
from agentrl.tools import Toolbox, ToolStatus, calculator, tool
from agentrl.tools.stateful import StatefulTool

HANG = threading.Event()


@tool(deadline_s=0.05)
def hanging() -> str:
    """Hang."""
    HANG.wait(60)
    return "too late"


@tool
def troubled(trouble: str) -> str:
    """Get into trouble.

    Args:
        trouble: Which.
    """
    match trouble:
        case "raise":
            raise RuntimeError("out of paper")
        case "refuse":
            raise ToolError("Ask me something else.")
        case "large":
            return "x" * 10_000_000
    return "none"


class Tally(StatefulTool):
    """Counts its calls."""

    inline = True
    total = 0

    def run(self, amount: int) -> int:
        """Counts.

        Args:
            amount: By how much.
        """
        self.total += amount
        return self.total


def call_to(trouble: str) -> str:
    return format_tool_call(ToolCall("troubled", {"trouble": trouble}))


GOOD = {
    "calculator": (format_tool_call(ToolCall("calculator", {"expression": "6*7"})), "42"),
    "tally": (format_tool_call(ToolCall("tally", {"amount": 5})), "5"),
}
BAD = {
    "malformed": (
        '<tool_call>\n{"name": "troubled", "arguments": {\n</tool_call>',
        ToolStatus.INVALID_CALL,
        "Malformed",
    ),
    "unterminated": ('<tool_call>\n{"name": "troubled", "argum', ToolStatus.INVALID_CALL, "not closed"),
    "never opened": ("</tool_call>", ToolStatus.INVALID_CALL, "never opened"),
    "unknown": (format_tool_call(ToolCall("trouble", {})), ToolStatus.INVALID_CALL, "Did you mean 'troubled'?"),
    "missing": (format_tool_call(ToolCall("troubled", {})), ToolStatus.INVALID_CALL, "trouble: missing"),
    "wrong type": (
        format_tool_call(ToolCall("troubled", {"trouble": 3})),
        ToolStatus.INVALID_CALL,
        "trouble: should be a valid string, got 3",
    ),
    "refusing": (call_to("refuse"), ToolStatus.ERROR, "Ask me something else."),
    "raising": (call_to("raise"), ToolStatus.ERROR, "RuntimeError: out of paper"),
    "hanging": (format_tool_call(ToolCall("hanging")), ToolStatus.TIMEOUT, "gave no result within 0.05 s"),
    "large": (call_to("large"), ToolStatus.OK, " characters cut ...]"),
    "same tool, no trouble": (call_to(""), ToolStatus.OK, "none"),
}


@pytest.mark.parametrize("tools_reversed", [False, True])
@pytest.mark.parametrize("bad_first", [False, True])
@pytest.mark.parametrize("good", GOOD)
@pytest.mark.parametrize("bad", BAD)
def test_both_calls_of_a_turn_are_answered(bad: str, good: str, bad_first: bool, tools_reversed: bool) -> None:
    good_text, good_result = GOOD[good]
    bad_text, bad_status, bad_result = BAD[bad]
    tools = [troubled, Tally(), hanging, calculator]
    with Toolbox(reversed(tools) if tools_reversed else tools) as toolbox:
        turn = "\n".join([bad_text, good_text] if bad_first else [good_text, bad_text])
        results = [toolbox.call(call) for call in parse_tool_calls(turn)]
    assert len(results) == 2
    failed, worked = results if bad_first else results[::-1]
    assert failed.status is bad_status
    assert bad_result in failed.text
    assert len(failed.text) <= troubled.max_output_chars
    assert (worked.tool, worked.status, worked.text) == (good, ToolStatus.OK, good_result)
    assert failed.num_chars == (10_000_000 if bad == "large" else len(failed.text))


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_call_alone_changes_nothing_for_the_next_turn(bad: str) -> None:
    with Toolbox([troubled, Tally(), hanging]) as toolbox:
        texts = [GOOD["tally"][0], BAD[bad][0], GOOD["tally"][0]]
        results = [toolbox.call(call) for text in texts for call in parse_tool_calls(text)]
    assert [results[0].text, results[2].text] == ["5", "10"]
