"""Exchanging the weights of a vLLM server: whole ones over its RL endpoints, or LoRA adapters by name."""

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import InfrastructureError, PolicyError
from agentrl.policies.vllm.connection import Connection, NotFoundError, ServerFaultError
from agentrl.policies.vllm.engine import EngineLostError

_PREFIX = "agentrl-"
"""Of everything that any run loads."""
_STARTED_WITH = "default"
"""vLLM's name for the weights that a server was started with."""
_RESUME_S = 30.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a server samples with."""

    model: str
    """What requests call it."""
    version: int | None = None
    """None: nothing has been loaded."""
    is_adapter: bool = False


class ServerWeights:
    """What a server samples with, and which requests use it. Exchanges must not overlap.

    Everything that is loaded gets a name that no other object gives, so that what another run loads is told apart.

    Args:
        connection: To the server.
        control_s: Deadline of one call.
    """

    def __init__(self, connection: Connection, control_s: float) -> None:
        self.base = "policy"
        """What requests call the model without an adapter."""
        self._loaded: Loaded | None = None
        self._run = f"{_PREFIX}{secrets.token_hex(6)}-"
        self._loads = itertools.count()
        self._connection = connection
        self._control_s = control_s
        self._users: Counter[str] = Counter()

    @property
    def current(self) -> Loaded:
        """What is to be used now."""
        return self._loaded or Loaded(self.base)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Loaded]:
        """What to use now; an adapter stays on the server while it is used."""
        current = self.current
        self._users[current.model] += 1
        try:
            yield current
        finally:
            self._users[current.model] -= 1

    def versions(self, names: Sequence[str], used: Loaded, wanted: int) -> list[str]:
        """Versions of the weights that sampled a turn, oldest first.

        Args:
            names: Of those weights, in vLLM's answer. With an adapter they are those below it.
            used: What was to be used when the turn was asked for.
            wanted: The oldest version that will do.

        Returns:
            Numbers, or vLLM's own name for the weights that the server was started with.

        Raises:
            EngineLostError: The server was started again, and has lost what it was given.
            PolicyError: Another run has exchanged the weights.
        """
        for name in names:
            if name != _STARTED_WITH and not name.startswith(self._run):
                raise self._not_ours(name)
        if used.is_adapter:
            return [str(used.version)]
        versions = [name.removeprefix(self._run) for name in names]
        last = versions[-1] if versions else _STARTED_WITH
        if used.version is not None and (last == _STARTED_WITH or int(last) < wanted):
            raise EngineLostError(
                f"The vLLM server {self._connection.url} sampled with weights {last!r} after version {used.version} "
                "was loaded: it was started again."
            )
        return versions

    async def why_gone(self, used: Loaded) -> Exception:
        """What to make of it that the server does not know an adapter.

        Raises:
            EngineLostError: The server is gone.
            InfrastructureError: It does not say what it has.
        """
        for adapter in await self._adapters():
            if not adapter.startswith(self._run):
                return self._not_ours(adapter)
        return EngineLostError(
            f"The vLLM server {self._connection.url} has lost the adapter of version {used.version}: it was started "
            "again."
        )

    async def load_file(self, path: Path, version: int) -> None:
        """Pauses, loads, forgets, makes sure of it, and goes on whatever happened.

        Requests under way go on with the new weights.

        Raises:
            EngineLostError: The server is gone, or failed.
            InfrastructureError: It says no.
            PolicyError: It does not offer this, did not forget what it computed with the old weights, or another run
                uses it.
        """
        name = f"{self._run}{version}"
        try:
            await self._post("/pause", mode="keep", clear_cache="true")
            await self._start_update()
            await self._post("/update_weights", {"update_info": {"path": str(path.absolute()), "version": version}})
            await self._post("/finish_weight_update", {"weight_version": name})
            await self._reset()
            found = field_of(await self._get("/weight_info"), "weight_version")
            if found != name:
                raise self._not_ours(found)
        finally:
            await asyncio.shield(self._connection.ask("POST", "/resume", within_s=_RESUME_S))
        self._loaded = Loaded(self.base, version)

    async def load_adapter(self, path: Path, version: int) -> None:
        """Adds an adapter under a new name, and takes away all others that no request under way needs.

        Requests under way go on with the adapter that they began with. Taken away are also adapters of earlier runs,
        and those of which nobody knows whether they were loaded.

        Raises:
            EngineLostError: The server is gone, or failed.
            InfrastructureError: It says no.
            PolicyError: It does not offer this, or did not drop what it computed before.
        """
        name = f"{self._run}{version}-{next(self._loads)}"
        try:
            await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path.absolute())})
        except NotFoundError as error:
            raise PolicyError(
                f"The vLLM server {self._connection.url} takes no LoRA adapters. Start it with: agentrl serve-policy "
                "MODEL --lora-rank RANK, with RANK at least model.lora.rank."
            ) from error
        self._loaded = Loaded(name, version, is_adapter=True)
        for adapter in await self._adapters():
            if adapter != name and not self._users[adapter]:
                await self._unload(adapter)
        await self._reset()

    async def unload(self) -> None:
        """Takes away the adapters that this object has loaded; whole weights stay.

        Raises:
            EngineLostError: The server is gone, or failed.
            InfrastructureError: It says no.
            PolicyError: It does not offer this.
        """
        if not self.current.is_adapter:
            return
        self._loaded = None
        for adapter in await self._adapters():
            if adapter.startswith(self._run):
                await self._unload(adapter)

    async def _adapters(self) -> list[str]:
        """Names of those on the server that this or another run has loaded."""
        models = field_of(await self._get("/v1/models"), "data")
        names = [str(model["id"]) for model in models if model.get("parent")]
        return [name for name in names if name.startswith(_PREFIX)]

    async def _unload(self, adapter: str) -> None:
        with contextlib.suppress(NotFoundError):  # somebody else was faster
            await self._post("/v1/unload_lora_adapter", {"lora_name": adapter})

    def _not_ours(self, name: str) -> PolicyError:
        return PolicyError(
            f"The vLLM server {self._connection.url} has weights that this run has not loaded ({name!r}): another run "
            "uses it, or did before. A server serves one run at a time. Give each run its own policy.servers; or end "
            "the other one, start the server again, and go on with --resume."
        )

    async def _start_update(self) -> None:
        try:
            await self._post("/start_weight_update")
        except ServerFaultError as error:
            if "already active" not in str(error):  # left over from an exchange that was cut short
                raise
            await self._post("/finish_weight_update", {})
            await self._post("/start_weight_update")

    async def _reset(self) -> None:
        answer = await self._post("/reset_prefix_cache", reset_running_requests="true")
        if field_of(answer, "success") is not True:  # said with status 200
            raise PolicyError(
                f"The vLLM server {self._connection.url} did not drop what it has computed with the old weights: "
                f"{answer!r}. Start it again."
            )

    async def _post(self, path: str, body: Mapping[str, Any] | None = None, **parameters: str) -> Any:
        return await self._connection.ask("POST", path, body, within_s=self._control_s, parameters=parameters)

    async def _get(self, path: str) -> Any:
        return await self._connection.ask("GET", path, within_s=self._control_s)


def field_of(answer: Any, name: str) -> Any:
    """A field of an answer.

    Raises:
        InfrastructureError: It has none: this is no vLLM server, or another version of it.
    """
    if not isinstance(answer, Mapping) or name not in answer:
        raise InfrastructureError(f"It answered {str(answer)[:200]!r}, which has no {name!r}.")
    return answer[name]
