"""What an attack is: a program, and what must hold when a session runs it.

Programs print `LEAKED ...` when they reached what no program in a sandbox may reach, and `REFUSED name cause` when they
were kept from it, so that a program which did not even try (a missing module, a typing error) is not taken for a wall.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from agentrl.sandbox.core import ExecResult, ExecStatus, Limits, StateAfter

Group: TypeAlias = Literal["time", "memory", "process", "output", "exit", "fs", "secrets", "net", "kernel", "state"]
LEAKED = "LEAKED"

_SMALL: dict[str, int] = {"memory_mb": 200, "file_mb": 8, "disk_mb": 32, "inodes": 2000, "pids": 32, "open_files": 64}
BUSY = Limits(cpu_s=0.3, wall_s=30, **_SMALL)
"""For programs that burn CPU: however slow the machine, it is the CPU limit that ends them."""
IDLE = Limits(cpu_s=20, wall_s=3, **_SMALL)
"""For programs that wait. The cells that look for damage afterwards have no more, on a machine that may stand still."""
ROOMY = Limits(cpu_s=5, wall_s=30, **_SMALL)
"""For programs that do much, but come to an end."""
MANY_FILES = Limits(cpu_s=5, wall_s=30, **{**_SMALL, "open_files": 256})
"""For programs that hold memory by open descriptors."""


class Bare(enum.Enum):
    """What comes of a program in a session that has limits but no isolation (back end `unsafe_subprocess`)."""

    HOLDS = "holds"
    """Limits alone are enough: an accident."""
    REACHES = "reaches"
    """It does no harm and reports `LEAKED`: run there, it proves that the program can tell a sandbox from none."""
    DANGEROUS = "dangerous"
    """It means harm, to the machine or its runner, or reaches for what is nobody's business: never run it there."""


class Cell(NamedTuple):
    """A cell that must succeed with exactly this output."""

    code: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """One way in which an attack may end.

    Example:
        Ending(status="killed", reasons=("died",), state="rolled_back", shows=("died by SIGSEGV",), signal=11)
    """

    status: ExecStatus
    reasons: tuple[str | None, ...] = (None,)
    """Any of these; empty: any at all."""
    state: StateAfter = "kept"
    shows: tuple[str, ...] = ()
    """All of these are in the output."""
    exit_code: int | None = None
    """None: not compared; so for the signal."""
    signal: int | None = None

    def mismatch(self, result: ExecResult) -> str | None:
        """What in a result is not as it should be, or None."""
        if (result.status, result.state) != (self.status, self.state):
            return f"{result.status}/{result.state} instead of {self.status}/{self.state}"
        if self.reasons and result.reason not in self.reasons:
            return f"reason {result.reason} instead of {' or '.join(map(str, self.reasons))}"
        for name in ("exit_code", "signal"):
            expected, actual = getattr(self, name), getattr(result, name)
            if expected is not None and actual != expected:
                return f"{name} {actual} instead of {expected}"
        missing = [text for text in self.shows if text not in result.output]
        return f"the output lacks {missing[0]!r}" if missing else None


@dataclass(frozen=True, slots=True)
class Expectation:
    """The endings that are right; more than one where back ends stop a program by different means."""

    endings: tuple[Ending, ...]

    def __or__(self, other: "Expectation") -> "Expectation":
        return Expectation(self.endings + other.endings)

    def fault(self, result: ExecResult) -> str | None:
        """Why a result is none of the right ones, or None."""
        if LEAKED in result.output:
            return f"it got out: {_line_with(LEAKED, result.output)}"
        mismatches = [ending.mismatch(result) for ending in self.endings]
        return None if None in mismatches else "; ".join(filter(None, mismatches))


@dataclass(frozen=True, slots=True)
class Attack:
    """A program that goes wrong or means harm, and what must come of it.

    After it, always: the names from before are there unless a reset was reported, the next cell prints, the neighbour
    answers, no process of it is left, nothing on the host was touched (see `run_attack`).

    Texts such as `@CANARY@` in `code`, `then` and `neighbour` stand for Python literals of values that only the host
    knows; `Surroundings` has them.
    """

    id: int
    """1 to 75 as in the published list of cases; further ones from 201."""
    group: Group
    name: str
    code: str
    expect: Expectation
    limits: Limits = BUSY
    bare: Bare = Bare.HOLDS
    setup: tuple[str, ...] = ()
    """Cells that run before it, and succeed."""
    then: tuple[Cell, ...] = ()
    """Cells that run after it."""
    neighbour: Cell | None = None
    """A cell that another session of the same back end runs after it."""
    reads: tuple[str, ...] = ()
    """Files that the host asks for after it; it may get them or an error, but nothing from outside, and no hang."""
    fork: bool = False
    """The session is forked after it, and `then` holds in the copy too."""
    forgets: bool = False
    """The program itself deletes the session's names."""
    aftershock: bool = False
    """What it broke may also show later: the next cells may be killed, as long as they say so."""

    @property
    def hostile(self) -> bool:
        """Whether limits without isolation are not enough."""
        return self.bare is not Bare.HOLDS

    def cells(self) -> Iterator[str]:
        """The code of all its cells, with marks still in them."""
        yield from self.setup
        yield self.code
        yield from (cell.code for cell in self.then)
        if self.neighbour is not None:
            yield self.neighbour.code

    def code_for(self, values: Mapping[str, object]) -> str:
        """The program with every mark replaced."""
        return fill(self.code, values)


def fill(code: str, values: Mapping[str, object]) -> str:
    r"""Replaces every mark by the Python literal of its value.

    Example:
        >>> fill("open(@CANARY@)", {"CANARY": "/tmp/it's"})
        'open("/tmp/it\'s")'
    """
    for name, value in values.items():
        code = code.replace(f"@{name}@", repr(value))
    return code


def ok(*shows: str) -> Expectation:
    """The cell succeeds."""
    return Expectation((Ending(status="ok", shows=shows),))


def error(*shows: str, exit_code: int | None = None) -> Expectation:
    """The cell fails by an exception or an exit code, and what it did before that counts."""
    return Expectation((Ending(status="error", shows=shows, exit_code=exit_code),))


def timeout(limit: Literal["cpu", "wall"], *shows: str) -> Expectation:
    """The cell is killed at one of its time limits."""
    return Expectation((Ending(status="timeout", reasons=(limit,), state="rolled_back", shows=shows),))


def killed(*reasons: str, shows: tuple[str, ...] = ()) -> Expectation:
    """The cell is killed for one of these reasons."""
    return Expectation((Ending(status="killed", reasons=reasons, state="rolled_back", shows=shows),))


def died(*shows: str, exit_code: int | None = None, signal: int | None = None) -> Expectation:
    """The cell's process ends by itself."""
    ending = Ending(
        status="killed", reasons=("died",), state="rolled_back", shows=shows, exit_code=exit_code, signal=signal
    )
    return Expectation((ending,))


def refused(*names: str) -> Expectation:
    """The cell succeeds and reports of each thing it attempted that it was refused."""
    return ok(*(f"REFUSED {name}" for name in names))


CPU = timeout("cpu", f"killed: {BUSY.cpu_s:g} s CPU limit")
WALL = timeout("wall", f"killed: {IDLE.wall_s:g} s time limit")
OUT_OF_MEMORY = killed("memory") | died(signal=9)
"""Killed by the runner or by the kernel."""
BOMB = killed("pids", "memory") | timeout("cpu") | timeout("wall")
"""A flood of processes is killed, or the kernel lets no more be made until the time is up."""
RESET = Expectation((Ending(status="killed", reasons=(), state="reset"),))


def _line_with(text: str, output: str) -> str:
    return next(line for line in output.splitlines() if text in line)[:200]
