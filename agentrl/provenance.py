"""What decides the outcome of a run apart from its settings and seed: versions, code, machine, command line."""

import contextlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import agentrl

DISTRIBUTION = "agentrl-framework"


def describe_start(command: str) -> dict[str, Any]:
    """A JSON-clean record of the start of a program.

    Args:
        command: The command line, or whatever names how it was started.
    """
    return {
        "command": command,
        "time": now(),
        "agentrl": agentrl.__version__,
        "git": {"agentrl": _source_commit(), "working_directory": _commit(Path.cwd())},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "packages": package_versions(),
    }


def now() -> str:
    """The time in UTC, such as "2026-01-31T12:00:00+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Installed versions of all that agentrl declares as a dependency, extras included."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # an uninstalled checkout declares nothing
        return {}
    names = {found[0] for requirement in requirements if (found := re.match(r"[\w.-]+", requirement))}
    versions = {}
    for name in sorted(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _source_commit() -> str | None:
    """The commit of agentrl where it runs from a checkout; an installed copy may lie in somebody else's repository."""
    folder = Path(agentrl.__file__).parent
    return None if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None else _commit(folder)


def _commit(folder: Path) -> str | None:
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} (modified)" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None without git or a repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
