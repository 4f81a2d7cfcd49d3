"""A forked copy of the trainer, made while threads hold every lock there is: they are held for ever in the copy."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from session_checks import GENEROUS, OpenSession, folder_of, processes_in
from test_session_end import wait_until

from agentrl.errors import InfrastructureError
from agentrl.sandbox import StatelessSandbox, UnsafeSubprocess, WarmPool, home, session
from agentrl.sandbox.linux import user_ids
from agentrl.sandbox.session import RunnerSession
from agentrl.sandbox.slots import Slots

LIMIT_S = 60
"""After which a copy that hangs is killed."""


def succeeds_in_a_copy(check: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT_S)
        is_fine = False
        try:
            is_fine = check()
        finally:
            os._exit(0 if is_fine else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextlib.contextmanager
def all_taken(*slots: Slots) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for some in slots:
            for _ in range(some.num):
                stack.enter_context(some.taken())
        yield


def test_a_copy_runs_cells_of_its_own_though_all_turns_were_taken() -> None:
    def check() -> bool:
        with UnsafeSubprocess().open(limits=GENEROUS) as own:
            return own.run("1 + 1").output == "2\n"

    with all_taken(home._running_cells, session._starting), user_ids._of_process._lock:
        assert succeeds_in_a_copy(check)
        assert succeeds_in_a_copy(lambda: user_ids._of_process._lock.acquire(timeout=1))
    assert check(), "the parent has its turns back"


def test_a_copy_runs_programs_in_shared_sandboxes_of_its_own() -> None:
    shared = StatelessSandbox(UnsafeSubprocess())
    programs = shared.open(limits=GENEROUS)
    process_id = programs.run("import os; os.getppid()").output

    def check() -> bool:
        output = programs.run("import os; os.getppid()").output
        shared.close()
        return output != process_id

    with all_taken(shared._turns), shared._lock:
        assert succeeds_in_a_copy(check)
    assert programs.run("import os; os.getppid()").output == process_id, "the parent's lives"
    shared.close()


def test_a_copy_takes_nothing_of_a_pool() -> None:
    pool = WarmPool(UnsafeSubprocess(), num_ready=1)

    def check() -> bool:
        with pool.open(limits=GENEROUS) as own:
            return own.run("2").output == "2\n"

    with pool._lock:
        assert succeeds_in_a_copy(check)
    pool.close()


@pytest.mark.parametrize("operation", ["run", "fork", "read", "write", "list_files", "is_alive", "close"])
def test_a_session_of_the_parent_is_refused_at_once(open_session: OpenSession, operation: str) -> None:
    parents = open_session()
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: parents.run("1"),
        "fork": parents.fork,
        "read": lambda: parents.read("f", 1),
        "write": lambda: parents.write("f", b""),
        "list_files": parents.list_files,
    }

    def check() -> bool:
        if operation == "is_alive":
            return not parents.home.is_alive()
        if operation == "close":
            parents.close()
            parents.home.close()
            return True
        try:
            calls[operation]()
        except InfrastructureError as error:
            return "belongs to the parent of this process" in str(error)
        return False

    with parents.home._lock, parents.home._send_lock, parents.home._link._close_lock:  # type: ignore[attr-defined]
        assert succeeds_in_a_copy(check)
    assert parents.run("1").output == "1\n"


def test_a_copy_ends_what_it_drops() -> None:
    kept = UnsafeSubprocess().open(limits=GENEROUS)  # the parent's reaper runs

    def check() -> bool:
        dropped: list[RunnerSession] = [UnsafeSubprocess().open(limits=GENEROUS)]
        folder = folder_of(dropped[0])
        dropped.clear()
        return wait_until(lambda: not folder.exists() and not processes_in(folder))

    assert succeeds_in_a_copy(check)
    assert kept.run("1").output == "1\n"
    kept.close()
