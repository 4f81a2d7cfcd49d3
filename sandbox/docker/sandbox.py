"""The back end `docker`: a hardened container per sandbox, whose first process is the runner.

Level: container. Namespaces, no capabilities, a system-call filter and cgroup limits stand between a program and the
machine, but the kernel is shared: a hole in it is a hole in the wall. The runtime `runsc` (gVisor) puts a kernel of its
own in between, at seven times the latency.
"""

import contextlib
import os
import secrets
from functools import partial
from typing import Any

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox.core import Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.docker.engine import Engine, owner_labels
from agentrl.sandbox.docker.link import DockerLink, attach
from agentrl.sandbox.janitor import ensure_janitor
from agentrl.sandbox.launch import runner_command, runner_environment
from agentrl.sandbox.link import Started
from agentrl.sandbox.linux.cgroups import total_limits
from agentrl.sandbox.linux.seccomp import docker_profile
from agentrl.sandbox.session import RunnerSandbox

IMAGE = "agentrl-sandbox"
ROOT = "/box"
_SHARED_MEMORY_BYTES = 1 << 20
USER_ID = 65534
"""Nobody's: owns no file of an image."""
_GVISOR = "runsc"
_ULIMITS = {"nofile": 4096, "core": 0, "msgqueue": 0}
"""The runner holds two files for each session and limits those of cells; queues could be made in /dev/mqueue."""


class DockerSandbox(RunnerSandbox):
    """Opens sessions in containers of the engine that DOCKER_HOST names.

    Args:
        image: Holds Python 3.11 or later and the links /work and /tmp into /box; `agentrl sandbox build-image` makes
            one. It is never pulled from a registry.
        runtime: Of the engine, such as "runsc" for gVisor; None takes the engine's default.
    """

    name = "docker"

    def __init__(self, image: str = IMAGE, runtime: str | None = None) -> None:
        self._image = image
        self._runtime = runtime
        self._engine = Engine()
        self._swept_by: int | None = None
        """Process that has looked for leftovers of others before its first start."""

    @property
    def security_level(self) -> SecurityLevel:  # type: ignore[override]
        """What it really holds against."""
        return SecurityLevel.USER_KERNEL if self._runtime == _GVISOR else SecurityLevel.CONTAINER

    def start(self, limits: Limits) -> Started:
        """See `RunnerSandbox.start`."""
        client = self._engine.client()
        self._check_runtime()
        ensure_janitor()
        if self._swept_by != os.getpid():
            self._swept_by = os.getpid()
            with contextlib.suppress(InfrastructureError):  # somebody else's rest is no reason not to start
                self._engine.remove_leftovers()
        name = f"agentrl-{secrets.token_hex(16)}"
        with contextlib.ExitStack() as undo:
            undo.callback(self._discard, client, name)
            with self._engine.errors("create a container"):
                self._create(client, name, limits)
            with self._engine.errors("start a container"):
                connection = undo.enter_context(attach(client, name))
                client.api.start(name)
            undo.pop_all()
        return Started(link=DockerLink(self._engine, name, connection, partial(_resources, limits)), root=ROOT)

    def _discard(self, client: Any, container: str) -> None:
        """Removes what may have come of a start that failed."""
        with contextlib.suppress(InfrastructureError):
            self._engine.remove(client, container)

    def _check_runtime(self) -> None:
        if self._runtime is not None and not self._engine.has_runtime(self._runtime):
            raise SandboxUnavailableError(
                f"The engine has no runtime {self._runtime!r}, only {', '.join(self._engine.runtimes())}. Install it "
                "and name it in /etc/docker/daemon.json under `runtimes`."
            )

    def _create(self, client: Any, name: str, limits: Limits) -> None:
        """Creates the container: never `run`, which would ask a registry for an image that is not there."""
        from docker.errors import ImageNotFound

        program, *arguments = runner_command()
        try:
            container = client.containers.create(
                self._image,
                name=name,
                entrypoint=[program],  # an image's own would come first
                command=arguments,
                labels=owner_labels(),
                runtime=self._runtime,
                **_PROCESS,
                **_WALLS,
                **_storage(limits),
                **_cgroup(limits),
            )
        except ImageNotFound as error:
            raise SandboxUnavailableError(
                f"The engine has no image {self._image!r}. Make it with `agentrl sandbox build-image --tag "
                f"{self._image}`; with `--from-host` that needs no network."
            ) from error
        if volumes := [mount["Destination"] for mount in container.attrs["Mounts"]]:
            raise ConfigError(
                f"The image {self._image!r} declares volumes ({', '.join(volumes)}), where programs could write "
                "without limit; use an image without VOLUME."
            )


_PROCESS: dict[str, Any] = {
    "user": f"{USER_ID}:{USER_ID}",
    "environment": runner_environment(),
    "working_dir": "/",
    "hostname": "sandbox",
    "init": False,  # programs could stop another first process; the runner cannot be signalled or debugged
    "stdin_open": True,  # closed by the engine when the trainer hangs up, however it ends
    "stop_signal": "SIGKILL",  # else the engine waits for ten seconds when it stops
    "healthcheck": {"test": ["NONE"]},  # an image's own would run in the sandbox
    "auto_remove": True,
}
_WALLS: dict[str, Any] = {
    "network_mode": "none",
    "ipc_mode": "private",  # "none" would leave out /dev/shm, which locks of multiprocessing need
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges", f"seccomp={docker_profile()}"],
}


def _storage(limits: Limits) -> dict[str, Any]:
    """Nothing is writable but one file system in memory, and nothing that is printed is stored."""
    from docker.types import LogConfig

    # The owner is named, as the mode is taken from the folder in the image, which other images may not have.
    size = f"size={limits.disk_mb}m,nr_inodes={limits.inodes}"
    return {
        "read_only": True,
        "tmpfs": {ROOT: f"rw,exec,nosuid,nodev,mode=0700,uid={USER_ID},gid={USER_ID},{size}"},
        "shm_size": _SHARED_MEMORY_BYTES,
        "log_config": LogConfig(type="none"),
    }


def _cgroup(limits: Limits) -> dict[str, Any]:
    from docker.types import Ulimit

    resources = _resources(limits, num_sessions=1)
    return {
        "mem_limit": resources["Memory"],
        "memswap_limit": resources["MemorySwap"],
        "pids_limit": resources["PidsLimit"],
        "ulimits": [Ulimit(name=name, soft=most, hard=most) for name, most in _ULIMITS.items()],
    }


def _resources(limits: Limits, num_sessions: int) -> dict[str, int]:
    """What a container may use, as an engine's update request has it. Files count as memory; swap is none."""
    memory, tasks = total_limits(limits, num_sessions)
    return {"Memory": memory, "MemorySwap": memory, "PidsLimit": tasks}
