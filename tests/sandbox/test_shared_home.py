"""A session and its forks live in one sandbox: they take turns, and what happens to one leaves the other alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from session_checks import OpenSession, folder_of, processes_in, runner_of
from test_session_end import LOOP, wait_until

from agentrl.errors import ForkError, InfrastructureError
from agentrl.sandbox import Limits
from agentrl.sandbox.session import RunnerSession


def test_closing_one_ends_its_cell_and_leaves_the_other(session: RunnerSession) -> None:
    session.run("x = 1")
    folder = folder_of(session)
    fork = session.fork()
    errors: list[Exception] = []

    def run() -> None:
        try:
            fork.run(LOOP)
        except InfrastructureError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until((folder / "work" / "started").exists)
    fork.close()
    thread.join(60)
    assert not thread.is_alive()
    assert session.run("x").output == "1\n"
    assert wait_until(lambda: len(processes_in(folder)) == 1)
    assert session.run("import os; os.listdir()").output == "[]\n"


def test_cells_of_a_family_take_turns_and_mix_nothing(session: RunnerSession) -> None:
    session.run("total = 0")
    family = [session, *(session.fork() for _ in range(3))]
    outputs: dict[int, list[str]] = {}

    def work(number: int) -> None:
        outputs[number] = [family[number].run(f"total += {number}; total").output for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {n: [f"{n * k}\n" for k in range(1, 11)] for n in range(4)}


def test_waiting_for_a_turn_does_not_count(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.sandbox.home.GRACE_S", 0.0)  # so that it would not count with the host either
    session = open_session(Limits(cpu_s=60, wall_s=3.0))
    with ThreadPoolExecutor(1) as threads:
        with session.home._turn():  # as a cell of a fork has it
            waiting = threads.submit(session.run, "1")
            time.sleep(3.2)
        assert waiting.result(60).status == "ok"


def test_a_fork_that_is_killed_by_its_sibling_says_that_its_names_are_lost(session: RunnerSession) -> None:
    session.run("x = 1")
    fork = session.fork()
    fork.run(f"import os; [os.kill(pid, 9) for pid in {processes_in(folder_of(session))} if pid != os.getpid()]")
    result = session.run("x")
    assert (result.status, result.reason, result.state) == ("killed", "ended", "reset")
    assert session.run("2").output == "2\n"


def test_a_fork_after_the_sandbox_was_brought_down_is_refused(
    session: RunnerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = session.fork()
    monkeypatch.setattr("agentrl.sandbox.unsafe_subprocess._SubprocessLink.ran_out_of_memory", lambda _: True)
    os.kill(runner_of(session), signal.SIGKILL)
    assert session.run("1").reason == "memory"
    with pytest.raises(ForkError, match="brought down the sandbox"):
        fork.fork()
    assert fork.run("1").state == "reset"
    assert (fork.run("2").output, session.run("3").output) == ("2\n", "3\n")
    assert runner_of(session) != runner_of(fork), "they begin anew, apart"


def test_a_sandbox_without_room_for_a_copy_says_so(session: RunnerSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, num_sessions: int) -> None:
        raise OSError("no")

    monkeypatch.setattr("agentrl.sandbox.unsafe_subprocess._SubprocessLink.resize", refuse)
    with pytest.raises(ForkError, match="cannot be given more memory"):
        session.fork()
    assert session.run("1").output == "1\n"


def test_a_forked_copy_of_the_host_does_not_keep_a_sandbox_alive(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "from agentrl.sandbox import Limits, UnsafeSubprocess\n"
        "session = UnsafeSubprocess().open(limits=Limits())\n"
        "print(session.run('import os; print(os.getcwd())').output.strip(), flush=True)\n"
        f"if os.fork() == 0:\n    open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    folder = Path(host.stdout.readline().strip()).parent
    assert wait_until((tmp_path / "child").exists)
    assert wait_until(lambda: bool((tmp_path / "child").read_text()))
    host.kill()
    host.wait()
    try:
        assert wait_until(lambda: not processes_in(folder) and not folder.exists())
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
