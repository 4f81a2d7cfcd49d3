"""How Docker's own engine is asked for a container, for more of its memory, and how it ended."""

import contextlib
import time
from typing import Any

from agentrl.errors import ConfigError
from agentrl.sandbox.docker.plan import HOST_NAME, ROOT, SHARED_MEMORY_BYTES, ULIMITS, USER_ID, ContainerPlan, post
from agentrl.sandbox.linux.seccomp import docker_profile

_EVENT_S = 10.0
"""How long after the end of a stream an engine may take to say how the container ended."""
_OOM_BEFORE_END_NS = 10 * 10**9
_KILLED = "137"
"""Exit status of a container whose first process was killed: 128 + SIGKILL."""


class DockerDialect:
    """See `Dialect`."""

    def create(self, client: Any, plan: ContainerPlan) -> None:
        """See `Dialect.create`. Never `run`, which would ask a registry for an image that is not there."""
        program, *arguments = plan.command
        container = client.containers.create(
            plan.image,
            name=plan.name,
            entrypoint=[program],  # an image's own would come first
            command=arguments,
            environment=plan.environment,
            labels=plan.labels,
            runtime=plan.runtime,
            **_PROCESS,
            **_WALLS,
            **_storage(plan),
            **_cgroup(plan),
        )
        if volumes := [mount["Destination"] for mount in container.attrs["Mounts"]]:
            raise ConfigError(
                f"The image {plan.image!r} declares volumes ({', '.join(volumes)}), where programs could write "
                "without limit; use an image without VOLUME."
            )

    def raise_limits(self, client: Any, container: str, memory_bytes: int, tasks: int) -> None:
        """See `Dialect.raise_limits`. Files count as memory; swap is none."""
        path = f"v{client.api.api_version}/containers/{container}/update"
        post(client, path, {"Memory": memory_bytes, "MemorySwap": memory_bytes, "PidsLimit": tasks})

    def was_killed_for_memory(self, client: Any, container: str) -> bool:
        """Whether the first process was killed shortly after an alarm of the memory limit.

        The container is removed by now, but the engine remembers its end. The alarm alone says little: it also rings
        when any other process of the sandbox is killed.
        """
        out_of_memory_at = None
        events = client.events(
            since=1, until=int(time.time() + _EVENT_S), filters={"container": container}, decode=True
        )
        with contextlib.closing(events):
            for event in events:
                if event["Action"] == "oom":
                    out_of_memory_at = event["timeNano"]
                elif event["Action"] == "die":
                    was_killed = event["Actor"]["Attributes"].get("exitCode") == _KILLED
                    alarmed = out_of_memory_at is not None and event["timeNano"] - out_of_memory_at < _OOM_BEFORE_END_NS
                    return was_killed and alarmed
        return False

    def remove(self, client: Any, container: str) -> None:
        """See `Dialect.remove`."""
        from docker.errors import APIError, NotFound

        try:
            client.api.remove_container(container, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # its removal is in progress
                raise
            with contextlib.suppress(NotFound):
                client.api.wait(container, condition="removed", timeout=client.api.timeout)


_PROCESS: dict[str, Any] = {
    "user": f"{USER_ID}:{USER_ID}",
    "working_dir": "/",
    "hostname": HOST_NAME,
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


def _storage(plan: ContainerPlan) -> dict[str, Any]:
    """Nothing is writable but one file system in memory, and nothing that is printed is stored."""
    from docker.types import LogConfig

    # The owner is named, as the mode is taken from the folder in the image, which other images may not have.
    return {
        "read_only": True,
        "tmpfs": {ROOT: f"rw,exec,nosuid,nodev,mode=0700,uid={USER_ID},gid={USER_ID},{plan.storage}"},
        "shm_size": SHARED_MEMORY_BYTES,
        "log_config": LogConfig(type="none"),
    }


def _cgroup(plan: ContainerPlan) -> dict[str, Any]:
    """Files count as memory; swap is none."""
    from docker.types import Ulimit

    memory, tasks = plan.total
    return {
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": tasks,
        "ulimits": [Ulimit(name=name, soft=most, hard=most) for name, most in ULIMITS.items()],
    }
