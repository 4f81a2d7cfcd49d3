"""The connection to a Docker engine, and what its failures mean."""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.errors import InfrastructureError, MissingExtraError
from agentrl.sandbox.core import SandboxUnavailableError
from agentrl.sandbox.docker.docker_dialect import DockerDialect
from agentrl.sandbox.docker.plan import Dialect
from agentrl.sandbox.docker.podman_dialect import PodmanDialect, podman_problem, podman_version
from agentrl.sandbox.owner import is_dead, owner_id

OWNER_LABEL = "agentrl.owner"
_DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
_TIMEOUT_S = 60
"""Of one request. An engine creates and starts a container in a quarter of a second; this is for an overloaded one."""
_OTHER_WAY = "Or use the sandbox `bubblewrap`, which needs no engine."
_REMEDIES: Mapping[int | None, str] = {
    errno.EACCES: "Add yourself to the group of its socket (`sudo usermod -aG docker $USER`) and log in again.",
    errno.ECONNREFUSED: "Start the engine (`sudo systemctl start docker`, or `sudo dockerd`).",
    None: "Install and start an engine (Debian, Ubuntu: `sudo apt-get install docker.io`), or let DOCKER_HOST name its "
    "socket if it runs elsewhere (`docker context inspect` shows it).",
}
"""By error number."""


class Engine:
    """One engine, that of DOCKER_HOST. May be used from several threads and from forked processes.

    Whoever may use an engine is as good as root on its machine, as it can mount any folder into a container. Nothing
    here mounts anything of the host, and no sandbox sees the engine's socket.
    """

    def __init__(self) -> None:
        self._clients: dict[int, Any] = {}
        """Process id to client: two processes must not talk over one connection. There is no lock, which a fork could
        copy while it is held; threads that come at the same time each connect, and the last client is kept."""
        self._info: dict[str, Any] = {}
        self.dialect: Dialect = DockerDialect()
        """How to ask it for containers; of the engine that `client` has reached."""

    def client(self) -> Any:
        """This process's `docker.DockerClient`; its engine was reached and keeps limits.

        Raises:
            SandboxUnavailableError: There is no such engine; the message names the remedy.
        """
        client = self._clients.get(os.getpid())
        if client is None:
            client, self._info, self.dialect = _connect()
            self._clients = {os.getpid(): client}
        return client

    def has_runtime(self, name: str) -> bool:
        """Whether containers can be started by this runtime. Names of containerd's plugins are not listed anywhere."""
        return name in self._info.get("Runtimes", {}) or name.startswith("io.containerd.")

    def runtimes(self) -> list[str]:
        """The runtimes that the engine names."""
        return sorted(name for name in self._info.get("Runtimes", {}) if not name.startswith("io.containerd."))

    def remove_leftovers(self) -> int:
        """Removes the containers whose owner is dead; the number of them.

        An owner's end closes the stream to its runners, upon which they end, and their containers with them. This is
        for the rest: a container that was created and not yet started, an engine that was stopped meanwhile.

        Raises:
            SandboxUnavailableError: There is no engine.
            InfrastructureError: It cannot remove them.
        """
        client = self.client()
        with self.errors("list containers"):
            containers = client.api.containers(all=True, filters={"label": OWNER_LABEL})
        dead = [container["Id"] for container in containers if is_dead(container["Labels"][OWNER_LABEL])]
        for container in dead:
            self.remove(client, container)
        return len(dead)

    def remove(self, client: Any, container: str) -> None:
        """Kills and removes a container and waits until it is gone; one that is gone already is fine.

        Raises:
            InfrastructureError: The engine cannot remove it, or does not answer.
        """
        with self.errors("remove a container"):
            self.dialect.remove(client, container)

    @contextlib.contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turns what the SDK raises into `InfrastructureError`, and has the next `client()` connect afresh.

        Args:
            action: What is being done, for the message.
        """
        import requests
        from docker.errors import DockerException

        try:
            yield
        except DockerException as error:  # what it answered; also an error of requests
            raise InfrastructureError(f"The engine could not {action}: {error}") from error
        except requests.exceptions.Timeout as error:
            raise InfrastructureError(f"The engine took longer than {_TIMEOUT_S} s to {action}.") from error
        except (requests.exceptions.RequestException, OSError) as error:
            self._clients = {}
            raise InfrastructureError(f"The engine was lost while asked to {action}: {error}") from error


def owner_labels() -> dict[str, str]:
    """By which a container tells whose it is."""
    return {OWNER_LABEL: owner_id()}


def _connect() -> tuple[Any, dict[str, Any], Dialect]:
    """A client, what its engine tells about itself, and how to speak to it."""
    try:
        import docker
    except ImportError:
        raise SandboxUnavailableError(str(MissingExtraError("docker", "The sandbox docker"))) from None
    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        info, version = client.info(), client.version()
    except (docker.errors.DockerException, OSError) as error:  # those of requests are OSErrors
        cause = _first_cause(error)
        number = cause.errno if isinstance(cause, OSError) else None
        remedy = _REMEDIES.get(number, _REMEDIES[None])
        address = os.environ.get("DOCKER_HOST", _DEFAULT_ADDRESS)
        raise SandboxUnavailableError(f"No engine answers at {address}: {cause}. {remedy} {_OTHER_WAY}") from error
    if problem := _problem(info, version):
        raise SandboxUnavailableError(f"This engine cannot hold hostile programs: {problem}. {_OTHER_WAY}")
    podman = podman_version(version)
    return client, info, PodmanDialect(podman) if podman else DockerDialect()


def _first_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _problem(info: Mapping[str, Any], version: Mapping[str, Any]) -> str | None:
    """Why the limits that a container is given would not bind, by what an engine tells about itself."""
    options = [option for text in info.get("SecurityOptions") or () for option in text.split(",")]
    if (podman := podman_version(version)) and (problem := podman_problem(podman, options)):
        return problem
    if info.get("OSType", "linux") != "linux":
        return f"its containers are of {info['OSType']}, Linux is needed"
    if "name=seccomp" not in options:
        return "it filters no system calls (seccomp), as its kernel or its configuration lacks that"
    if "name=rootless" in options and str(info.get("CgroupVersion", "1")) == "1":
        return "it runs without root on cgroup version 1, where nobody but root can limit memory and processes"
    missing = [name for name, flag in (("memory", "MemoryLimit"), ("processes", "PidsLimit")) if not info.get(flag)]
    if missing:
        return f"its cgroups cannot limit {' and '.join(missing)}"
    return None
