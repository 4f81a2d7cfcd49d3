"""Engines in memory that do as tests tell them, and weights for them."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from agentrl.errors import PolicyError
from agentrl.policies.core import Sampling
from agentrl.policies.vllm.engine import EngineLostError, Order, Sampled


def order(seed: int = 0, version: int = 0) -> Order:
    return Order(
        token_ids=[1, 2, 3],
        max_tokens=4,
        stop=(),
        stop_token_ids=(2,),
        seed=seed,
        sampling=Sampling(),
        num_top=2,
        version=version,
    )


class MemoryEngine:
    """Samples the seed as its only token, when `gate` is open."""

    def __init__(self, name: str, max_in_flight: int = 4) -> None:
        self.name = name
        self.max_in_flight = max_in_flight
        self.is_alive = True
        self.errors: list[Exception] = []
        """Raised by the next turns, first one first."""
        self.load_errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.load_gate = asyncio.Event()
        self.load_gate.set()
        self.seeds: list[int] = []
        self.in_flight = self.most_in_flight = self.num_cancelled = self.num_closed = 0
        self.loads: list[tuple[Path, int]] = []
        self.is_asleep = False
        self.num_load_calls = 0

    async def generate(self, order: Order) -> Sampled:
        assert not self.is_asleep
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.seeds.append(order.seed)
        try:
            await asyncio.sleep(0)
            self._require_life()
            if self.errors:
                raise self.errors.pop(0)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        version = self.loads[-1][1] if self.loads else order.version
        return Sampled(
            token_ids=[order.seed],
            logprobs=[-0.5],
            top=[[-0.5]],
            cause="length",
            versions=(version, version),
            num_cached=1,
        )

    async def load_weights(self, path: Path, version: int) -> None:
        await asyncio.sleep(0)
        self._require_life()
        self.num_load_calls += 1
        await self.load_gate.wait()
        if self.load_errors:
            raise self.load_errors.pop(0)
        self.loads.append((path, version))

    async def sleep(self) -> None:
        self._require_life()
        self.is_asleep = True

    async def wake(self) -> None:
        self._require_life()
        self.is_asleep = False

    async def is_healthy(self) -> bool:
        return self.is_alive

    async def close(self) -> None:
        self.num_closed += 1

    def _require_life(self) -> None:
        if not self.is_alive:
            raise EngineLostError(f"{self.name} is dead")


class MemoryWeights:
    """Names of files, and what became of them."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.refused: list[int] = []
        self.num_closed = 0

    @contextlib.contextmanager
    def write(self, version: int) -> Iterator[Path]:
        try:
            yield Path(f"v{version}.safetensors")
        except BaseException:
            self.refused.append(version)
            raise
        self.loaded.append(version)

    def close(self) -> None:
        self.num_closed += 1


def refusal() -> PolicyError:
    return PolicyError("shapes differ")
