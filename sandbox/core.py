"""The sandbox protocol: sessions that run Python code under limits, and what comes back.

Calls are synchronous: every caller is a tool call, which already has a thread of its own. A program's failure is a
`ExecResult`; a failure of the sandbox itself raises `InfrastructureError`, because it says nothing about the agent.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

from agentrl.errors import AgentRLError, ConfigError, InfrastructureError

ExecStatus: TypeAlias = Literal["ok", "error", "timeout", "killed"]
StateAfter: TypeAlias = Literal["kept", "rolled_back", "reset"]


class SecurityLevel(enum.IntEnum):
    """What a back end really holds against (sandbox reference, section 2)."""

    NONE = 0
    """Accidents only: endless loops, too much output. Not a security boundary."""
    CONTAINER = 2
    """Namespaces, seccomp, cgroups: hostile programs, but the kernel is shared."""
    USER_KERNEL = 3
    MICRO_VM = 4


class SandboxUnavailableError(InfrastructureError):
    """The back end cannot be used on this machine; the message names the remedy."""


class SandboxFileError(AgentRLError, OSError):
    """A file of a session cannot be read or written: the program's doing, or a wrong name."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one session. CPU seconds are the main limit, wall-clock seconds the safety net.

    Raises:
        ConfigError: A limit is not a positive finite number.
    """

    cpu_s: float = 10.0
    wall_s: float = 30.0
    memory_mb: int = 512
    pids: int = 64
    file_mb: int = 64
    """Size of one file."""
    disk_mb: int = 64
    """Size of all files together, where the back end can limit it."""
    inodes: int = 4096
    """Number of files and folders, where the back end can limit it."""
    open_files: int = 128
    output_bytes: int = 8192
    code_bytes: int = 100_000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value < 1e12:  # also false for NaN
                raise ConfigError(f"Sandbox limit {name} must be positive and finite, got {value!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    r"""What running one cell gave.

    Example:
        ExecResult(status="ok", output="3\n", output_bytes=2, state="kept", cpu_s=0.01, wall_s=0.01)
    """

    status: ExecStatus
    output: str
    """stdout and stderr in order, the value of a last expression, the traceback; cut to head and tail."""
    output_bytes: int
    """Size before the cut."""
    truncated: bool = False
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    """Of a killed cell: the limit it passed ("cpu", "wall", "memory", "pids", "files", "output"), or another cause,
    such as "died"."""
    state: StateAfter = "kept"
    """What became of the session's variables."""
    cpu_s: float
    wall_s: float


class Session(Protocol):
    """One interpreter whose names live from cell to cell."""

    def run(self, code: str) -> ExecResult:
        """Runs one cell.

        Raises:
            InfrastructureError: The sandbox itself failed.
        """
        ...

    def fork(self) -> Self:
        """An independent session in the same state.

        Raises:
            ForkError: The state cannot be reproduced.
        """
        ...

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a regular file below the working directory. No link is followed.

        Raises:
            SandboxFileError: There is no such file, or it is larger than `max_bytes`.
            InfrastructureError: The sandbox itself failed.
        """
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file below the working directory, and the folders that lead to it.

        Raises:
            SandboxFileError: There is no space, or something else of that name.
            InfrastructureError: The sandbox itself failed.
        """
        ...

    def list_files(self) -> list[str]:
        """Paths of the regular files below the working directory, sorted; the first 1,000.

        Raises:
            InfrastructureError: The sandbox itself failed.
        """
        ...

    def close(self) -> None:
        """Ends the session and every process in it; safe to call twice."""
        ...


class Sandbox(Protocol):
    """A back end that opens sessions."""

    name: str
    security_level: SecurityLevel
    keeps_state: bool
    """Whether names and files live from cell to cell."""

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Session:
        """Starts a session with `files` (relative path to content) in its working directory.

        Raises:
            SandboxUnavailableError: The back end cannot run here.
        """
        ...
