"""The tools of one episode: every call, however wrong, comes back as a result that the model can read."""

import inspect
import time
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from agentrl.call_records import INFRASTRUCTURE, Outcome
from agentrl.errors import ConfigError, ForkError, InfrastructureError, ToolError, UnknownNameError
from agentrl.journal import CallLog
from agentrl.messages import JsonDict, MalformedCall, ToolCall
from agentrl.registry import nearest
from agentrl.text import clean_text, clip_output
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.call_slots import slots_of
from agentrl.tools.core import Tool, ToolResult, ToolStatus, check_definition
from agentrl.tools.deadline import DeadlineExceededError

MALFORMED = "(malformed)"
"""Tool name in the result of a call that did not parse; no tool can be called that."""
MAX_NAME_CHARS = 64
MAX_ERROR_CHARS = 500


@dataclass(slots=True)
class _Opened:
    """One tool in this episode."""

    tool: Tool
    owned: bool
    """`open()` or `fork()` made this instance for this toolbox alone, so it is closed here."""
    lost: bool = False
    """A call timed out in it and may still be changing its state."""
    stale: bool = False
    """Results of an interrupted run were used in place of calls, so that its state lacks what those have done."""


class Toolbox:
    """Opens every tool for one episode and dispatches calls by name.

    A toolbox closes exactly the instances that `open()` or `fork()` made for it. A tool without state returns itself
    from both; it is shared with other episodes, possibly at the same time, and stays open.

    A tool that keeps state is lost when one of its calls times out: Python cannot stop the thread, which may change
    the state at any later moment, so that no result after it could be trusted or reproduced. Every later call of
    that tool in the episode is answered with an error, in forks too.

    Args:
        tools: What to open; their order has no meaning beyond the order of `schemas`.

    Attributes:
        log: Is told of every call, and may know what came of it already; None for no log. A fork begins without.

    Raises:
        ConfigError: Two tools have one name, or one is not properly defined. Nothing stays open.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        given = _by_name(tools)
        with ExitStack() as exit_stack:
            self._tools = {name: _entered(tool, tool.open(), exit_stack) for name, tool in given.items()}
            self._exit_stack = exit_stack.pop_all()
        self._closed = False
        self.log: CallLog | None = None

    @property
    def schemas(self) -> list[JsonDict]:
        """The tools in the OpenAI function convention, as chat templates take them."""
        return [opened.tool.schema for opened in self._tools.values()]

    def __getitem__(self, name: str) -> Tool:
        """The instance that serves this episode, for what a tool offers besides calls.

        Raises:
            UnknownNameError: There is no such tool here.
        """
        if name not in self._tools:
            raise UnknownNameError(f"Unknown tool {name!r}. {nearest(name, list(self._tools))}")
        return self._tools[name].tool

    @property
    def inline(self) -> bool:
        """Whether no call can block."""
        return all(opened.tool.inline for opened in self._tools.values())

    def call(self, call: ToolCall | MalformedCall) -> ToolResult:
        """Runs one call. Whatever goes wrong in it is a result for the model.

        Raises:
            InfrastructureError: The episode cannot go on, or the toolbox is closed. Nothing else is raised.
        """
        if self._closed:
            raise InfrastructureError("The tools of this episode are closed.")
        started = time.perf_counter()
        if isinstance(call, MalformedCall):
            return self._refused(call, MALFORMED, f"Malformed tool call: {call.error}", started)
        opened = self._tools.get(call.name)
        if opened is None:
            name = clean_text(call.name)[:MAX_NAME_CHARS]
            return self._refused(call, name, f"Unknown tool {name!r}. {nearest(name, list(self._tools))}", started)
        tool = opened.tool
        try:
            arguments = _checked(opened, call.arguments)
        except _RefusedError as refusal:
            return self._refused(call, tool.name, refusal.text, started, refusal.status, tool.max_output_chars)
        outcome = self._logged(opened, call, arguments)
        if outcome.status == ToolStatus.TIMEOUT:
            opened.lost = opened.owned
        return _result(tool.name, outcome)

    def may_repeat(self, call: ToolCall | MalformedCall) -> bool:
        """Whether running a call that has run before does no harm; what runs nothing never does."""
        opened = None if isinstance(call, MalformedCall) else self._tools.get(call.name)
        return opened is None or opened.tool.idempotent

    def fork(self) -> "Toolbox":
        """An independent toolbox in the present state; a lost tool is lost in both.

        Raises:
            ForkError: A tool's state cannot be copied. Nothing of the copy stays open.
        """
        if self._closed:
            raise ForkError("The tools of this episode are closed, so there is nothing to fork.")
        twin = object.__new__(Toolbox)
        with ExitStack() as exit_stack:
            twin._tools = {name: _forked(opened, exit_stack) for name, opened in self._tools.items()}
            twin._exit_stack = exit_stack.pop_all()
        twin._closed = False
        twin.log = None
        return twin

    def close(self) -> None:
        """Closes every instance that belongs to this toolbox, all of them even if one fails; safe to call twice.

        Raises:
            Exception: What the last failing tool raised, after all were closed; it chains to the earlier ones.
        """
        self._closed = True
        self._exit_stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refused(
        self,
        call: ToolCall | MalformedCall,
        name: str,
        text: str,
        started: float,
        status: ToolStatus = ToolStatus.INVALID_CALL,
        max_chars: int = Tool.max_output_chars,
    ) -> ToolResult:
        """The answer to a call for which nothing ran."""
        outcome = _outcome(text, status, started, max_chars)
        if self.log is not None:
            self.log.refuse(call, outcome)
        return _result(name, outcome)

    def _logged(self, opened: _Opened, call: ToolCall, arguments: Mapping[str, Any]) -> Outcome:
        """Runs a call and tells the log before and after, or takes what the log knows."""
        if self.log is not None:
            known = self.log.begin(call, idempotent=opened.tool.idempotent, stale=opened.stale)
            if known is not None:
                opened.stale = opened.owned
                return known
        started = time.perf_counter()
        try:
            text, status = _attempt(opened, arguments)
        except InfrastructureError as error:
            if self.log is not None:
                text = f"{type(error).__name__}: {error}"
                self.log.end(_outcome(text, INFRASTRUCTURE, started, Tool.max_output_chars))
            raise
        outcome = _outcome(text, status, started, opened.tool.max_output_chars)
        if self.log is not None:
            self.log.end(outcome)
        return outcome


def _outcome(text: str, status: str, started: float, max_chars: int) -> Outcome:
    clipped = clip_output(text, max_chars)
    return Outcome(status, clipped.text, time.perf_counter() - started, clipped.num_chars, clipped.truncated)


def _result(name: str, outcome: Outcome) -> ToolResult:
    status = ToolStatus(outcome.status)
    return ToolResult(name, outcome.text, status, outcome.duration_s, outcome.num_chars, outcome.truncated)


def _by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    named: dict[str, Tool] = {}
    for tool in tools:
        check_definition(tool)
        if tool.name in named:
            raise ConfigError(f"Two tools are called {tool.name!r}: give one of them another name.")
        named[tool.name] = tool
    return named


def _entered(source: Tool, instance: Tool, exit_stack: ExitStack) -> _Opened:
    owned = instance is not source
    if owned:
        exit_stack.callback(instance.close)
    return _Opened(instance, owned)


def _forked(opened: _Opened, exit_stack: ExitStack) -> _Opened:
    if opened.lost:
        return _Opened(opened.tool, owned=False, lost=True)  # for its schema only: it will not be called
    twin = _entered(opened.tool, opened.tool.fork(), exit_stack)
    if opened.owned and not twin.owned:
        raise ForkError(
            f"fork() of tool {opened.tool.name!r} returned the instance itself although open() made one of its own; "
            "the two episodes would share its state."
        )
    twin.stale = opened.stale
    return twin


class _RefusedError(Exception):
    """A call to a known tool that cannot run."""

    def __init__(self, text: str, status: ToolStatus) -> None:
        self.text, self.status = text, status


def _checked(opened: _Opened, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the tool's `call` gets.

    Raises:
        _RefusedError: The tool is lost, or the arguments are wrong.
        InfrastructureError: Likewise from the tool.
    """
    tool = opened.tool
    if opened.lost:
        text = f"Tool {tool.name!r} was lost by a timeout and cannot be called again."
        raise _RefusedError(text, ToolStatus.ERROR)
    try:
        return tool.check(arguments)
    except InvalidArgumentsError as error:
        text = f"Wrong arguments for tool {tool.name!r}:\n{error}"
        raise _RefusedError(text, ToolStatus.INVALID_CALL) from error
    except (InfrastructureError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _RefusedError(*_failure(tool, error)) from error


def _attempt(opened: _Opened, arguments: Mapping[str, Any]) -> tuple[str, ToolStatus]:
    """The text and status of a call that runs."""
    try:
        return _run(opened.tool, arguments), ToolStatus.OK
    except (InfrastructureError, KeyboardInterrupt):
        raise
    except InvalidArgumentsError as error:  # from within the tool: it checks what a schema cannot say
        return f"Wrong arguments for tool {opened.tool.name!r}:\n{error}", ToolStatus.INVALID_CALL
    except DeadlineExceededError:
        return _timeout_text(opened), ToolStatus.TIMEOUT
    except BaseException as error:  # SystemExit and asyncio.CancelledError too: a tool cannot end the training
        return _failure(opened.tool, error)


def _failure(tool: Tool, error: BaseException) -> tuple[str, ToolStatus]:
    if isinstance(error, ToolError):
        return _message(error) or f"Tool {tool.name!r} failed.", ToolStatus.ERROR
    message = " ".join(_message(error).split())[:MAX_ERROR_CHARS]
    return f"{type(error).__name__}: {message}".removesuffix(": "), ToolStatus.ERROR


def _run(tool: Tool, arguments: Mapping[str, Any]) -> str:
    def work() -> str | Awaitable[str]:
        return tool.call(arguments)

    result = work() if tool.inline else slots_of(tool).run(work, tool.deadline_s)
    if not isinstance(result, str):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"the tool returned {type(result).__name__} instead of str")
    return result


def _timeout_text(opened: _Opened) -> str:
    limit = opened.tool.deadline_s
    text = f"Tool {opened.tool.name!r} gave no result {'in time' if limit is None else f'within {limit:g} s'}."
    return f"{text} Its state is lost; it cannot be called again." if opened.owned else text


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""  # an exception whose own __str__ fails
