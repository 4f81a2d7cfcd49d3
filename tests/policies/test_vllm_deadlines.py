"""How long a server is waited for, in hours that pass at once: timers ring as soon as there is nothing else to do."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import httpx
import pytest
from virtual_time import run_in_virtual_time
from vllm_server import ORDER

from agentrl.policies.vllm import connection
from agentrl.policies.vllm.connection import Deadlines
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.pool import EnginePool
from agentrl.policies.vllm.server import ServerEngine

Answer = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
DEADLINES = Deadlines(turn_s=60.0, per_token_s=0.5)


@pytest.fixture
def engine_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], ServerEngine]:
    """Engines of a server whose turns take as long as a function of their sampling parameters."""

    def make(answer: Answer) -> ServerEngine:
        async def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path != "/inference/v1/generate":
                return httpx.Response(200)
            await answer(json.loads(request.content)["sampling_params"])
            entry = {"token_id": 7, "logprob": -1.0, "top_logprobs": []}
            choice = {"token_ids": [7], "logprobs": {"content": [entry]}, "finish_reason": "length"}
            return httpx.Response(200, json={"choices": [choice]})

        class Client(httpx.AsyncClient):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options | {"transport": httpx.MockTransport(handle)})

        with monkeypatch.context() as patch:
            patch.setattr(connection.httpx, "AsyncClient", Client)
            return ServerEngine("http://server:1", deadlines=DEADLINES)

    return make


@pytest.mark.parametrize("num_tokens", [64, 512])
def test_a_queue_in_the_server_costs_nothing(engine_for: Any, num_tokens: int) -> None:
    """256 turns, of which it samples 64 at a time, at 140 tokens a second for all of them.

    Of 512 tokens each, 64 turns take 234 s and the last ones end after 936 s, when 316 s are the deadline of one.
    """
    places = asyncio.Semaphore(64)

    async def answer(fields: dict[str, Any]) -> None:
        async with places:
            await asyncio.sleep(fields["max_tokens"] * 64 / 140)

    async def act() -> float:
        engine = engine_for(answer)
        engine.max_in_flight = 256
        pool = EnginePool([engine])
        orders = [replace(ORDER, seed=i, max_tokens=num_tokens) for i in range(256)]
        turns = await asyncio.gather(*(pool.generate(i, order) for i, order in enumerate(orders)))
        assert len(turns) == 256
        assert pool.counters.lost_engines == 0
        await pool.close()
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(act()) == pytest.approx(4 * num_tokens * 64 / 140)


def test_a_server_that_answers_others_only_is_lost_once_it_has_answered_those(engine_for: Any) -> None:
    """Seed 0 never comes; the rest come one by one, 50 s apart, until 500 s. Then 60 + 0.5 * 40 = 80 s pass."""

    async def answer(fields: dict[str, Any]) -> None:
        await asyncio.sleep(50.0 * fields["seed"] if fields["seed"] else 1e6)

    async def act() -> float:
        engine = engine_for(answer)
        tasks = [asyncio.ensure_future(engine.generate(replace(ORDER, seed=i, max_tokens=40))) for i in range(11)]
        await asyncio.gather(*tasks[1:])
        with pytest.raises(EngineLostError, match="within 80 s"):
            await tasks[0]
        await engine.close()
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(act()) == pytest.approx(580.0)


def test_answers_about_health_are_no_progress(engine_for: Any) -> None:
    """vLLM's front end says that all is well while its engine hangs."""

    async def answer(fields: dict[str, Any]) -> None:
        await asyncio.sleep(1e6)

    async def act() -> float:
        engine = engine_for(answer)
        turn = asyncio.ensure_future(engine.generate(replace(ORDER, max_tokens=40)))
        for _ in range(10):
            await asyncio.sleep(7.0)
            assert await engine.is_healthy()
        with pytest.raises(EngineLostError):
            await turn
        await engine.close()
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(act()) == pytest.approx(80.0)
