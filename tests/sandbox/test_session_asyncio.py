"""Sessions are synchronous; callers that are not use them from the threads of an event loop (cases 89 and 90).

A thread cannot be cancelled, so it is closing the session that ends its cell and with it the thread.
"""

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator

import pytest
from other_trainers import wait_until
from session_checks import GENEROUS
from soak import footprint, open_many
from test_walls import sandbox  # noqa: F401 - a fixture: every isolating back end

from agentrl.errors import InfrastructureError
from agentrl.sandbox import RunnerSandbox
from agentrl.sandbox.session import RunnerSession

_ENGINE_CONNECTIONS = 4
"""The Docker SDK keeps connections to its engine; there may be some more the next time."""
LOOP = "x = 2\nwhile True: pass"


@pytest.fixture
def nothing_is_left(sandbox: RunnerSandbox) -> Iterator[None]:  # noqa: F811
    """No process, thread, descriptor, container or group more than before, and no coroutine that nobody awaited."""
    open_many(sandbox, 8)  # connections to an engine stay
    gc.collect()
    before = footprint()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught if "never awaited" in str(warning.message)] == []
    del before["memory, MiB"]
    before["descriptors"] += _ENGINE_CONNECTIONS
    assert wait_until(lambda: all(footprint()[name] <= number for name, number in before.items())), (
        before,
        footprint(),
    )


def runs(session: RunnerSession) -> bool:
    return session.home._running is not None


async def start_cell(session: RunnerSession) -> "asyncio.Task[object]":
    task: asyncio.Task[object] = asyncio.create_task(asyncio.to_thread(session.run, LOOP))
    while not runs(session):
        await asyncio.sleep(0.01)
    return task


async def cancel(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("nothing_is_left")
def test_a_cancelled_call_is_ended_by_closing_its_session(sandbox: RunnerSandbox) -> None:  # noqa: F811
    async def episode() -> None:
        session = await asyncio.to_thread(sandbox.open, limits=GENEROUS)
        await cancel(await start_cell(session))
        await asyncio.to_thread(session.close)
        with pytest.raises(InfrastructureError, match="closed"):
            session.run("1")

    asyncio.run(episode())  # waits for the threads of its executor, the one with the cell included


@pytest.mark.usefixtures("nothing_is_left")
def test_a_fork_goes_on_after_a_cancelled_call(sandbox: RunnerSandbox) -> None:  # noqa: F811
    """The sandbox has not suffered, only the session that was closed."""

    async def episode() -> None:
        session = await asyncio.to_thread(sandbox.open, limits=GENEROUS)
        await asyncio.to_thread(session.run, "x = 1")
        fork = session.fork()
        await cancel(await start_cell(session))
        session.close()
        assert (await asyncio.to_thread(fork.run, "x")).output == "1\n"
        fork.close()

    asyncio.run(episode())


@pytest.mark.usefixtures("nothing_is_left")
def test_a_session_outlives_its_event_loop_and_is_closed_from_another_thread(
    sandbox: RunnerSandbox,  # noqa: F811
) -> None:
    """The loop is closed while the cell runs in a thread of its executor."""
    session = sandbox.open(limits=GENEROUS)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        await cancel(await start_cell(session))

    loop.run_until_complete(begin())
    loop.close()
    assert runs(session)
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert wait_until(lambda: not runs(session))


@pytest.mark.usefixtures("nothing_is_left")
def test_closing_from_another_thread_tells_the_caller(sandbox: RunnerSandbox) -> None:  # noqa: F811
    session = sandbox.open(limits=GENEROUS)
    errors: list[InfrastructureError] = []

    def run() -> None:
        try:
            session.run(LOOP)
        except InfrastructureError as error:
            errors.append(error)

    running = threading.Thread(target=run)
    running.start()
    assert wait_until(lambda: runs(session))
    session.close()
    running.join(60)
    assert not running.is_alive()
    assert [str(error) for error in errors] == ["This sandbox session was closed while it was in use."]
