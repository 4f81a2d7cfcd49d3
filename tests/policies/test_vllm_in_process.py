"""When the engine in this process loads weights, and when it has them already."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentrl.errors import PolicyError
from agentrl.policies.vllm import settings
from agentrl.policies.vllm.engine import EngineEndedError, EngineLostError
from agentrl.policies.vllm.in_process import InProcessEngine
from agentrl.policies.vllm.settings import EngineSettings


class SleepyVllm:
    """What of vLLM's engine is called here."""

    errored = False

    async def sleep(self, level: int) -> None:
        pass

    async def wake_up(self) -> None:
        pass

    def shutdown(self, timeout: float) -> None:
        pass


def test_weights_are_loaded_once_unless_they_were_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "on_gpu", lambda: True)
    loads: list[int] = []

    async def exchange(self: InProcessEngine, path: Path, version: int) -> None:
        if path.stem == "broken":
            raise ValueError("do not fit")
        loads.append(version)

    monkeypatch.setattr(InProcessEngine, "_exchange_weights", exchange)
    engine = InProcessEngine(SleepyVllm(), EngineSettings(model="any", can_sleep=True), timeout_s=60.0)

    async def work() -> None:
        await engine.load_weights(Path("good"), 0)  # it began with the weights of nobody knows which version
        await engine.load_weights(Path("good"), 0)
        await engine.load_weights(Path("good"), 1)
        assert loads == [0, 1]
        await engine.sleep()
        await engine.wake()
        await engine.load_weights(Path("good"), 1)
        assert loads == [0, 1, 1]
        with pytest.raises(PolicyError, match="do not fit"):
            await engine.load_weights(Path("broken"), 2)
        await engine.load_weights(Path("good"), 1)
        assert loads == [0, 1, 1, 1]
        await engine.close()

    asyncio.run(work())


class BusyVllm(SleepyVllm):
    """Still in an exchange of weights that nobody waits for any more."""

    def __init__(self) -> None:
        self.is_active = True
        self.calls: list[str] = []

    async def pause_generation(self, mode: str) -> None:
        self.calls.append("pause")

    async def start_weight_update(self) -> None:
        if self.is_active:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self.is_active = True
        self.calls.append("start")

    async def update_weights(self, request: Any) -> None:
        self.calls.append("update")

    async def finish_weight_update(self, weight_version: str) -> None:
        self.is_active = False
        self.calls.append(f"finish {weight_version}")

    async def reset_prefix_cache(self) -> bool:
        return True

    async def resume_generation(self) -> None:
        self.calls.append("resume")


def test_an_exchange_that_took_too_long_is_ended_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = ModuleType("vllm.distributed.weight_transfer.base")
    base.WeightTransferUpdateRequest = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, base.__name__, base)
    vllm = BusyVllm()
    engine = InProcessEngine(vllm, EngineSettings(model="any"), timeout_s=60.0)
    asyncio.run(engine.load_weights(tmp_path / "weights.safetensors", 3))
    assert vllm.calls == ["pause", "finish unfinished", "start", "update", "finish 3", "resume"]


def test_health_is_an_answer() -> None:
    class Wedged(SleepyVllm):
        async def is_sleeping(self) -> bool:
            await asyncio.sleep(1000.0)
            return False

    async def work() -> None:
        engine = InProcessEngine(Wedged(), EngineSettings(model="any"), timeout_s=0.2)
        with pytest.raises(EngineLostError) as lost:
            await engine.is_healthy()
        assert not isinstance(lost.value, EngineEndedError)
        await engine.close()
        with pytest.raises(EngineEndedError):
            await engine.is_healthy()

    asyncio.run(work())
