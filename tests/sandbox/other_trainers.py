"""Other processes that open sandboxes, also as a normal user where the tests run as root."""

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import Any

from engines import missing

USER = 54_321
"""A user id that nobody has."""
_PROJECT = Path(__file__).resolve().parents[2]
_FOLDERS = [str(_PROJECT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
_PYTHONS = (sys.executable, "/usr/bin/python3")
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_NEEDED = ("numpy", "sympy", "httpx")
"""Distributions that starting a sandbox imports, or shows to its programs."""


def start_trainer(code: str, *, as_user: bool = False, **options: Any) -> "subprocess.Popen[str]":
    """Starts `python -c code` with its standard output in a pipe.

    Args:
        code: May import agentrl.
        as_user: As a normal user; a test that runs as one is one anyway.
        options: Of `subprocess.Popen`.
    """
    if not as_user or os.geteuid() != 0:
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)
    options |= {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
    python, folders = _python_of_user()
    options["env"] = _environment(folders) | options.get("env", {})
    return subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def run_trainer(code: str, *, as_user: bool = False) -> str:
    """What such a process prints."""
    with start_trainer(code, as_user=as_user) as trainer:
        output, _ = trainer.communicate(timeout=300)
    assert trainer.returncode == 0
    return output


@functools.cache
def _python_of_user() -> tuple[str, tuple[str, ...]]:
    """A Python that a normal user may start, and from where it imports agentrl: where it lies, or else a copy."""
    for python in _PYTHONS:
        if _imports_agentrl(python, tuple(_FOLDERS)):
            return python, tuple(_FOLDERS)
    copy = _copy_for_everybody()
    for python in _PYTHONS:
        if _imports_agentrl(python, (copy,)):
            return python, (copy,)
    missing(
        "AGENTRL_REQUIRE_BUBBLEWRAP", f"a normal user of this machine has no Python {_VERSION}: apt install python3"
    )


def _imports_agentrl(python: str, folders: tuple[str, ...]) -> bool:
    """Whether a normal user may start this Python, and agentrl's requirements are built for it."""
    code = f"import sys, agentrl.sandbox, numpy; sys.exit('.'.join(map(str, sys.version_info[:2])) != '{_VERSION}')"
    as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
    try:
        command = [python, "-c", code]
        return (
            subprocess.run(command, check=False, capture_output=True, env=_environment(folders), **as_user).returncode
            == 0
        )
    except PermissionError:
        return False


def _copy_for_everybody() -> str:
    """A folder with agentrl and what it imports, for users who may not enter the one where they lie."""
    folder = Path(tempfile.mkdtemp(prefix="agentrl-test-copy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_PROJECT / "agentrl", folder / "agentrl", ignore=skip)  # follows the links to the library folders
    for file in _files_of(_NEEDED):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), target)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    return str(folder)


def _files_of(names: Iterable[str]) -> Iterator[PackagePath]:
    """What these distributions have installed, and those that they require."""
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # required on other systems
            continue
        yield from (file for file in found.files or () if ".." not in file.parts and "__pycache__" not in file.parts)
        wanted += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in found.requires or () if "extra" not in text]


def _environment(folders: tuple[str, ...]) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"}


def wait_until(condition: Callable[[], bool], limit_s: float = 120.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def command_lines() -> dict[int, str]:
    """Process id to program and arguments of everything that runs here, zombies left out."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone
            continue
    return {pid: text for pid, text in found.items() if text}
