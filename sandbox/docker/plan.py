"""What a container of a sandbox shall be, whichever engine makes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agentrl.sandbox.core import Limits
from agentrl.sandbox.linux.cgroups import total_limits

ROOT = "/box"
"""Where the only file system is mounted that can be written to, but for a little shared memory."""
USER_ID = 65534
"""Nobody's: owns no file of an image."""
HOST_NAME = "sandbox"
SHARED_MEMORY_BYTES = 1 << 20
ULIMITS: Mapping[str, int] = {"nofile": 4096, "core": 0, "msgqueue": 0}
"""The runner holds two files for each session and limits those of cells; queues could be made in /dev/mqueue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """A container that is to be created. Its walls are not here: they are the same for all.

    Args:
        name: Unique.
        image: Never pulled from a registry.
        runtime: Of the engine; None takes its default.
        command: The program and its arguments, in place of an image's own.
        environment: All variables.
        labels: By which it is found again.
        limits: Of its first session.
    """

    name: str
    image: str
    runtime: str | None
    command: list[str]
    environment: dict[str, str]
    labels: dict[str, str]
    limits: Limits

    @property
    def total(self) -> tuple[int, int]:
        """Bytes of memory and number of tasks of the whole container."""
        return total_limits(self.limits, 1)

    @property
    def storage(self) -> str:
        """How much `ROOT` may hold, as options of a tmpfs."""
        return f"size={self.limits.disk_mb}m,nr_inodes={self.limits.inodes}"


class Dialect(Protocol):
    """How one kind of engine is asked for what is not the same for all kinds."""

    def create(self, client: Any, plan: ContainerPlan) -> None:
        """Creates a container, in which nothing can be written to without limit.

        Raises:
            docker.errors.ImageNotFound: The engine does not have the image.
            docker.errors.DockerException: It cannot create the container.
            ConfigError: The image is not fit for it.
            SandboxUnavailableError: The engine is not fit for it; the message names the remedy.
        """
        ...

    def raise_limits(self, client: Any, container: str, memory_bytes: int, tasks: int) -> None:
        """Lets a running container use more.

        Raises:
            docker.errors.APIError: The engine refuses.
            requests.exceptions.RequestException: It does not answer.
        """
        ...

    def was_killed_for_memory(self, client: Any, container: str) -> bool:
        """Of a container that has ended: whether its first process was killed for the memory limit."""
        ...

    def remove(self, client: Any, container: str) -> None:
        """Kills and removes a container and waits until it is gone; one that is gone already is fine.

        Raises:
            docker.errors.DockerException: The engine cannot remove it.
            requests.exceptions.RequestException: It does not answer.
        """
        ...


def post(client: Any, path: str, body: Mapping[str, Any]) -> None:
    """Asks an engine for something that the SDK has no method for, in JSON.

    Raises:
        docker.errors.APIError: It refuses; the message has its status and reason.
        requests.exceptions.RequestException: It does not answer.
    """
    from docker.errors import APIError

    answer = client.api.post(f"{client.api.base_url}/{path}", json=body, timeout=client.api.timeout)
    if not answer.ok:
        raise APIError(f"status {answer.status_code}: {answer.text.strip()}")
