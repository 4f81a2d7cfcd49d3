"""A vLLM engine that belongs to this process; vLLM itself computes in processes that it starts."""

import asyncio
import atexit
import itertools
import re
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.loading import model_path
from agentrl.policies.vllm.adapters import Adapters
from agentrl.policies.vllm.engine import EngineEndedError, EngineLostError, Order, Sampled
from agentrl.policies.vllm.orders import from_output, sampling_fields
from agentrl.policies.vllm.patience import Patience
from agentrl.policies.vllm.settings import EngineSettings
from agentrl.policies.vllm.starting import start_engine

_POLL_SECONDS = 0.5
"""How soon the end of the engine is noticed by a call that is no request."""
_END_SECONDS = 5.0
"""For vLLM's processes to end by themselves, before they are killed."""


class InProcessEngine:
    """One vLLM engine on this machine's GPU or CPU (see `engine.Engine`). Made by `open`."""

    def __init__(self, engine: Any, settings: EngineSettings, timeout_s: float) -> None:
        self.name = "in process"
        self.max_in_flight = settings.max_in_flight
        self._engine: Any = engine
        self._settings = settings
        self._timeout_s = timeout_s
        self._patience = Patience()
        self._numbers = itertools.count()
        self._adapter_numbers = itertools.count(1)
        self._holds: int | None = None
        """The version whose weights are in the engine; None is no version, or half of one."""
        self._adapters = Adapters()
        self._exchange = asyncio.Lock()
        atexit.register(self._shut_down)

    @classmethod
    async def open(
        cls,
        model: str,
        *,
        context_length: int,
        max_in_flight: int,
        num_top: int,
        dtype: str | None = None,
        lora_rank: int | None = None,
        gpu_memory: float = 0.9,
        can_sleep: bool = False,
        timeout_s: float = 600.0,
    ) -> Self:
        """Starts the engine, which takes from half a minute to some minutes; the event loop stands still meanwhile.

        What vLLM changes in this process while it starts is put back: environment variables, random states, threads.

        Args:
            model: "quickstart", a folder or a hub id.
            context_length: See `EngineSettings`.
            max_in_flight: See `EngineSettings`.
            num_top: See `EngineSettings`.
            dtype: See `EngineSettings`.
            lora_rank: See `EngineSettings`.
            gpu_memory: See `EngineSettings`. The rest has to be enough for the trainer.
            can_sleep: See `EngineSettings`.
            timeout_s: Longest time without the end of a turn, and for an update, after which the engine counts as lost.

        Raises:
            MissingExtraError: vLLM is not installed.
            ConfigError: A setting is wrong, or this is a script that starts itself again.
            PolicyError: vLLM cannot start with this model here.
        """
        settings = EngineSettings(
            model=model_path(model),
            context_length=context_length,
            max_in_flight=max_in_flight,
            num_top=num_top,
            dtype=dtype,
            lora_rank=lora_rank,
            gpu_memory=gpu_memory,
            can_sleep=can_sleep,
        )
        return cls(start_engine(settings), settings, timeout_s)

    async def generate(self, order: Order) -> Sampled:
        """Samples one turn. Cancelling it cancels the request in the engine.

        With LoRA a request keeps the adapter that it began with.

        Raises:
            EngineLostError: The engine is gone, or silent for too long.
            InfrastructureError: vLLM refused this request.
            BrokenModelError: It sampled from NaN.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine, output = self._alive(), None
        try:
            params = SamplingParams(**sampling_fields(order), output_kind=RequestOutputKind.FINAL_ONLY)
            prompt = TokensPrompt(prompt_token_ids=order.token_ids, cache_salt=str(order.version))
            number = str(next(self._numbers))
            with self._adapters.used() as (adapter, version):
                async with self._patience.wait(self._timeout_s):
                    async for answer in engine.generate(prompt, params, number, lora_request=adapter):
                        output = answer
        except TimeoutError:
            raise EngineLostError(f"vLLM has answered nothing for {self._timeout_s:g} s.") from None
        except Exception as error:  # of many classes: ours is made by the state that it leaves the engine in
            raise self._failure(error, InfrastructureError) from error
        sampled = from_output(output, order)
        return sampled if self._settings.lora_rank is None else replace(sampled, versions=(version, version))

    async def rehearse(self, path: Path) -> None:
        """Opens handles to weights and lets go of them, to see whether that works here.

        Args:
            path: A file of handles (see `handles`).

        Raises:
            EngineLostError: The engine is gone.
            PolicyError: It does not.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._call(self._alive().init_weight_transfer_engine(WeightTransferInitRequest({"path": str(path)})))

    async def load_weights(self, path: Path, version: int) -> None:
        """Exchanges the weights, or the adapter, and forgets everything computed with the old ones.

        Does nothing if it has them already, as after a turn that took too long.

        Args:
            path: A safetensors file with all parameters by their names in the checkpoint, or a file of handles to them;
                where the engine was opened with a `lora_rank`, the folder of an adapter.
            version: What they are called from now on.

        Raises:
            EngineLostError: The engine is gone.
            PolicyError: The weights do not fit, and the old ones are still there; or old keys and values could not be
                dropped.
        """
        if path.is_dir() != (self._settings.lora_rank is not None):
            kind = "the folder of a LoRA adapter" if path.is_dir() else "a file for whole weights"
            raise PolicyError(
                f"The engine was given {kind} ({path}), but opened with lora_rank={self._settings.lora_rank}."
            )
        exchange = self._exchange_adapter if path.is_dir() else self._exchange_weights

        async def one_at_a_time() -> None:
            async with self._exchange:
                if self._holds == version:
                    return
                self._holds = None
                await exchange(path, version)
                self._holds = version

        await self._call(one_at_a_time())

    async def sleep(self) -> None:
        """Gives the GPU's memory back; no request may be under way.

        Raises:
            ConfigError: The engine was not opened with `can_sleep`.
            EngineLostError: The engine is gone.
        """
        if not self._settings.can_sleep:
            raise ConfigError("This engine cannot sleep: open it with can_sleep=True, on a GPU.")
        self._holds = None
        # Level 2 drops the weights, which come from the trainer anyway. An adapter needs those below it: they are kept.
        await self._call(self._alive().sleep(level=2 if self._settings.lora_rank is None else 1))

    async def wake(self) -> None:
        """Takes the memory again. `load_weights` must follow before the next request.

        Raises:
            EngineLostError: The engine is gone.
        """
        await self._call(self._alive().wake_up())

    async def is_healthy(self) -> bool:
        """Whether it can take requests: yes, if it answers.

        Raises:
            EngineEndedError: It is gone.
            EngineLostError: It does not answer.
        """
        await self._call(self._alive().is_sleeping())
        return True

    async def close(self) -> None:
        """Ends the engine and its processes. Safe to call twice."""
        self._shut_down()

    def _shut_down(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            atexit.unregister(self._shut_down)
            engine.shutdown(timeout=_END_SECONDS)

    async def _exchange_weights(self, path: Path, version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        engine = self._alive()
        await engine.pause_generation(mode="keep")
        try:
            await self._start_update()
            await engine.update_weights(WeightTransferUpdateRequest({"path": str(path), "version": version}))
            await engine.finish_weight_update(weight_version=str(version))
            if not await engine.reset_prefix_cache():
                raise PolicyError("vLLM did not drop the keys and values of the old weights. Open the engine anew.")
        finally:
            await engine.resume_generation()

    async def _start_update(self) -> None:
        engine = self._alive()
        try:
            await engine.start_weight_update()
        except Exception as error:  # of no class of its own
            if "already active" not in str(error):
                raise
            await engine.finish_weight_update(weight_version="unfinished")  # that of an exchange that took too long
            await engine.start_weight_update()

    async def _exchange_adapter(self, path: Path, version: int) -> None:
        from vllm.lora.request import LoRARequest

        engine = self._alive()
        number = next(self._adapter_numbers)  # of its own for each, since vLLM does not load a number twice
        new = LoRARequest(f"policy-{number}", number, str(path))  # cached keys and values are kept by this name
        await engine.add_lora(new)
        self._adapters.exchange(new, version)
        for unused in self._adapters.unused():
            await engine.remove_lora(unused)

    async def _call(self, work: Coroutine[Any, Any, object]) -> None:
        """Awaits a call to the engine, which would not return if the engine died meanwhile.

        A caller may be cancelled; half an update may not be.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waits any more
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_SECONDS)
            if not task.done() and (self._is_gone or asyncio.get_running_loop().time() > deadline):
                task.cancel()
                raise self._failure(TimeoutError(f"no answer within {self._timeout_s:g} s"), EngineLostError)
        error = task.exception()
        if error is not None:
            raise self._failure(error, PolicyError) from error

    def _alive(self) -> Any:
        if self._is_gone:
            raise self._lost()
        return self._engine

    @property
    def _is_gone(self) -> bool:
        return self._engine is None or bool(self._engine.errored)

    def _lost(self) -> EngineEndedError:
        if self._engine is None:
            return EngineEndedError("The vLLM engine was closed.")
        return EngineEndedError("The vLLM engine has died. Its own messages say why; most often, memory ran out.")

    def _failure(self, error: BaseException, kind: type[Exception]) -> Exception:
        if isinstance(error, InfrastructureError | PolicyError):
            return error
        if self._is_gone:
            return self._lost()
        return kind(f"vLLM says: {_innermost(error.__cause__ or error)}")


def _innermost(error: BaseException) -> str:
    """The words of an error that came from a worker, without those that say which way it came."""
    found = re.search(r"Worker failed with error '(.*)', please check", str(error), re.DOTALL)
    return found[1] if found else str(error)
