"""However a session or its host ends, no process, descriptor, zombie or folder stays."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from session_checks import GENEROUS, OpenSession, folder_of, processes_in, runner_of

from agentrl.errors import InfrastructureError
from agentrl.sandbox import Limits, UnsafeSubprocess, home, unsafe_subprocess
from agentrl.sandbox.session import RunnerSession

LOOP = "open('started', 'w').close()\nwhile True: pass"


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def start_host(code: str) -> tuple[subprocess.Popen[str], Path]:
    """Another trainer, which opens `session`, prints its folder and then does `code`."""
    opening = (
        "import os, signal, threading, time\n"
        "from agentrl.sandbox import Limits, UnsafeSubprocess\n"
        "session = UnsafeSubprocess().open(limits=Limits(cpu_s=60, wall_s=120))\n"
        "print(session.run('import os; print(os.getcwd())').output.strip(), flush=True)\n"
    )
    host = subprocess.Popen([sys.executable, "-c", opening + code], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    return host, Path(host.stdout.readline().strip()).parent


@pytest.mark.parametrize(
    "code",
    [f"session.run({LOOP!r})", "session.write('started', b'')\ntime.sleep(60)"],
)
def test_a_killed_host_leaves_nothing(code: str) -> None:
    host, folder = start_host(code)
    assert wait_until((folder / "work" / "started").exists)
    assert len(processes_in(folder)) >= 1
    host.kill()
    host.wait()
    assert wait_until(lambda: not processes_in(folder) and not folder.exists())


@pytest.mark.parametrize("code", ["", "raise SystemExit(3)", "os._exit(0)", "fork = session.fork()"])
def test_a_host_that_ends_without_closing_leaves_nothing(code: str) -> None:
    host, folder = start_host(code)
    host.wait()
    assert wait_until(lambda: not processes_in(folder) and not folder.exists())


def test_a_dropped_session_ends() -> None:
    session = UnsafeSubprocess().open(limits=GENEROUS)
    fork = session.fork()
    folders = [folder_of(session), folder_of(fork)]
    del session, fork
    gc.collect()
    for folder in folders:
        assert wait_until(lambda folder=folder: not folder.exists() and not processes_in(folder))  # type: ignore[misc]


def test_many_sessions_leave_no_descriptor_zombie_or_thread() -> None:
    UnsafeSubprocess().open(limits=GENEROUS).close()  # starts what a process has once
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), children(), threading.active_count()

    def nothing_more() -> bool:
        """Less is fine: what other tests have left to itself may end meanwhile."""
        descriptors, processes, threads = before
        return (
            len(os.listdir("/proc/self/fd")) <= descriptors
            and children() <= processes
            and threading.active_count() <= threads
        )

    for _ in range(10):
        session = UnsafeSubprocess().open(limits=GENEROUS)
        session.run("x = 1")
        fork = session.fork()
        session.close()
        fork.run("x")
        fork.close()
    assert wait_until(nothing_more)


def test_closing_ends_a_running_cell(session: RunnerSession) -> None:
    folder = folder_of(session)
    errors: list[InfrastructureError] = []

    def run() -> None:
        try:
            session.run(LOOP)
        except InfrastructureError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until((folder / "work" / "started").exists)
    session.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["This sandbox session was closed while it was in use."]
    assert processes_in(folder) == []
    assert not folder.exists()


@pytest.mark.parametrize("running", [False, True])
def test_a_killed_runner_is_an_infrastructure_failure(session: RunnerSession, running: bool) -> None:
    folder, runner = folder_of(session), runner_of(session)

    def kill() -> None:
        assert not running or wait_until((folder / "work" / "started").exists)
        os.kill(runner, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    if not running:
        killing.join()
    with pytest.raises(InfrastructureError, match="sandbox failed"):
        session.run(LOOP)
    killing.join()
    assert wait_until(lambda: not processes_in(folder)), "interpreter and checkpoint notice and end"
    assert not folder.exists()
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("1")


def test_a_sandbox_that_hangs_is_ended_and_replaced(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(GENEROUS, files={"first": b"1"})
    session.run("x = 1; open('second', 'w').close()")
    folder = folder_of(session)
    os.kill(runner_of(session), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(home, "GRACE_S", 0.5 - GENEROUS.wall_s)  # this call alone is waited for half a second
        patch.setattr(unsafe_subprocess, "_CLOSE_S", 0.2)
        result = session.run("x")
    assert (result.status, result.reason, result.state) == ("timeout", "wall", "reset")
    assert result.output == "killed: 120 s time limit; all names are lost\n"
    assert wait_until(lambda: not processes_in(folder) and not folder.exists())
    assert session.run("import os; 'x' in globals(), os.listdir()").output == "(False, ['first'])\n"


def test_a_forked_host_does_not_end_its_parents_session(session: RunnerSession) -> None:
    session.run("x = 1")
    pid = os.fork()
    if pid == 0:
        session.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert session.run("x").output == "1\n"


def test_sessions_of_several_threads_do_not_mix(open_session: OpenSession) -> None:
    sessions = [open_session() for _ in range(4)]
    outputs: dict[int, list[str]] = {}

    def work(number: int) -> None:
        sessions[number].run(f"n = {number}; total = 0")
        outputs[number] = [sessions[number].run("total += n; total").output for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {n: [f"{n * k}\n" for k in range(1, 11)] for n in range(4)}


def test_one_session_used_by_several_threads_answers_each(session: RunnerSession) -> None:
    session.run("total = 0")
    threads = [threading.Thread(target=session.run, args=("total += 1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.run("total").output == "8\n"


def test_a_full_disk_is_an_infrastructure_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(InfrastructureError, match="folder cannot be made"):
        UnsafeSubprocess().open(limits=Limits())
