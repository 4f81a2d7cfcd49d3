"""A vLLM server as an engine: turns over `/inference/v1/generate`, weights over vLLM's own RL endpoints."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import Sampling
from agentrl.policies.vllm.answers import read_answer, weight_names
from agentrl.policies.vllm.connection import SERVE, Connection, Deadlines, NotFoundError, ServerFaultError
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.orders import sampling_fields
from agentrl.policies.vllm.server_weights import ServerWeights, field_of

_GENERATE = "/inference/v1/generate"
_HEALTH_S = 5.0
_CLOSE_S = 5.0


class ServerEngine:
    """One vLLM server (see `engine.Engine`).

    Args:
        url: Such as http://127.0.0.1:8000.
        deadlines: How long it is waited for.

    Raises:
        ConfigError: The URL cannot be used.
    """

    def __init__(self, url: str, *, deadlines: Deadlines | None = None) -> None:
        self._deadlines = deadlines or Deadlines()
        self._connection = Connection(url, self._deadlines)
        self._weights = ServerWeights(self._connection, self._deadlines.control_s)
        self._exchange = asyncio.Lock()
        self.name = self._connection.url
        self.max_in_flight = 1
        """What the server computes at a time, once `check` has asked it."""

    async def check(self, *, context_length: int, num_top: int) -> None:
        """Finds out whether the server can be trained with, and how many requests it computes at a time.

        Two tokens are sampled, at two temperatures, which shows whether their log-probabilities are those of the
        distribution that is sampled from.

        Args:
            context_length: Longest sequence to come.
            num_top: Log-probabilities per token to come, besides the sampled one's.

        Raises:
            EngineLostError: It does not answer.
            PolicyError: It lacks something.
        """
        try:
            models = [model for model in field_of(await self._get("/v1/models"), "data") if not model.get("parent")]
            self._weights.base = str(models[0]["id"])
            longest = models[0].get("max_model_len") or context_length
            field_of(await self._get("/weight_info"), "weight_version")
            config = field_of(await self._get("/server_info", config_format="json"), "vllm_config")
            self.max_in_flight = int(config["scheduler_config"]["max_num_seqs"])
            warm, cool = [await self._spread(temperature, max(2, num_top)) for temperature in (1.0, 0.5)]
        except EngineLostError:
            raise
        except (InfrastructureError, LookupError, TypeError, AttributeError) as error:
            raise PolicyError(f"The vLLM server {self.name} cannot be used: {error} {SERVE}") from error
        if longest < context_length:
            raise PolicyError(
                f"The vLLM server {self.name} takes sequences of up to {longest} tokens, and {context_length} are "
                "asked for. Lower rollout.max_episode_tokens, or start the server with a longer context."
            )
        if not math.isclose(cool, 2 * warm, rel_tol=0.02, abs_tol=0.02):
            raise PolicyError(
                f"The vLLM server {self.name} reports log-probabilities before temperature, which are not those of the "
                f"sampled distribution. It needs --logprobs-mode processed_logprobs. {SERVE}"
            )

    async def generate(self, order: Order) -> Sampled:
        """Samples one turn. Cancelling it closes the connection, and so cancels the request in the server.

        With LoRA a request keeps the adapter that it began with.

        Raises:
            EngineLostError: The server is gone, silent for too long, or lost the weights that it was given.
            InfrastructureError: It refuses this request.
            BrokenModelError: It sampled from NaN.
            PolicyError: It does not offer what it takes, or has weights of another run.
        """
        with self._weights.in_use() as used:
            try:
                answer = await self._ask_for_turn(order, used.model)
            except NotFoundError as error:
                if not used.is_adapter:
                    raise
                raise await self._weights.why_gone(used) from error
        versions = self._weights.versions(weight_names(answer), used, order.version)
        try:
            return read_answer(answer, order, versions)
        except (InfrastructureError, BrokenModelError) as error:
            raise type(error)(f"{self.name}: {error}") from error

    async def load_weights(self, path: Path, version: int) -> None:
        """Exchanges the weights, and forgets everything computed with the old ones.

        Args:
            path: A safetensors file with all parameters, or the folder of a LoRA adapter. The server reads it itself,
                so it must be in a folder that both machines see under this name.
            version: What they are called from now on.

        Raises:
            EngineLostError: The server is gone, or silent for too long.
            PolicyError: It refuses the weights, does not forget the old ones, or has those of another run.
        """
        async with self._exchange:
            is_adapter = await asyncio.to_thread(path.is_dir)
            load = self._weights.load_adapter if is_adapter else self._weights.load_file
            try:
                await load(path, version)
            except InfrastructureError as error:
                if isinstance(error, EngineLostError) and not isinstance(error, ServerFaultError):
                    raise
                if not await self.is_healthy():
                    raise EngineLostError(f"{self.name} died while it took weights: {error}") from error
                raise PolicyError(
                    f"The vLLM server {self.name} did not take the weights in {path}: {error} It must be able to read "
                    "that path, and serve the model that is trained."
                ) from error

    async def sleep(self) -> None:
        """Gives the device's memory back; weights only if whole ones were loaded, since adapters need what is below.

        Raises:
            EngineLostError: The server is gone.
            PolicyError: It cannot sleep.
        """
        current = self._weights.current
        whole = current.version is not None and not current.is_adapter
        await self._post("/sleep", level="2" if whole else "1")

    async def wake(self) -> None:
        """Takes the memory again.

        Raises:
            EngineLostError: The server is gone.
            PolicyError: It cannot sleep.
        """
        await self._post("/wake_up")

    async def is_healthy(self) -> bool:
        """Whether it says that its engine is alive."""
        return await self._connection.is_healthy(_HEALTH_S)

    async def close(self) -> None:
        """Takes this object's adapters away and closes the connections; the server goes on."""
        with contextlib.suppress(TimeoutError, InfrastructureError, PolicyError):
            async with asyncio.timeout(_CLOSE_S):
                await self._weights.unload()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._connection.close()

    async def _spread(self, temperature: float, num_top: int) -> float:
        """How far apart the most and the least probable reported tokens are that may follow some token."""
        order = Order(
            token_ids=[0],
            max_tokens=1,
            stop=(),
            stop_token_ids=(),
            seed=0,
            sampling=Sampling(temperature=temperature),
            num_top=num_top,
            version=0,
        )
        (top,) = read_answer(await self._ask_for_turn(order, self._weights.base), order).top
        return top[0] - top[-1]

    async def _ask_for_turn(self, order: Order, model: str) -> Any:
        body = {
            "model": model,
            "token_ids": order.token_ids,
            "sampling_params": sampling_fields(order),
            "cache_salt": str(order.version),
            "stream": False,
        }
        return await self._connection.ask("POST", _GENERATE, body, within_s=self._deadlines.of_turn(order.max_tokens))

    async def _post(self, path: str, **parameters: str) -> Any:
        return await self._connection.ask("POST", path, within_s=self._deadlines.control_s, parameters=parameters)

    async def _get(self, path: str, **parameters: str) -> Any:
        return await self._connection.ask("GET", path, within_s=self._deadlines.control_s, parameters=parameters)


async def open_servers(
    urls: Sequence[str],
    *,
    context_length: int,
    num_top: int,
    deadlines: Deadlines | None = None,
) -> list[ServerEngine]:
    """Engines for servers that are running, each of them checked.

    Args:
        urls: One for each server.
        context_length: Longest sequence to come.
        num_top: Log-probabilities per token to come.
        deadlines: How long a server is waited for.

    Raises:
        EngineLostError: A server does not answer.
        ConfigError: A URL cannot be used, or is there twice.
        PolicyError: A server lacks something.
    """
    engines = [ServerEngine(url, deadlines=deadlines) for url in urls]
    names = [engine.name for engine in engines]
    if len(set(names)) < len(names):
        raise ConfigError(f"A server is named twice in policy.servers: {', '.join(names)}. Name each one once.")
    try:
        await asyncio.gather(*(engine.check(context_length=context_length, num_top=num_top) for engine in engines))
    except BaseException:
        await asyncio.gather(*(engine.close() for engine in engines))
        raise
    return engines
