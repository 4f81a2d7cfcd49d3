"""What several test files ask of a session."""

import os
from collections.abc import Callable
from pathlib import Path

from agentrl.sandbox import Limits
from agentrl.sandbox.session import RunnerSession

OpenSession = Callable[..., RunnerSession]
GENEROUS = Limits(cpu_s=60, wall_s=120)
"""Never reached by a test that is not about limits, however busy the machine is."""


def folder_of(session: RunnerSession) -> Path:
    """The session's folder, as a cell sees it."""
    return Path(session.run("import os; print(os.getcwd())").output.strip()).parent


def runner_of(session: RunnerSession) -> int:
    """Process id of the runner that a session of `unsafe_subprocess` has."""
    return int(session.home._link._process.pid)  # type: ignore[attr-defined]


def processes_in(folder: Path) -> list[int]:
    """All processes whose current directory lies in `folder`, even if it was deleted: everything a session has left."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.readlink(entry / "cwd").startswith(str(folder)):
                found.append(int(entry.name))
        except OSError:  # a zombie, or gone
            continue
    return found
