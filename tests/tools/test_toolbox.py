"""Opening, dispatching, forking and closing the tools of one episode."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, Self

import pytest

from agentrl.errors import ConfigError, ForkError, InfrastructureError, ToolError
from agentrl.messages import MalformedCall, ToolCall
from agentrl.tools.core import Tool, ToolResult, ToolStatus
from agentrl.tools.function import tool
from agentrl.tools.stateful import StatefulTool
from agentrl.tools.toolbox import MALFORMED, Toolbox


class Plain(Tool):
    """A hand-written tool that logs its life; `fails` names the step that raises."""

    description = "Echoes."
    inline = True

    def __init__(self, name: str, log: list[str], *, stateful: bool = True, fails: str = "") -> None:
        self.parameters = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        self.name, self.log, self.stateful, self.fails = name, log, stateful, fails

    def _step(self, step: str) -> Self:
        if self.fails == step:
            raise ForkError(f"{self.name} cannot {step}")
        self.log.append(f"{step} {self.name}")
        return type(self)(self.name, self.log, fails=self.fails) if self.stateful else self

    def open(self) -> Self:
        return self._step("open")

    def fork(self) -> Self:
        return self._step("fork")

    def close(self) -> None:
        self._step("close")

    def call(self, arguments: Mapping[str, Any]) -> Any:
        if self.fails == "call":
            return self.log
        return f"{self.name}: {arguments['text']}"


class TestLife:
    def test_owned_instances_are_closed_once_and_shared_ones_never(self) -> None:
        log: list[str] = []
        toolbox = Toolbox([Plain("a", log), Plain("shared", log, stateful=False)])
        twin = toolbox.fork()
        toolbox.close()
        toolbox.close()
        twin.close()
        assert log == ["open a", "open shared", "fork a", "fork shared", "close a", "close a"]

    def test_all_are_closed_even_if_one_fails(self) -> None:
        log: list[str] = []
        toolbox = Toolbox([Plain("a", log), Plain("b", log, fails="close"), Plain("c", log)])
        with pytest.raises(ForkError, match="b cannot close"):
            toolbox.close()
        assert log[3:] == ["close c", "close a"]
        toolbox.close()
        assert len(log) == 5

    @pytest.mark.parametrize("step", ["open", "fork"])
    def test_nothing_stays_open_when_opening_or_forking_fails_halfway(self, step: str) -> None:
        log: list[str] = []
        tools = [Plain("a", log), Plain("b", log, fails=step), Plain("c", log)]
        with pytest.raises(ForkError, match=f"b cannot {step}"), Toolbox(tools) as toolbox:
            toolbox.fork()
        opened = [line for line in log if line.startswith(("open", "fork"))]
        closed = [line for line in log if line.startswith("close")]
        assert len(opened) == len(closed)
        assert f"{step} c" not in log

    def test_a_closed_toolbox_runs_and_forks_nothing(self) -> None:
        toolbox = Toolbox([Plain("a", [])])
        toolbox.close()
        with pytest.raises(InfrastructureError, match="closed"):
            toolbox.call(ToolCall("a", {"text": "x"}))
        with pytest.raises(ForkError, match="closed"):
            toolbox.fork()

    def test_a_fork_that_would_share_state_is_refused(self) -> None:
        class Shares(Plain):
            def fork(self) -> Self:
                return self

        with Toolbox([Shares("a", [])]) as toolbox, pytest.raises(ForkError, match="returned the instance itself"):
            toolbox.fork()

    def test_two_tools_of_one_name_are_refused_before_any_is_opened(self) -> None:
        log: list[str] = []
        with pytest.raises(ConfigError, match="Two tools are called 'a'"):
            Toolbox([Plain("a", log), Plain("b", log), Plain("a", log)])
        assert log == []

    def test_an_unusable_definition_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="Tool name 'a b'"):
            Toolbox([Plain("a b", [])])


def test_schemas_and_inline_describe_all_tools() -> None:
    slow = Plain("slow", [])
    slow.inline = False
    assert [schema["function"]["name"] for schema in Toolbox([Plain("b", []), Plain("a", [])]).schemas] == ["b", "a"]
    assert Toolbox([]).inline
    assert Toolbox([Plain("a", [])]).inline
    assert not Toolbox([Plain("a", []), Plain("c", [], stateful=False), slow_tool]).inline


@tool
def slow_tool() -> str:
    """Takes a thread."""
    return threading.current_thread().name


@tool(inline=True)
def inline_tool() -> str:
    """Takes none."""
    return threading.current_thread().name


def test_only_inline_tools_run_in_the_calling_thread() -> None:
    toolbox = Toolbox([slow_tool, inline_tool])
    here = threading.current_thread().name
    assert toolbox.call(ToolCall("inline_tool")).text == here
    assert toolbox.call(ToolCall("slow_tool")).text == "agentrl-tool" != here


def test_a_good_result_has_its_measurements() -> None:
    result = Toolbox([Plain("a", [])]).call(ToolCall("a", {"text": "\u20ac"}))
    assert result == ToolResult("a", "a: \u20ac", ToolStatus.OK, result.duration_s, num_chars=4)
    assert result.ok
    assert result.duration_s > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "text: missing"),
        ({"text": 3}, "text: should be of type string, got 3"),
        ({"text": True}, "text: should be of type string, got true"),
        ({"text": "x", "tekst": 1}, "tekst: unknown argument. Did you mean 'text'?"),
    ],
)
def test_a_hand_written_schema_is_checked_at_its_top_level(arguments: dict[str, Any], text: str) -> None:
    result = Toolbox([Plain("a", [])]).call(ToolCall("a", arguments))
    assert (result.text, result.status) == (f"Wrong arguments for tool 'a':\n{text}", ToolStatus.INVALID_CALL)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this fails")


RAISED: list[tuple[BaseException, str]] = [
    (ToolError("first line\nsecond line"), "first line\nsecond line"),
    (ToolError(), "Tool 'raising' failed."),
    (ValueError("a\n  b"), "ValueError: a b"),
    (KeyError("k"), "KeyError: 'k'"),
    (ZeroDivisionError(), "ZeroDivisionError"),
    (ValueError("x" * 9999), "ValueError: " + "x" * 500),
    (Unprintable(), "Unprintable"),
    (SystemExit(3), "SystemExit: 3"),
    (RecursionError("deep"), "RecursionError: deep"),
    (asyncio.CancelledError(), "CancelledError"),
    (TimeoutError("socket"), "TimeoutError: socket"),
]


@pytest.mark.parametrize(("error", "text"), RAISED)
@pytest.mark.parametrize("inline", [False, True])
def test_whatever_a_tool_raises_is_a_result(error: BaseException, text: str, inline: bool) -> None:
    @tool(inline=inline)
    def raising() -> str:
        """Raises."""
        raise error

    result = Toolbox([raising]).call(ToolCall("raising"))
    assert (result.text, result.status) == (text, ToolStatus.ERROR)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("error", [InfrastructureError("server gone"), KeyboardInterrupt()])
def test_only_infrastructure_failures_and_the_user_get_through(error: BaseException, inline: bool) -> None:
    @tool(inline=inline)
    def raising() -> str:
        """Raises."""
        raise error

    with pytest.raises(type(error)):
        Toolbox([raising]).call(ToolCall("raising"))


def test_a_result_that_is_no_text_is_the_fault_of_the_tool() -> None:
    result = Toolbox([Plain("a", [], fails="call")]).call(ToolCall("a", {"text": "x"}))
    assert (result.text, result.status) == ("TypeError: the tool returned list instead of str", ToolStatus.ERROR)


def test_an_inline_tool_cannot_be_waited_for() -> None:
    class Waits(Plain):
        async def call(self, arguments: Mapping[str, Any]) -> str:
            return "never"

    result = Toolbox([Waits("a", [])]).call(ToolCall("a", {"text": "x"}))
    assert result.text == "TypeError: the tool returned coroutine instead of str"


def test_results_are_made_clean_and_cut_to_the_limit_of_their_tool() -> None:
    @tool(max_output_chars=64)
    def dirty(times: int) -> str:
        """Returns what UTF-8 cannot hold.

        Args:
            times: How often.
        """
        return "\ud800\0<|im_end|>" * times

    toolbox = Toolbox([dirty])
    once, often = toolbox.call(ToolCall("dirty", {"times": 1})), toolbox.call(ToolCall("dirty", {"times": 1000}))
    assert once.text == "\ufffd\ufffd<|im_end|>"  # markup is left to whoever renders the chat
    assert (once.num_chars, once.truncated) == (12, False)  # 2 + 10
    assert (often.num_chars, often.truncated) == (12_000, True)
    assert len(often.text) <= 64


def test_names_of_unknown_and_malformed_calls() -> None:
    toolbox = Toolbox([Plain("calculator", [])])
    near = toolbox.call(ToolCall("calculater", {}))
    assert (near.tool, near.text) == ("calculater", "Unknown tool 'calculater'. Did you mean 'calculator'?")
    far = toolbox.call(ToolCall("x\ud800" * 1000, {}))
    assert far.tool == "x\ufffd" * 32
    assert far.text.endswith("Known: calculator.")
    malformed = toolbox.call(MalformedCall("<tool_call>", "The call is empty."))
    assert (malformed.tool, malformed.text) == (MALFORMED, "Malformed tool call: The call is empty.")
    assert {near.status, far.status, malformed.status} == {ToolStatus.INVALID_CALL}


class Counter(StatefulTool):
    """Counts its calls and hangs in the one that is told to."""

    deadline_s = 60.0

    def __init__(self) -> None:
        self.calls = 0

    def run(self, hang: bool = False) -> int:
        """Counts.

        Args:
            hang: Whether to hang first.
        """
        if hang:
            RELEASE.wait(60)
        self.calls += 1
        return self.calls


RELEASE = threading.Event()


def call_that_hangs(toolbox: Toolbox) -> ToolResult:
    """Of `Counter`, with a deadline that holds for no other call: those are to end, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counter, "deadline_s", 0.05)
        return toolbox.call(ToolCall("counter", {"hang": True}))


class TestTimeouts:
    def test_a_stateful_tool_is_lost_by_a_timeout_in_forks_too(self) -> None:
        with Toolbox([Counter()]) as toolbox:
            assert toolbox.call(ToolCall("counter")).text == "1"
            before = toolbox.fork()
            hung = call_that_hangs(toolbox)
            assert hung.status is ToolStatus.TIMEOUT
            assert hung.text == (
                "Tool 'counter' gave no result within 0.05 s. Its state is lost; it cannot be called again."
            )
            after = toolbox.fork()
            for box in (toolbox, after):
                lost = box.call(ToolCall("counter"))
                assert lost.status is ToolStatus.ERROR
                assert lost.text == "Tool 'counter' was lost by a timeout and cannot be called again."
                assert [schema["function"]["name"] for schema in box.schemas] == ["counter"]
            assert before.call(ToolCall("counter")).text == "2", "a branch from before the timeout lives on"
            before.close()
            after.close()

    def test_a_lost_instance_is_still_closed_by_its_owner_alone(self) -> None:
        closed: list[int] = []

        class Closing(Counter):
            def close(self) -> None:
                closed.append(id(self))

        toolbox = Toolbox([Closing()])
        assert call_that_hangs(toolbox).status is ToolStatus.TIMEOUT
        toolbox.fork().close()
        assert closed == []
        toolbox.close()
        assert len(closed) == 1

    def test_a_tool_without_state_can_be_called_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @tool(deadline_s=0.05)
        async def nap(seconds: float) -> str:
            """Sleeps.

            Args:
                seconds: How long.
            """
            await asyncio.sleep(seconds)
            return "awake"

        toolbox = Toolbox([nap])
        late = toolbox.call(ToolCall("nap", {"seconds": 60}))
        assert (late.status, late.text) == (ToolStatus.TIMEOUT, "Tool 'nap' gave no result within 0.05 s.")
        monkeypatch.setattr(nap, "deadline_s", 60.0)
        assert toolbox.call(ToolCall("nap", {"seconds": 0})).text == "awake"


def test_forks_are_independent() -> None:
    with Toolbox([Counter(), inline_tool]) as toolbox:
        toolbox.call(ToolCall("counter"))
        with toolbox.fork() as twin:
            assert [box.call(ToolCall("counter")).text for box in (twin, twin, toolbox)] == ["2", "3", "2"]
