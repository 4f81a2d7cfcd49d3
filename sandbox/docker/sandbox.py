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

from agentrl.errors import InfrastructureError
from agentrl.sandbox.core import Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.docker.engine import Engine, owner_labels
from agentrl.sandbox.docker.link import DockerLink, attach
from agentrl.sandbox.docker.plan import ROOT, ContainerPlan
from agentrl.sandbox.janitor import ensure_janitor
from agentrl.sandbox.launch import runner_command, runner_environment
from agentrl.sandbox.link import Started
from agentrl.sandbox.linux.cgroups import total_limits
from agentrl.sandbox.session import RunnerSandbox

IMAGE = "agentrl-sandbox"
_GVISOR = "runsc"


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
        return Started(link=DockerLink(self._engine, name, connection, partial(total_limits, limits)), root=ROOT)

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
        from docker.errors import ImageNotFound

        plan = ContainerPlan(
            name=name,
            image=self._image,
            runtime=self._runtime,
            command=runner_command(),
            environment=runner_environment(),
            labels=owner_labels(),
            limits=limits,
        )
        try:
            self._engine.dialect.create(client, plan)
        except ImageNotFound as error:
            raise SandboxUnavailableError(
                f"The engine has no image {self._image!r}. Make it with `agentrl sandbox build-image --tag "
                f"{self._image}`; with `--from-host` that needs no network."
            ) from error
