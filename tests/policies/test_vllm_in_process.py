"""When the engine in this process loads weights, and when it has them already."""

import asyncio
from pathlib import Path

import pytest

from agentrl.errors import PolicyError
from agentrl.policies.vllm import settings
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
