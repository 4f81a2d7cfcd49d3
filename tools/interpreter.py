"""The Python interpreter as a tool: cells in a sandbox, with names that live as long as the episode."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, DataError, ForkError, InfrastructureError, ToolError, UnforkableStateError
from agentrl.messages import JsonDict
from agentrl.registry import nearest
from agentrl.sandbox import (
    SANDBOXES,
    ExecResult,
    Limits,
    Sandbox,
    SandboxUnavailableError,
    SecurityLevel,
    Session,
    Share,
    open_sandbox,
)
from agentrl.tools.core import Tool

MAX_FILE_BYTES = 16 << 20
"""What is read of a session's file unless the caller says more."""
_KEPT = "Names, imports and files are kept from call to call."
_NOT_KEPT = "Every call is a program of its own: nothing is kept from one to the next."


class InterpreterTool(Tool):
    """Runs Python in one sandbox session per episode, started at the first call.

    A program that fails, or is killed, is a failed call whose text says why. A sandbox that isolates and fails is
    replaced once, and the cells of the episode are run again in the new one: nothing but the sandbox knew of them. If
    that gives other results, or fails too, the episode ends as invalid, as it does at once where nothing isolates: a
    cell that may have had effects outside is never run twice. A fork of the episode continues in a fork of the session.

    Args:
        sandbox: Where the code runs.
        limits: Of every session.
        files: Relative path to content, laid into the working directory of every session.
    """

    name = "python"
    parameters: JsonDict = {  # noqa: RUF012 - declared by Tool
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code."}},
        "required": ["code"],
    }
    deadline_s = None  # the sandbox keeps limits of its own; a second one would lose the session

    def __init__(
        self, sandbox: Sandbox, *, limits: Limits | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        if isinstance(sandbox, str):
            raise ConfigError(f"InterpreterTool needs a sandbox, got its name: give open_sandbox({sandbox!r}).")
        if limits is not None and not isinstance(limits, Limits):
            raise ConfigError(f"limits must be agentrl.sandbox.Limits, got {limits!r}: give Limits(cpu_s=1), say.")
        self._sandbox = sandbox
        self._limits = limits or Limits()
        self._files = dict(files or {})
        self._session: Session | None = None
        self._history: list[tuple[str, str]] = []
        """Code and output of the session's cells."""
        self.description = (
            "Run Python code and see what it prints, and the value of its last expression. "
            f"{_KEPT if sandbox.keeps_state else _NOT_KEPT}"
        )
        # Without isolation a cell may do something outside of the episode that must not be done twice.
        self.idempotent = sandbox.security_level > SecurityLevel.NONE
        self.max_output_chars = int(self._limits.output_bytes)  # never less than what the sandbox has left of it

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Runs one cell.

        Raises:
            ToolError: The program failed or was killed.
            InfrastructureError: The sandbox failed, and so did its replacement, or it does not isolate.
        """
        code = arguments["code"]
        session = self._started()
        try:
            result = session.run(code)
        except SandboxUnavailableError:
            raise
        except InfrastructureError as error:
            result = self._again(error).run(code)
        self._history.append((code, result.output))
        return render(result)

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """A file of the episode's working directory, for rewards that judge what the agent has made.

        Raises:
            SandboxFileError: There is no such file, or it is larger than `max_bytes`, or a link.
            InfrastructureError: The sandbox failed.
        """
        return self._started().read(path, max_bytes)

    def write(self, path: str, data: bytes) -> None:
        """Lays a file into the episode's working directory, as a task of its own may need.

        Raises:
            SandboxFileError: There is no space, or something else of that name.
            InfrastructureError: The sandbox failed.
        """
        self._started().write(path, data)
        self._files[path] = data  # should the session have to be started again

    def list_files(self) -> list[str]:
        """Paths of the files in the episode's working directory.

        Raises:
            InfrastructureError: The sandbox failed.
        """
        return self._started().list_files()

    def open(self) -> Self:
        """An interpreter for one episode; its session starts when it is first called."""
        return type(self)(self._sandbox, limits=self._limits, files=self._files)

    def fork(self) -> Self:
        """An interpreter in the same state.

        Raises:
            UnforkableStateError: The session's state cannot be copied.
        """
        twin = self.open()
        if self._session is not None:
            try:
                twin._session = self._session.fork()
            except ForkError as error:  # other episodes may well do without threads and pipes
                raise UnforkableStateError(str(error)) from error
            twin._history = list(self._history)
        return twin

    def close(self) -> None:
        """Ends the session and all its processes; safe to call twice."""
        if self._session is not None:
            self._session.close()

    def _started(self) -> Session:
        if self._session is None:
            self._session = self._sandbox.open(limits=self._limits, files=self._files)
        return self._session

    def _again(self, error: InfrastructureError) -> Session:
        """A new session in the state of the one that failed.

        Raises:
            InfrastructureError: `error`, if there is no such session, or if cells must not be run twice.
        """
        self.close()  # and it stays, so that no later call runs anything either
        if not self.idempotent:
            raise error
        self._session = None
        for code, output in self._history:
            if self._started().run(code).output != output:
                raise error
        return self._started()


def render(result: ExecResult) -> str:
    """What the model reads of a cell that succeeded.

    Raises:
        ToolError: It did not; the text holds output and traceback, or the reason why it was killed.
    """
    text = result.output.rstrip("\n")
    if result.status != "ok":
        raise ToolError(text or f"The code failed ({result.status}).")
    return text or "(no output)"


def python_interpreter(
    *,
    sandbox: str | None = None,
    limits: Mapping[str, float] | None = None,
    files: Mapping[str, str] | None = None,
    ready: int = 0,
    share: Share = "nothing",
    options: Mapping[str, Any] | None = None,
) -> InterpreterTool:
    """The interpreter tool by the name of its sandbox, for configs.

    Args:
        sandbox: Name of a back end; there is no default, as this decides what protects the machine. "auto" takes one
            that isolates, or raises.
        limits: Fields of `Limits` that differ from the defaults.
        files: Path in every session's working directory to a file on this machine.
        ready: How many sandboxes are kept ready (see `open_sandbox`).
        share: "nothing" or "stateless" (see `open_sandbox`).
        options: Of the back end, such as the `image` of docker or the `url` of http.

    Raises:
        ConfigError: No sandbox is named, or a limit is unknown or out of range, or the back end has no such option.
        DataError: A file cannot be read.
        UnknownNameError: No back end has this name.
        SandboxUnavailableError: "auto" finds nothing that isolates.
    """
    if sandbox is None:
        raise ConfigError(f"Say which sandbox runs the model's code: sandbox={' | '.join(map(repr, SANDBOXES))}.")
    known = [field.name for field in fields(Limits)]
    for name in limits or {}:
        if name not in known:
            raise ConfigError(f"Unknown sandbox limit {name!r}. {nearest(name, known)}")
    return InterpreterTool(
        open_sandbox(sandbox, ready=ready, share=share, **(options or {})),
        limits=Limits(**dict(limits or {})),  # type: ignore[arg-type]
        files={path: _content(source) for path, source in (files or {}).items()},
    )


def _content(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"The file {source!r} for the interpreter cannot be read: {error}.") from error
