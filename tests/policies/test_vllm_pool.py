"""Several engines as one: who gets what, and what happens when some are lost. The probes' pauses are of no length."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import MemoryEngine, order, refusal

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.policies.vllm.engine import BrokenModelError, EngineEndedError, EngineLostError
from agentrl.policies.vllm.pool import EnginePool

Act = Callable[..., Coroutine[Any, Any, Any]]


def with_pool(act: Act, *sizes: int, **options: Any) -> Any:
    """Runs act(pool, *engines) with engines of those sizes."""

    async def run() -> Any:
        engines = [MemoryEngine(f"engine {i}", size) for i, size in enumerate(sizes)]
        pool = EnginePool(engines, **({"probe_s": 0.0, "grace_s": 60.0} | options))
        try:
            return await act(pool, *engines)
        finally:
            await pool.close()

    return asyncio.run(run())


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Runs other tasks until something holds; a test that waits in vain ends after a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_load_is_spread_by_room_and_bounded() -> None:
    async def act(pool: EnginePool, small: MemoryEngine, large: MemoryEngine) -> None:
        small.gate.clear()
        large.gate.clear()
        tasks = [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(10)]
        await settle()
        assert (small.in_flight, large.in_flight) == (2, 4)
        # The larger share of free places wins, then the larger number: 4/4 against 2/2, 3/4 < 2/2, 3/4 > 1/2,
        # 2/4 against 1/2, 1/4 < 1/2, 1/4 > 0.
        assert (small.seeds, large.seeds) == ([1, 4], [0, 2, 3, 5])
        small.gate.set()
        large.gate.set()
        assert [sampled.token_ids for sampled in await asyncio.gather(*tasks)] == [[i] for i in range(10)]
        assert (small.most_in_flight, large.most_in_flight) == (2, 4)

    with_pool(act, 2, 4)


def test_those_who_wait_are_served_in_order() -> None:
    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(30)))
        assert engine.seeds == list(range(30))

    with_pool(act, 3)


def test_a_sequence_stays_where_its_tokens_are() -> None:
    async def act(pool: EnginePool, *engines: MemoryEngine) -> None:
        for _ in range(3):
            await asyncio.gather(*(pool.generate(i, order(i)) for i in range(6)))
        homes = [{seed for seed in engine.seeds} for engine in engines]
        assert [len(home) for home in homes] == [2, 2, 2]
        assert all(count == 3 for engine in engines for count in Counter(engine.seeds).values())

    with_pool(act, 4, 4, 4)


def test_forks_go_where_the_parent_is_even_if_that_turns_out_later() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.gate.clear()
        busy = asyncio.ensure_future(pool.generate(99, order(99)))  # so that sequence 1 goes to the second
        await settle()
        pool.fork(1, 2)
        pool.fork(2, 3)
        await pool.generate(1, order(1))
        first.gate.set()
        await busy
        await pool.generate(3, order(3))
        await pool.generate(2, order(2))
        pool.fork(3, 4)
        pool.forget(3)
        await pool.generate(4, order(4))
        assert first.seeds == [99]
        assert second.seeds == [1, 3, 2, 4]

    with_pool(act, 8, 8)


def test_a_full_home_is_no_reason_to_wait() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.gate.clear()
        tasks = []
        for child in (1, 2, 3):
            pool.fork(0, child)
        for i in range(4):
            tasks.append(asyncio.ensure_future(pool.generate(i, order(i))))
        await settle()
        assert (first.seeds, second.seeds) == ([0, 1], [2, 3])
        first.gate.set()
        await asyncio.gather(*tasks)

    with_pool(act, 2, 2)


def test_cancelled_requests_give_their_places_back() -> None:
    """Some are cancelled while they wait, some while they sample, some at the moment of getting a place."""

    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        rng = random.Random(0)
        for _ in range(30):
            engine.gate.clear()
            tasks = [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(8)]
            for task in rng.sample(tasks, 5):
                await asyncio.sleep(0)
                task.cancel()
            engine.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 5
            assert engine.in_flight == 0
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(4)))
        assert engine.most_in_flight == 2
        assert pool.counters.in_flight == 0

    with_pool(act, 2)


def test_a_turn_of_a_lost_engine_is_sampled_elsewhere_with_its_seed() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.is_alive = False
        sampled = await asyncio.gather(*(pool.generate(i, order(i)) for i in range(6)))
        assert [turn.token_ids for turn in sampled] == [[i] for i in range(6)]
        assert sorted(second.seeds) == list(range(6))
        counters = pool.counters
        assert (counters.requests, counters.retried, counters.lost_engines) == (6, len(first.seeds), 1)
        assert (counters.cached_tokens, counters.prefilled_tokens, counters.sampled_tokens) == (6, 12, 6)

    with_pool(act, 4, 4, probe_s=60.0)


def test_an_engine_comes_back_with_the_current_weights() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        first.is_alive = False
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(4)))
        await pool.load_weights(Path("v2"), 2)
        assert [version for _, version in first.loads] == [1]
        first.is_alive = True
        await until(lambda: bool(first.loads[1:]))
        await settle()
        assert first.loads[-1] == (Path("v2"), 2)
        first.seeds.clear()
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(10, 14)))
        assert len(first.seeds) == 2

    with_pool(act, 4, 4)


def test_weights_that_change_during_a_come_back_are_loaded_too() -> None:
    """The probe loads version 1 while version 2 is given to the others: it must not come back with version 1."""

    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        first.errors.append(EngineLostError("hiccup"))
        first.load_gate.clear()
        await pool.generate(0, order(0))
        await until(lambda: first.num_load_calls == 2)
        await pool.load_weights(Path("v2"), 2)
        second.max_in_flight = 0  # what is asked for now can only be sampled by the first one
        first.load_gate.set()
        turns = await asyncio.gather(*(pool.generate(i, order(i, version=2)) for i in range(20, 24)))
        assert {turn.versions for turn in turns} == {(2, 2)}
        assert [version for _, version in first.loads] == [1, 1, 2]

    with_pool(act, 4, 4)


def test_a_turn_that_loses_engine_after_engine_is_given_up_and_no_other() -> None:
    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        engine.errors = [EngineLostError(f"crash {i}") for i in range(3)]
        with pytest.raises(InfrastructureError, match="lost 3 vLLM engines, at last: crash 2") as raised:
            await pool.generate(0, order(0))
        assert raised.type is InfrastructureError
        assert (await pool.generate(1, order(1))).token_ids == [1]

    with_pool(act, 1, max_attempts=3)


@pytest.mark.parametrize("error", [InfrastructureError("out of memory"), BrokenModelError("NaN"), PolicyError("no")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.errors.append(error)
        with pytest.raises(type(error)):
            await pool.generate(0, order(0))
        assert (second.seeds, pool.counters.lost_engines) == ([], 0)
        await pool.generate(1, order(1))

    with_pool(act, 4, 4)


def test_without_any_engine_all_who_wait_are_told_why() -> None:
    async def act(pool: EnginePool, *engines: MemoryEngine) -> None:
        for engine in engines:
            engine.is_alive = False
        results = await asyncio.gather(*(pool.generate(i, order(i)) for i in range(9)), return_exceptions=True)
        assert {type(result) for result in results} == {PolicyError}
        with pytest.raises(PolicyError, match=r"none has come back in 0 s\. engine 0: .*dead engine 1: .*dead"):
            await pool.generate(9, order(9))
        engines[1].is_alive = True  # but it may come back later
        await until(lambda: not pool._seats[1].is_out)
        assert (await pool.generate(10, order(10))).token_ids == [10]

    with_pool(act, 2, 2, grace_s=0.0, max_attempts=100)


def test_an_engine_that_has_ended_is_not_waited_for() -> None:
    """Half an hour of grace would be for engines that come back."""

    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        engine.gate.clear()
        tasks = [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(3)]
        await settle()
        engine.errors.append(EngineEndedError("memory ran out"))
        tasks += [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(3, 6)]
        async with asyncio.timeout(60):
            with pytest.raises(PolicyError, match=r"cannot come back\. engine 0: memory ran out"):
                await tasks[3]
            for rest in tasks[4:]:
                with pytest.raises(PolicyError, match="cannot come back"):
                    await rest
            with pytest.raises(PolicyError, match="cannot come back"):
                await pool.load_weights(Path("v1"), 1)
        await until(lambda: not pool._probes)
        for rest in tasks[:3]:
            rest.cancel()

    with_pool(act, 4, grace_s=1800.0)


def test_an_engine_that_ends_while_it_is_out_is_not_waited_for() -> None:
    """First a turn takes too long, then the engine turns out to be dead."""

    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        engine.errors.append(EngineLostError("took too long"))
        engine.load_errors.append(EngineEndedError("memory ran out"))
        async with asyncio.timeout(60):
            with pytest.raises(PolicyError, match=r"cannot come back\. engine 0: memory ran out"):
                await pool.generate(0, order(0))
        await until(lambda: not pool._probes)

    with_pool(act, 4, grace_s=1800.0)


def test_an_engine_that_has_ended_is_done_without() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.errors.append(EngineEndedError("memory ran out"))
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(6)))
        await settle()
        second.errors.append(EngineLostError("hiccup"))  # which may come back
        assert (await pool.generate(7, order(7))).token_ids == [7]

    with_pool(act, 4, 4)


@pytest.mark.parametrize("method", ["is_healthy", "load_weights"])
def test_whatever_goes_wrong_an_engine_is_asked_again(method: str) -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        first.errors.append(EngineLostError("hiccup"))
        asked = []
        usual = getattr(first, method)

        async def odd(*arguments: Any) -> Any:
            asked.append(pool._seats[0].last_error)
            if len(asked) < 3:
                raise OSError("stale file handle")
            return await usual(*arguments)

        setattr(first, method, odd)
        await pool.generate(0, order(0))
        await until(lambda: not pool._seats[0].is_out)
        assert asked == ["hiccup", "OSError stale file handle", "OSError stale file handle"]

    with_pool(act, 4, 4)


def test_turns_wait_for_an_engine_that_comes_back_in_time() -> None:
    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        engine.is_alive = False
        tasks = [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(3)]
        await settle()
        engine.is_alive = True
        assert [sampled.token_ids for sampled in await asyncio.gather(*tasks)] == [[0], [1], [2]]

    with_pool(act, 4)


# Weights -------------------------------------------------------------------------------------------------------------


def test_an_engine_that_refuses_weights_samples_no_more_and_its_turns_move() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        first.gate.clear()
        first.load_errors = [refusal()] * 1000
        tasks = [asyncio.ensure_future(pool.generate(i, order(i))) for i in range(4)]
        await settle()
        assert first.in_flight == 2
        await pool.load_weights(Path("v1"), 1)
        await asyncio.gather(*tasks)
        assert first.num_cancelled == 2
        assert sorted(second.seeds) == [0, 1, 2, 3]

    with_pool(act, 4, 4, probe_s=60.0)


def test_weights_that_no_engine_takes_are_an_error() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        for engine in (first, second):
            engine.load_errors = [refusal()]
        with pytest.raises(PolicyError, match=r"No vLLM engine took .* version 2\. engine 0: shapes differ engine 1"):
            await pool.load_weights(Path("v2"), 2)
        await until(lambda: not any(seat.is_out for seat in pool._seats))
        assert first.loads[-1] == second.loads[-1] == (Path("v1"), 1)  # both have been given the old ones again

    with_pool(act, 4, 4)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_weights_that_were_given_up_are_not_loaded_later(is_cancelled: bool) -> None:
    """Their file is gone when the engine comes back; the one before is still there."""

    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        engine.is_alive = False
        with pytest.raises(PolicyError):
            await pool.generate(0, order(0))
        if is_cancelled:
            pool._is_given_up = False  # or else it would not wait
            load = asyncio.ensure_future(pool.load_weights(Path("v2"), 2))
            await settle()
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
        else:
            with pytest.raises(PolicyError, match="none has come back"):
                await pool.load_weights(Path("v2"), 2)
        engine.is_alive = True
        await until(lambda: not pool._seats[0].is_out)
        assert engine.loads == [(Path("v1"), 1)] * 2

    with_pool(act, 4, grace_s=0.0)


def test_weights_wait_for_an_engine_if_there_is_none() -> None:
    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        engine.errors = [EngineLostError("hiccup")]
        engine.is_alive = False
        turn = asyncio.ensure_future(pool.generate(0, order(0)))
        await settle()
        load = asyncio.ensure_future(pool.load_weights(Path("v1"), 1))
        await settle()
        assert not load.done()
        engine.is_alive = True
        await asyncio.gather(load, turn)
        assert engine.loads[-1][1] == 1

    with_pool(act, 4)


def test_sleep_stops_the_probes() -> None:
    """A lost engine that came back while the others sleep would take the memory they have given up."""

    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.load_weights(Path("v1"), 1)
        first.is_alive = False
        await pool.generate(0, order(0))
        await pool.sleep()
        first.is_alive = True
        await settle()
        assert (first.num_load_calls, second.is_asleep) == (1, True)
        await pool.wake()
        await pool.load_weights(Path("v2"), 2)
        await until(lambda: not pool._seats[0].is_out)
        assert first.loads[-1][1] == 2

    with_pool(act, 4, 4)


def test_an_engine_that_cannot_wake_is_lost() -> None:
    async def act(pool: EnginePool, first: MemoryEngine, second: MemoryEngine) -> None:
        await pool.sleep()
        first.is_alive = False
        await pool.wake()
        await pool.load_weights(Path("v1"), 1)
        await asyncio.gather(*(pool.generate(i, order(i)) for i in range(4)))
        assert len(second.seeds) == 4
        await pool.sleep()
        second.is_alive = False
        with pytest.raises(PolicyError, match="could wake up"):
            await pool.wake()

    with_pool(act, 4, 4, probe_s=60.0)


def test_a_pool_needs_an_engine() -> None:
    with pytest.raises(ConfigError, match=r"policy\.servers"):
        EnginePool([])


def test_the_mean_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns for 3 s and one of them for 1 s more: 7 turn-seconds in 4 busy ones; idle time does not count."""
    now = [100.0]
    monkeypatch.setattr("agentrl.policies.vllm.counters.time.monotonic", lambda: now[0])

    async def act(pool: EnginePool, engine: MemoryEngine) -> None:
        for by, later in ((+1, 0.0), (+1, 3.0), (-1, 1.0), (-1, 50.0)):
            pool.counters.change(by)
            now[0] += later
        assert pool.counters.mean_in_flight == 7 / 4
        assert pool.counters.metrics()["engine_mean_in_flight"] == 7 / 4

    with_pool(act, 4)
