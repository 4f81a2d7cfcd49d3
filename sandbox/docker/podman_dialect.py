"""How Podman is asked for a container, for more of its memory, and how it ended: by its own interface.

Podman imitates Docker's interface on the same socket; images, attaching, starting and removing are asked for by that.
Its imitation of creating is too weak: a read-only container gets folders without limit on /run, /tmp and /var/tmp, the
number of files cannot be limited, nor limits be raised. Its own interface ("libpod") can do all of this.
"""

import re
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from signal import SIGKILL
from typing import Any

from agentrl.sandbox.cleanup import FOLDER_PREFIX
from agentrl.sandbox.core import SandboxUnavailableError
from agentrl.sandbox.docker.plan import HOST_NAME, ROOT, SHARED_MEMORY_BYTES, ULIMITS, USER_ID, ContainerPlan, post
from agentrl.sandbox.linux.seccomp import docker_profile
from agentrl.sandbox.owner import owned_name

_MIN_VERSION = (4, 3)
"""The first that can raise the limits of a container."""
_NUM_PROCESSES = 1 << 15
"""Of nobody on the whole machine: no limit on a sandbox, which its control group has. Where other limits are named but
not this, Podman sets one that it may itself be forbidden to set."""
_END_S = 10.0
"""How long after the end of a stream Podman may take to notice that the container has ended."""
_PAUSE_S = 0.005
_KILLED = 128 + SIGKILL


class PodmanDialect:
    """See `Dialect`.

    Args:
        version: Of the interface, such as "4.3.1".
    """

    def __init__(self, version: str) -> None:
        self._containers = f"v{version}/libpod/containers"

    def create(self, client: Any, plan: ContainerPlan) -> None:
        """See `Dialect.create`."""
        from docker.errors import APIError

        # A folder that is removed also if this process is killed meanwhile. Podman reads the file before it answers.
        with tempfile.TemporaryDirectory(prefix=owned_name(FOLDER_PREFIX)) as folder:
            profile = Path(folder, "seccomp.json")
            profile.write_text(docker_profile())
            try:
                post(client, f"{self._containers}/create", _request(plan) | {"seccomp_profile_path": str(profile)})
            except APIError as error:
                if str(profile) in str(error):
                    raise SandboxUnavailableError(_ELSEWHERE) from error
                client.api.inspect_image(plan.image)  # raises if it is this that is missing
                raise
        if mounts := [mount["Destination"] for mount in client.api.inspect_container(plan.name)["Mounts"]]:
            raise SandboxUnavailableError(
                f"Podman mounts something of its machine in every container ({', '.join(mounts)}), where programs "
                "could write or read what is not theirs: remove `volumes` from its containers.conf."
            )

    def raise_limits(self, client: Any, container: str, memory_bytes: int, tasks: int) -> None:
        """See `Dialect.raise_limits`."""
        post(client, f"{self._containers}/{container}/update", _resources(memory_bytes, tasks))

    def was_killed_for_memory(self, client: Any, container: str) -> bool:
        """Whether a process was killed for the memory limit, and the first one was killed.

        Podman says so since version 5.0, and until the container is removed, which begins with the start of a program;
        whoever asks before 5.0 or after that is told that none was killed.
        """
        from docker.errors import NotFound

        deadline = time.monotonic() + _END_S
        try:
            while (state := client.api.inspect_container(container)["State"])["Running"]:
                if time.monotonic() > deadline:
                    return False
                time.sleep(_PAUSE_S)
        except NotFound:
            return False
        return bool(state["OOMKilled"]) and state["ExitCode"] == _KILLED

    def remove(self, client: Any, container: str) -> None:
        """See `Dialect.remove`. Podman fails to stop a container that ends at this moment, so it is asked again."""
        from docker.errors import APIError, NotFound

        deadline = time.monotonic() + _END_S
        while True:
            try:
                client.api.remove_container(container, force=True, v=True)
                return
            except NotFound:
                return
            except APIError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_S)


def podman_version(version: Mapping[str, Any]) -> str | None:
    """The version of Podman's own interface, by what an engine tells; None of another engine."""
    for part in version.get("Components") or ():
        if part.get("Name") == "Podman Engine":
            return str(part.get("Details", {}).get("APIVersion") or part.get("Version"))
    return None


def podman_problem(version: str, options: Collection[str]) -> str | None:
    """Why a Podman's containers would not hold.

    Args:
        version: Of its own interface.
        options: Its security options.
    """
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _MIN_VERSION:
        return f"it is Podman {version}, which cannot raise limits for a fork; 4.3 or later is needed"
    if "name=rootless" in options:
        return (
            "it is Podman without root, of which nobody has tried whether its limits bind; start that of root "
            "(`sudo systemctl start podman.socket`) and set DOCKER_HOST=unix:///run/podman/podman.sock"
        )
    return None


_ELSEWHERE = (
    "Podman cannot read the system-call filter, which it takes as a file and which lies on this machine: it runs on "
    "another one, or either of both in a container. Run both on one, with the same folder for temporary files (TMPDIR)."
)
_NO_HEALTH_CHECK = {"Test": ["NONE"], "Interval": 30 * 10**9, "Timeout": 30 * 10**9, "Retries": 3}
"""An image's own would run in the sandbox. Podman 5.4 raises no limits without the numbers, in nanoseconds."""
_PROCESS: dict[str, Any] = {
    "user": f"{USER_ID}:{USER_ID}",
    "work_dir": "/",
    "hostname": HOST_NAME,
    "stdin": True,  # closed by the engine when the trainer hangs up, however it ends
    "stop_signal": int(SIGKILL),
    "stop_timeout": 0,
    "healthconfig": _NO_HEALTH_CHECK,
    "systemd": "false",  # else it looks at the name of the program, and mounts more
    "unsetenvall": True,  # what the image or the engine sets
    "httpproxy": False,  # addresses of the engine's surroundings
    "manage_password": False,
    "remove": True,
    "log_configuration": {"driver": "none"},
}
_WALLS: dict[str, Any] = {
    "netns": {"nsmode": "none"},
    "use_image_hosts": True,  # instead of the machine's
    "use_image_resolve_conf": True,
    "ipcns": {"nsmode": "private"},
    "pidns": {"nsmode": "private"},
    "utsns": {"nsmode": "private"},
    "cap_drop": ["ALL"],
    "no_new_privileges": True,
    "read_only_filesystem": True,
    "image_volume_mode": "ignore",  # what it declares as volumes stays read-only
    "r_limits": [
        {"type": name, "soft": most, "hard": most} for name, most in {**ULIMITS, "nproc": _NUM_PROCESSES}.items()
    ],
}


def _request(plan: ContainerPlan) -> dict[str, Any]:
    """All of Podman's `SpecGenerator` but the system-call filter."""
    program, *arguments = plan.command
    # One option to Podman, which knows few and passes on values; several to the kernel, which refuses unknown ones.
    box = f"{plan.storage},mode=0700,uid={USER_ID},gid={USER_ID}"
    request = _PROCESS | _WALLS
    request |= {
        "name": plan.name,
        "image": plan.image,
        "entrypoint": [program],
        "command": arguments,
        "env": plan.environment,
        "labels": plan.labels,
        "resource_limits": _resources(*plan.total),
        "mounts": [
            _tmpfs(ROOT, "rw", "exec", box),
            _tmpfs("/dev/shm", "rw", "noexec", f"size={SHARED_MEMORY_BYTES},mode=1777"),
            _tmpfs("/run/secrets", "ro", "noexec", "size=4k"),  # where Red Hat's shows its subscription
        ],
    }
    return request | ({"oci_runtime": plan.runtime} if plan.runtime else {})


def _tmpfs(place: str, *options: str) -> dict[str, Any]:
    """A file system in memory that is empty, whatever the image has there."""
    always = ["nosuid", "nodev", "notmpcopyup"]
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": [*always, *options]}


def _resources(memory_bytes: int, tasks: int) -> dict[str, Any]:
    """Files count as memory; swap is none."""
    return {"memory": {"limit": memory_bytes, "swap": memory_bytes}, "pids": {"limit": tasks}}
