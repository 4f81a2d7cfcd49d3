"""Other processes that open sandboxes, also as a normal user where the tests run as root."""

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentrl

USER = 54_321
"""A user id that nobody has."""
_FOLDERS = [str(Path(agentrl.__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
_PYTHONS = (sys.executable, "/usr/bin/python3")


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
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(_FOLDERS), "PYTHONDONTWRITEBYTECODE": "1"}
    options["env"] = environment | options.get("env", {})
    return subprocess.Popen([_python_of_user(options), "-c", code], stdout=subprocess.PIPE, text=True, **options)


def run_trainer(code: str, *, as_user: bool = False) -> str:
    """What such a process prints."""
    with start_trainer(code, as_user=as_user) as trainer:
        output, _ = trainer.communicate(timeout=120)
    assert trainer.returncode == 0
    return output


def _python_of_user(options: dict[str, Any]) -> str:
    """A Python that a normal user may start, and for which agentrl's requirements are built."""
    options = {name: options[name] for name in ("user", "group", "extra_groups", "cwd", "env")}
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    code = f"import sys, agentrl, numpy; sys.exit('.'.join(map(str, sys.version_info[:2])) != '{wanted}')"
    for python in _PYTHONS:
        try:
            if subprocess.run([python, "-c", code], check=False, capture_output=True, **options).returncode == 0:
                return python
        except PermissionError:
            continue
    pytest.skip(f"a normal user of this machine has no Python {wanted} or cannot read agentrl: apt install python3")


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> bool:
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
