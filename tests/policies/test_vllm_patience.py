"""Who waits for an engine, and how long."""

import asyncio

import pytest
from virtual_time import run_in_virtual_time

from agentrl.policies.vllm.patience import Patience

SILENCE_S = 1.0


def test_waiting_goes_on_while_others_are_answered() -> None:
    async def work() -> None:
        patience = Patience()
        order: list[str] = []

        async def one(name: str, seconds: float) -> None:
            async with patience.wait(SILENCE_S):
                await asyncio.sleep(seconds)
            order.append(name)

        # The last is answered at twice the limit, and everybody a quarter of the limit after somebody else.
        await asyncio.gather(*(one(str(number), 0.25 * number * SILENCE_S) for number in range(1, 9)))
        assert order == list("12345678")

    run_in_virtual_time(work())


def test_silence_ends_it_for_all() -> None:
    async def work() -> None:
        patience = Patience()

        async def one(seconds: float) -> None:
            async with patience.wait(SILENCE_S):
                await asyncio.sleep(seconds)

        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(one(SILENCE_S / 2), one(1000.0), one(2000.0), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), TimeoutError, TimeoutError]
        assert asyncio.get_running_loop().time() - began >= 1.5 * SILENCE_S

    run_in_virtual_time(work())


def test_a_failure_is_no_answer() -> None:
    async def work() -> None:
        patience = Patience()

        async def fail(seconds: float) -> None:
            async with patience.wait(SILENCE_S):
                await asyncio.sleep(seconds)
                raise ValueError("refused")

        async def wait() -> None:
            async with patience.wait(SILENCE_S):
                await asyncio.sleep(1000.0)

        failures = [fail(0.5 * number * SILENCE_S) for number in range(1, 100)]
        began = asyncio.get_running_loop().time()
        waiting = [asyncio.ensure_future(failure) for failure in failures]
        with pytest.raises(TimeoutError):
            await wait()
        assert asyncio.get_running_loop().time() - began < 40 * SILENCE_S
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run_in_virtual_time(work())
