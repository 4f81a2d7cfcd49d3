"""A vLLM engine that belongs to this process; vLLM itself computes in processes that it starts."""

import asyncio
import atexit
import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.core import StopCause
from agentrl.policies.vllm.engine import BrokenModelError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.orders import sampling_fields
from agentrl.policies.vllm.settings import EngineSettings
from agentrl.policies.vllm.starting import start_engine

_POLL_SECONDS = 0.5
"""How soon the end of the engine is noticed by a call that is no request."""


class InProcessEngine:
    """One vLLM engine on this machine's GPU or CPU (see `engine.Engine`). Made by `open`."""

    def __init__(self, engine: Any, settings: EngineSettings, timeout_s: float) -> None:
        self.name = "in process"
        self.max_in_flight = settings.max_in_flight
        self._engine: Any = engine
        self._settings = settings
        self._timeout_s = timeout_s
        self._numbers = itertools.count()
        self._version = 0
        self._adapters = _Adapters()
        self._is_closed = False
        atexit.register(self._shut_down)

    @classmethod
    def open(
        cls,
        model_path: str,
        *,
        context_length: int,
        max_in_flight: int,
        num_top: int,
        dtype: str | None = None,
        lora_rank: int | None = None,
        gpu_memory: float = 0.9,
        sleep: bool = False,
        timeout_s: float = 600.0,
    ) -> Self:
        """Starts the engine, which takes from half a minute to some minutes.

        What vLLM changes in this process while it starts is put back: environment variables, random states, threads.
        The calls that follow must come from one event loop; it need not run yet.

        Args:
            model_path: A folder or a hub id.
            context_length: See `EngineSettings`.
            max_in_flight: See `EngineSettings`.
            num_top: See `EngineSettings`.
            dtype: See `EngineSettings`.
            lora_rank: See `EngineSettings`.
            gpu_memory: See `EngineSettings`. The rest has to be enough for the trainer.
            sleep: See `EngineSettings`.
            timeout_s: Longest time for one turn or one update, after which the engine counts as lost.

        Raises:
            MissingExtraError: vLLM is not installed.
            ConfigError: A setting is wrong, or this is a script that starts itself again.
            PolicyError: vLLM cannot start with this model here.
        """
        settings = EngineSettings(
            model=model_path,
            context_length=context_length,
            max_in_flight=max_in_flight,
            num_top=num_top,
            dtype=dtype,
            lora_rank=lora_rank,
            gpu_memory=gpu_memory,
            sleep=sleep,
        )
        return cls(start_engine(settings), settings, timeout_s)

    async def generate(self, order: Order) -> Sampled:
        """Samples one turn. Cancelling it cancels the request in the engine.

        With LoRA a request keeps the adapter that it began with.

        Raises:
            EngineLostError: The engine is gone, or silent for too long.
            InfrastructureError: vLLM refused this request, or broke it off.
            BrokenModelError: It sampled from NaN.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine, version, output = self._alive(), self._version, None
        try:
            params = SamplingParams(**sampling_fields(order), output_kind=RequestOutputKind.FINAL_ONLY)
            prompt = TokensPrompt(prompt_token_ids=order.token_ids, cache_salt=str(order.version))
            number = str(next(self._numbers))
            with self._adapters.used() as adapter:
                async with asyncio.timeout(self._timeout_s):
                    async for output in engine.generate(prompt, params, number, lora_request=adapter):
                        pass
        except TimeoutError:
            raise EngineLostError(f"vLLM did not answer within {self._timeout_s:g} s.") from None
        except Exception as error:  # of many classes: ours is made by the state that it leaves the engine in
            raise self._failure(error, InfrastructureError) from error
        sampled = _sampled(output, order, version)
        return sampled if self._settings.lora_rank is None else replace(sampled, versions=(version, version))

    async def load_weights(self, path: Path, version: int) -> None:
        """Exchanges the weights, or the adapter, and forgets everything computed with the old ones.

        Args:
            path: A safetensors file with all parameters by their names in the checkpoint; where the engine was opened
                with a `lora_rank`, the folder of an adapter. Different for every version.
            version: What they are called from now on.

        Raises:
            EngineLostError: The engine is gone.
            PolicyError: The weights do not fit, and the old ones are still there; or old keys and values could not be
                dropped.
        """
        if path.is_dir() != (self._settings.lora_rank is not None):
            kind = "whole weights as a file" if path.is_file() else "the folder of a LoRA adapter"
            raise PolicyError(
                f"The engine was given {kind} ({path}), but opened with lora_rank={self._settings.lora_rank}."
            )
        work = self._exchange_adapter if path.is_dir() else self._exchange_weights
        await self._call(work(path, version))
        self._version = version

    async def sleep(self) -> None:
        """Gives the GPU's memory back, weights included; no request may be under way.

        Raises:
            ConfigError: The engine was not opened with `sleep`.
            EngineLostError: The engine is gone.
        """
        if not self._settings.sleep:
            raise ConfigError("This engine cannot sleep: open it with sleep=True, on a GPU.")
        await self._call(self._alive().sleep(level=2))

    async def wake(self) -> None:
        """Takes the memory again. `load_weights` must follow before the next request.

        Raises:
            EngineLostError: The engine is gone.
        """
        await self._call(self._alive().wake_up())

    async def is_healthy(self) -> bool:
        """Whether it can take requests."""
        return not (self._is_closed or self._engine.errored)

    async def close(self) -> None:
        """Ends the engine and its processes. Safe to call twice."""
        self._shut_down()

    def _shut_down(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            atexit.unregister(self._shut_down)
            self._engine.shutdown(timeout=5.0)

    async def _exchange_weights(self, path: Path, version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        engine = self._alive()
        await engine.pause_generation(mode="keep")
        try:
            await engine.start_weight_update()
            await engine.update_weights(WeightTransferUpdateRequest({"path": str(path), "version": version}))
            await engine.finish_weight_update(weight_version=str(version))
            if not await engine.reset_prefix_cache():
                raise PolicyError("vLLM did not drop the keys and values of the old weights. Open the engine anew.")
        finally:
            await engine.resume_generation()

    async def _exchange_adapter(self, path: Path, version: int) -> None:
        from vllm.lora.request import LoRARequest

        engine = self._alive()
        new = LoRARequest(f"policy-{version}", version + 1, str(path))  # cached keys and values are kept by this name
        await engine.add_lora(new)
        self._adapters.exchange(new)
        for number in self._adapters.unused():
            await engine.remove_lora(number)

    async def _call(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits a call to the engine, which would not return if the engine died meanwhile; a caller may be cancelled,
        half an update may not be.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waits any more
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_SECONDS)
            if not task.done() and (self._engine.errored or asyncio.get_running_loop().time() > deadline):
                task.cancel()
                raise self._failure(TimeoutError(f"no answer within {self._timeout_s:g} s"), EngineLostError)
        error = task.exception()
        if error is not None:
            raise self._failure(error, PolicyError) from error

    def _alive(self) -> Any:
        if self._is_closed:
            raise EngineLostError("The vLLM engine has been closed.")
        if self._engine.errored:
            raise EngineLostError("The vLLM engine has died. Its own messages say why; most often, memory ran out.")
        return self._engine

    def _failure(self, error: BaseException, kind: type[Exception]) -> Exception:
        if isinstance(error, InfrastructureError | PolicyError):
            return error
        if self._is_closed or self._engine.errored:
            return EngineLostError("The vLLM engine has died. Its own messages say why; most often, memory ran out.")
        return kind(f"vLLM says: {error.__cause__ or error}")


class _Adapters:
    """The LoRA adapters in an engine: the newest, and older ones until the requests that began with them are done."""

    def __init__(self) -> None:
        self._newest: Any = None
        self._loaded: set[int] = set()
        self._users: Counter[int] = Counter()

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        """Keeps the newest adapter, which may be none, for a request."""
        adapter = self._newest
        number = 0 if adapter is None else adapter.lora_int_id
        self._users[number] += 1
        try:
            yield adapter
        finally:
            self._users[number] -= 1

    def exchange(self, adapter: Any) -> None:
        """Gives requests from now on this adapter."""
        self._newest = adapter
        self._loaded.add(adapter.lora_int_id)

    def unused(self) -> list[int]:
        """Forgets the adapters that no request has or will get, and returns their numbers."""
        old = sorted(n for n in self._loaded if n != self._newest.lora_int_id and not self._users[n])
        self._loaded.difference_update(old)
        return old


def _sampled(output: Any, order: Order, version: int) -> Sampled:
    """What vLLM's `RequestOutput` says.

    Raises:
        InfrastructureError: The request was broken off.
        BrokenModelError: A sampled token has no log-probability.
    """
    if output is None or output.outputs[0].finish_reason not in ("stop", "length"):
        reason = None if output is None else output.outputs[0].finish_reason
        raise InfrastructureError(f"vLLM broke a request off (finish_reason {reason!r}).")
    turn = output.outputs[0]
    token_ids = list(turn.token_ids)
    logprobs = [entries[token].logprob for token, entries in zip(token_ids, turn.logprobs, strict=True)]
    if not all(math.isfinite(value) for value in logprobs):
        raise BrokenModelError("The model returned NaN. The learning rate may be too high, or the dtype too narrow.")
    cause: StopCause = "end_of_turn"
    if turn.finish_reason == "length":
        cause = "length"
    elif isinstance(turn.stop_reason, str):
        cause = "stop_string"
    spans = turn.weight_versions or []
    versions = [int(span.version) if span.version.isdecimal() else version for span in (spans[:1] + spans[-1:])]
    return Sampled(
        token_ids=token_ids,
        logprobs=logprobs,
        top=[_best(entries, order.num_top) for entries in turn.logprobs],
        cause=cause,
        versions=(versions[0], versions[1]) if versions else (version, version),
        num_cached=output.num_cached_tokens or 0,
    )


def _best(entries: dict[int, Any], number: int) -> list[float]:
    """The largest log-probabilities of one position. Those of tokens that top-k or top-p left out are -inf."""
    values = sorted((entry.logprob for entry in entries.values() if math.isfinite(entry.logprob)), reverse=True)
    return values[:number]
