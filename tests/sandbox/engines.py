"""What isolates on this machine.

A test that needs what is missing is skipped, with the command that provides it; in CI, which sets
AGENTRL_REQUIRE_DOCKER, AGENTRL_REQUIRE_PODMAN and AGENTRL_REQUIRE_BUBBLEWRAP, it fails.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from agentrl.sandbox import SandboxUnavailableError, host_python
from agentrl.sandbox.docker import host_image
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.image import build_image

ENGINE_SCRIPT = Path(__file__).resolve().parents[2] / ".ci/engine"


def require_docker() -> str:
    """The name of an image to start containers from, made of this Python unless it is there."""
    image, problem = _image(os.environ.get("DOCKER_HOST", ""))
    if image is None:
        missing(
            "AGENTRL_REQUIRE_DOCKER",
            f"{problem} To start one for a while: export DOCKER_HOST=$({ENGINE_SCRIPT} start /tmp/engine)",
        )
    return image


def require_podman(patch: pytest.MonkeyPatch) -> str:
    """As `require_docker`, of the Podman that AGENTRL_PODMAN_HOST names; DOCKER_HOST is set to it."""
    address = os.environ.get("AGENTRL_PODMAN_HOST")
    if address is None:
        missing("AGENTRL_REQUIRE_PODMAN", f"AGENTRL_PODMAN_HOST names no Podman of root. {_START_PODMAN}")
    patch.setenv("DOCKER_HOST", address)
    image, problem = _image(address)
    if image is None:
        missing("AGENTRL_REQUIRE_PODMAN", f"{problem} {_START_PODMAN}")
    return image


_START_PODMAN = (
    "To start one: apt-get install podman; podman system service --time=0 unix:///tmp/podman.sock & "
    "export AGENTRL_PODMAN_HOST=unix:///tmp/podman.sock"
)


def require_bubblewrap() -> str:
    """The path of bwrap, which can make a sandbox here."""
    path = shutil.which("bwrap")
    if path is None:
        missing("AGENTRL_REQUIRE_BUBBLEWRAP", "bubblewrap is not installed: apt-get install bubblewrap")
    command = [path, "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        missing("AGENTRL_REQUIRE_BUBBLEWRAP", f"bubblewrap cannot run here ({ended.stderr.strip()})")
    return path


def require_own_engine() -> Path:
    """The script that starts engines, for tests that stop one."""
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        missing("AGENTRL_REQUIRE_DOCKER", f"an engine of its own needs root and `{ENGINE_SCRIPT} install`")
    return ENGINE_SCRIPT


@functools.cache
def _image(address: str) -> tuple[str | None, str]:
    """An image of the engine that DOCKER_HOST names now, or what stands against it."""
    try:
        client = Engine().client()
    except SandboxUnavailableError as error:
        return None, str(error)
    tag = f"agentrl-sandbox:test-{_ingredients()}"
    if not client.images.list(tag):
        build_image(tag, from_host=True, packages=("numpy",))
    return tag, ""


def _ingredients() -> str:
    """A hash of what an image is made of, by which one of an earlier test run is found."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (host_image, host_python)]
    return hashlib.sha256(b"".join([*sources, sys.version.encode(), sys.prefix.encode()])).hexdigest()[:16]


def missing(variable: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where the variable is set."""
    if os.environ.get(variable):
        pytest.fail(f"{reason}\n{variable} is set, so that this is no reason to skip.")
    pytest.skip(reason)
