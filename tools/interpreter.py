"""The Python interpreter as a tool: cells in a sandbox, with names that live as long as the episode."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

from agentrl.errors import ConfigError, ToolError
from agentrl.messages import JsonDict
from agentrl.registry import nearest
from agentrl.sandbox import SANDBOXES, ExecResult, Limits, Sandbox, Session, open_sandbox
from agentrl.tools.core import Tool

_DEADLINE_MARGIN_S = 30.0


class InterpreterTool(Tool):
    """Runs Python in one sandbox session per episode, started at the first call.

    A program that fails, or is killed, is a failed call whose text says why; a sandbox that fails ends the episode as
    invalid. A fork of the episode continues in a fork of the session.

    Args:
        sandbox: Where the code runs.
        limits: Of every session.
        files: Relative path to content, laid into the working directory of every session.
    """

    name = "python"
    description = (
        "Run Python code and see what it prints, and the value of its last expression. "
        "Names, imports and files are kept from call to call."
    )
    parameters: JsonDict = {  # noqa: RUF012 - declared by Tool
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code."}},
        "required": ["code"],
    }

    def __init__(
        self, sandbox: Sandbox, *, limits: Limits | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        self._sandbox = sandbox
        self._limits = limits or Limits()
        self._files = dict(files or {})
        self._session: Session | None = None
        self.max_output_bytes = int(self._limits.output_bytes)
        # The sandbox keeps its own limit; the tool's must never come first, as it would lose the session.
        self.deadline_s = self._limits.wall_s + _DEADLINE_MARGIN_S

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Runs one cell.

        Raises:
            ToolError: The program failed or was killed.
            InfrastructureError: The sandbox failed.
        """
        if self._session is None:
            self._session = self._sandbox.open(limits=self._limits, files=self._files)
        return render(self._session.run(arguments["code"]))

    def open(self) -> Self:
        """An interpreter for one episode; its session starts when it is first called."""
        return type(self)(self._sandbox, limits=self._limits, files=self._files)

    def fork(self) -> Self:
        """An interpreter in the same state.

        Raises:
            ForkError: The session's state cannot be copied.
        """
        twin = self.open()
        if self._session is not None:
            twin._session = self._session.fork()
        return twin

    def close(self) -> None:
        """Ends the session and all its processes; safe to call twice."""
        if self._session is not None:
            self._session.close()


def render(result: ExecResult) -> str:
    """What the model reads of a cell that succeeded.

    Raises:
        ToolError: It did not; the text holds output and traceback, or the reason why it was killed.
    """
    text = result.output.rstrip("\n")
    if result.status != "ok":
        raise ToolError(text or f"The code failed ({result.status}).")
    return text or "(no output)"


def python_interpreter(*, sandbox: str | None = None, limits: Mapping[str, float] | None = None) -> InterpreterTool:
    """The interpreter tool by the name of its sandbox, for configs.

    Args:
        sandbox: Name of a back end; there is no default, as this decides what protects the machine.
        limits: Fields of `Limits` that differ from the defaults.

    Raises:
        ConfigError: No sandbox is named, or a limit is unknown or out of range.
        UnknownNameError: No back end has this name.
    """
    if sandbox is None:
        raise ConfigError(f"Say which sandbox runs the model's code: sandbox={' | '.join(map(repr, SANDBOXES))}.")
    known = [field.name for field in fields(Limits)]
    for name in limits or {}:
        if name not in known:
            raise ConfigError(f"Unknown sandbox limit {name!r}. {nearest(name, known)}")
    return InterpreterTool(open_sandbox(sandbox), limits=Limits(**dict(limits or {})))  # type: ignore[arg-type]
