"""Exchanging the weights of a vLLM server: whole ones over its RL endpoints, or LoRA adapters by name."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import InfrastructureError, PolicyError
from agentrl.policies.vllm.connection import Connection, NotFoundError, ServerFaultError

_RESUME_S = 30.0


class ServerWeights:
    """What a server samples with, and which requests use it. Exchanges must not overlap.

    Args:
        connection: To the server.
        control_s: Deadline of one call.
    """

    def __init__(self, connection: Connection, control_s: float) -> None:
        self.base = self.model = "policy"
        """The names that requests give to the model without an adapter, and to what is to be used now."""
        self._connection = connection
        self._control_s = control_s
        self._adapters: dict[str, int] = {}
        """Versions of those on the server."""
        self._users: Counter[str] = Counter()

    @property
    def adapter_version(self) -> int | None:
        """Of the adapter that is to be used now, if any."""
        return self._adapters.get(self.model)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[str]:
        """The name to give; an adapter stays on the server while it is used."""
        model = self.model
        self._users[model] += 1
        try:
            yield model
        finally:
            self._users[model] -= 1

    async def load_file(self, path: Path, version: int) -> None:
        """Pauses, loads, forgets, makes sure of it, and goes on whatever happened.

        Requests under way go on with the new weights.

        Raises:
            EngineLostError: The server is gone, or failed.
            InfrastructureError: It says no.
            PolicyError: It does not offer this, or did not forget what it computed with the old weights.
        """
        try:
            await self._post("/pause", mode="keep", clear_cache="true")
            await self._start_update()
            await self._post("/update_weights", {"update_info": {"path": str(path.absolute()), "version": version}})
            await self._post("/finish_weight_update", {"weight_version": str(version)})
            await self._reset()
            found = field_of(await self._get("/weight_info"), "weight_version")
            if found != str(version):
                raise PolicyError(
                    f"The vLLM server {self._connection.url} has weights of version {found!r} after {version} was "
                    "loaded. Only one run may use a server."
                )
        finally:
            await asyncio.shield(self._connection.ask("POST", "/resume", within_s=_RESUME_S))
        self.model = self.base

    async def load_adapter(self, path: Path, version: int) -> None:
        """Adds an adapter under a new name, and takes away older ones that no request under way needs.

        Requests under way go on with the adapter that they began with.

        Raises:
            EngineLostError: The server is gone, or failed.
            InfrastructureError: It says no.
            PolicyError: It does not offer this, or did not drop what it computed before.
        """
        name = f"policy-v{version}"
        if name in self._adapters:  # loaded again after a failure; the server may have been started anew in between
            await self._unload(name)
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path.absolute())})
        unused = [adapter for adapter in self._adapters if not self._users[adapter]]
        self._adapters[name] = version
        self.model = name
        for adapter in unused:
            await self._unload(adapter)
        await self._reset()

    async def _unload(self, adapter: str) -> None:
        del self._adapters[adapter]
        with contextlib.suppress(NotFoundError):  # the server was started again
            await self._post("/v1/unload_lora_adapter", {"lora_name": adapter})

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
