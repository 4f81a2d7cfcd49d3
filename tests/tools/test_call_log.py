"""What a toolbox tells its log, and what it does with what the log knows."""

from collections.abc import Mapping
from typing import Any, Self

import pytest

from agentrl.call_records import Outcome
from agentrl.errors import InfrastructureError, InterruptedCallError
from agentrl.journal import CallLog
from agentrl.messages import MalformedCall, ToolCall
from agentrl.tools import StatefulTool, Toolbox, ToolError, tool
from agentrl.tools.core import Tool, ToolStatus


class Log(CallLog):
    """Writes down what it is told; answers from `known`, by the number of the call."""

    def __init__(self, known: Mapping[int, Outcome | Exception] | None = None) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._known = known or {}
        self._number = -1

    def begin(self, call: ToolCall, *, idempotent: bool, stale: bool) -> Outcome | None:
        self._number += 1
        self.told.append(("begin", call.name, dict(call.arguments), idempotent, stale))
        known = self._known.get(self._number)
        if isinstance(known, Exception):
            raise known
        return known

    def end(self, outcome: Outcome) -> None:
        self.told.append(("end", outcome.status, outcome.text))

    def refuse(self, call: ToolCall | MalformedCall, outcome: Outcome) -> None:
        self.told.append(("refuse", outcome.status, outcome.text))


ran: list[str] = []


@tool(inline=True, max_output_chars=40)
def act(how: str) -> str:
    """Acts.

    Args:
        how: In which way.
    """
    ran.append(how)
    if how == "fail":
        raise ToolError("failed")
    if how == "break":
        raise InfrastructureError("server gone")
    if how == "interrupt":
        raise KeyboardInterrupt
    return how


class Total(StatefulTool):
    """Adds up."""

    inline = True

    def __init__(self) -> None:
        self.total = 0

    def run(self, amount: int) -> int:
        """Adds.

        Args:
            amount: What to add.
        """
        self.total += amount
        return self.total


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def box(log: CallLog, *tools: Tool) -> Toolbox:
    toolbox = Toolbox(tools or [act])
    toolbox.log = log
    return toolbox


def test_calls_are_told_before_and_after() -> None:
    log = Log()
    toolbox = box(log)
    toolbox.call(ToolCall("act", {"how": "well"}))
    toolbox.call(ToolCall("act", {"how": "fail"}))
    toolbox.call(ToolCall("act", {"how": "x" * 100}))
    cut = "xxxxx\n[... 90 characters cut ...]\nxxxxx"
    assert log.told == [
        ("begin", "act", {"how": "well"}, False, False),
        ("end", "ok", "well"),
        ("begin", "act", {"how": "fail"}, False, False),
        ("end", "error", "failed"),
        ("begin", "act", {"how": "x" * 100}, False, False),
        ("end", "ok", cut),
    ]


def test_what_does_not_run_is_told_as_such() -> None:
    log = Log()
    toolbox = box(log)
    toolbox.call(ToolCall("act", {"hwo": "well"}))
    toolbox.call(ToolCall("cat", {}))
    toolbox.call(MalformedCall("{", "cut off"))
    assert [(kind, status) for kind, status, _ in log.told] == [("refuse", "invalid_call")] * 3
    assert ran == []


def test_a_failure_of_the_infrastructure_is_an_end_too_but_an_interrupt_is_none() -> None:
    log = Log()
    toolbox = box(log)
    with pytest.raises(InfrastructureError):
        toolbox.call(ToolCall("act", {"how": "break"}))
    assert log.told[1:] == [("end", "infrastructure", "InfrastructureError: server gone")]
    with pytest.raises(KeyboardInterrupt):
        toolbox.call(ToolCall("act", {"how": "interrupt"}))
    assert log.told[2:] == [("begin", "act", {"how": "interrupt"}, False, False)]


def test_a_known_result_is_used_and_nothing_runs() -> None:
    log = Log({0: Outcome("error", "no money", 1.5, 8)})
    result = box(log).call(ToolCall("act", {"how": "well"}))
    assert (result.tool, result.status, result.text) == ("act", ToolStatus.ERROR, "no money")
    assert (result.duration_s, result.num_chars, result.truncated) == (1.5, 8, False)
    assert ran == []


def test_a_call_that_must_not_run_does_not() -> None:
    with pytest.raises(InterruptedCallError, match="no"):
        box(Log({0: InterruptedCallError("no")})).call(ToolCall("act", {"how": "well"}))
    assert ran == []


def test_a_tool_whose_calls_were_not_run_is_stale_in_forks_too() -> None:
    log = Log({0: Outcome("ok", "5")})
    toolbox = box(log, Total(), act)
    toolbox.call(ToolCall("total", {"amount": 5}))
    toolbox.call(ToolCall("act", {"how": "well"}))
    twin = toolbox.fork()
    assert twin.log is None
    twin.log = log
    twin.call(ToolCall("total", {"amount": 1}))
    stale = [(entry[1], entry[4]) for entry in log.told if entry[0] == "begin"]
    assert stale == [("total", False), ("act", False), ("total", True)]


def test_a_tool_that_timed_out_in_the_interrupted_run_is_lost_in_this_one() -> None:
    toolbox = box(Log({0: Outcome("timeout", "no result")}), Total(), act)
    assert toolbox.call(ToolCall("total", {"amount": 5})).status is ToolStatus.TIMEOUT
    assert "was lost by a timeout" in toolbox.call(ToolCall("total", {"amount": 5})).text


def test_idempotent_tools_say_so() -> None:
    class Look(Total):
        name = "look"
        idempotent = True

        def open(self) -> Self:
            return self

    log = Log()
    toolbox = box(log, Look())
    toolbox.call(ToolCall("look", {"amount": 1}))
    assert log.told[0] == ("begin", "look", {"amount": 1}, True, False)
    assert toolbox.may_repeat(ToolCall("look", {"amount": 1}))
    assert toolbox.may_repeat(ToolCall("unknown"))
    assert toolbox.may_repeat(MalformedCall("{", "cut off"))
    assert not box(log).may_repeat(ToolCall("act"))
