"""The tools of one episode: every call, however wrong, comes back as a result that the model can read."""

import inspect
import time
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from agentrl.errors import ConfigError, ForkError, InfrastructureError, ToolError
from agentrl.messages import JsonDict, MalformedCall, ToolCall
from agentrl.registry import nearest
from agentrl.text import clean_text, clip_output
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.core import Tool, ToolResult, ToolStatus, check_definition
from agentrl.tools.deadline import DeadlineExceededError, run_with_deadline

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


class Toolbox:
    """Opens every tool for one episode and dispatches calls by name.

    A toolbox closes exactly the instances that `open()` or `fork()` made for it. A tool without state returns itself
    from both; it is shared with other episodes, possibly at the same time, and stays open.

    A tool that keeps state is lost when one of its calls times out: Python cannot stop the thread, which may change
    the state at any later moment, so that no result after it could be trusted or reproduced. Every later call of
    that tool in the episode is answered with an error, in forks too.

    Args:
        tools: What to open; their order has no meaning beyond the order of `schemas`.

    Raises:
        ConfigError: Two tools have one name, or one is not properly defined. Nothing stays open.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        given = _by_name(tools)
        with ExitStack() as exit_stack:
            self._tools = {name: _entered(tool, tool.open(), exit_stack) for name, tool in given.items()}
            self._exit_stack = exit_stack.pop_all()
        self._closed = False

    @property
    def schemas(self) -> list[JsonDict]:
        """The tools in the OpenAI function convention, as chat templates take them."""
        return [opened.tool.schema for opened in self._tools.values()]

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
            name, opened = MALFORMED, None
            text, status = f"Malformed tool call: {call.error}", ToolStatus.INVALID_CALL
        else:
            name, opened = clean_text(call.name)[:MAX_NAME_CHARS], self._tools.get(call.name)
            text, status = self._unknown(name) if opened is None else _attempt(opened, call.arguments)
        clipped = clip_output(text, Tool.max_output_bytes if opened is None else opened.tool.max_output_bytes)
        duration_s = time.perf_counter() - started
        return ToolResult(name, clipped.text, status, duration_s, clipped.num_bytes, clipped.truncated)

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

    def _unknown(self, name: str) -> tuple[str, ToolStatus]:
        return f"Unknown tool {name!r}. {nearest(name, list(self._tools))}", ToolStatus.INVALID_CALL


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
    return twin


def _attempt(opened: _Opened, arguments: Mapping[str, Any]) -> tuple[str, ToolStatus]:
    """The text and status of a call to a known tool."""
    tool = opened.tool
    if opened.lost:
        return f"Tool {tool.name!r} was lost by a timeout and cannot be called again.", ToolStatus.ERROR
    try:
        return _run(tool, tool.check(arguments)), ToolStatus.OK
    except (InfrastructureError, KeyboardInterrupt):
        raise
    except InvalidArgumentsError as error:
        return f"Wrong arguments for tool {tool.name!r}:\n{error}", ToolStatus.INVALID_CALL
    except DeadlineExceededError:
        opened.lost = opened.owned
        return _timeout_text(opened), ToolStatus.TIMEOUT
    except ToolError as error:
        return _message(error) or f"Tool {tool.name!r} failed.", ToolStatus.ERROR
    except BaseException as error:  # SystemExit and asyncio.CancelledError too: a tool cannot end the training
        message = " ".join(_message(error).split())[:MAX_ERROR_CHARS]
        return f"{type(error).__name__}: {message}".removesuffix(": "), ToolStatus.ERROR


def _run(tool: Tool, arguments: Mapping[str, Any]) -> str:
    def work() -> str | Awaitable[str]:
        return tool.call(arguments)

    result = work() if tool.inline else run_with_deadline(work, tool.deadline_s)
    if not isinstance(result, str):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"the tool returned {type(result).__name__} instead of str")
    return result


def _timeout_text(opened: _Opened) -> str:
    text = f"Tool {opened.tool.name!r} gave no result within {opened.tool.deadline_s:g} s."
    return f"{text} Its state is lost; it cannot be called again." if opened.lost else text


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""  # an exception whose own __str__ fails
