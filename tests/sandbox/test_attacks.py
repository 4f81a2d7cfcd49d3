"""Programs that go wrong in the ways programs do: each is a result, the names from before it live, nothing is left.

This back end is no security boundary, so of the list of attacks only the accidents run here, and those that do no harm
but show that they would get out.
"""

import sys
import time
from collections.abc import Iterator

import pytest
from session_checks import OpenSession, folder_of, processes_in, runner_of

from agentrl.sandbox import Limits, UnsafeSubprocess
from agentrl.sandbox.attacks import ATTACKS, Attack, Bare, Surroundings, run_attack
from agentrl.sandbox.attacks.attack import BUSY
from agentrl.sandbox.session import RunnerSession

ENDINGS: dict[int, tuple[str, str | None, str]] = {
    11: ("killed", "pids", "rolled_back"),
    12: ("error", None, "kept"),
    13: ("error", None, "kept"),
    14: ("killed", "memory", "rolled_back"),
    27: ("killed", "protocol", "rolled_back"),
    46: ("killed", "died", "rolled_back"),
    222: ("killed", "memory", "rolled_back"),
    224: ("ok", None, "kept"),
    241: ("killed", "pids", "rolled_back"),
    242: ("killed", "pids", "rolled_back"),
    318: ("killed", "died", "rolled_back"),
    319: ("killed", "died", "rolled_back"),
    434: ("killed", "died", "rolled_back"),
}
"""Where the list allows several outcomes, because other back ends stop a program by other means: the one of this."""


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with Surroundings() as things:
        yield things


@pytest.fixture(scope="module")
def neighbour() -> Iterator[RunnerSession]:
    session = UnsafeSubprocess().open(limits=BUSY)
    yield session
    session.close()


def attacks(bare: Bare, *, slow_from: int) -> pytest.MarkDecorator:
    chosen = [attack for attack in ATTACKS if attack.bare is bare]
    return pytest.mark.parametrize(
        "attack",
        [pytest.param(a, id=f"{a.id} {a.name}", marks=[pytest.mark.slow] if a.id >= slow_from else []) for a in chosen],
    )


@attacks(Bare.HOLDS, slow_from=201)
def test_an_accident_is_a_result_and_leaves_nothing(
    open_session: OpenSession, neighbour: RunnerSession, surroundings: Surroundings, attack: Attack
) -> None:
    session = open_session(attack.limits)
    folder = folder_of(session)
    outcome = run_attack(session, neighbour, attack, surroundings)
    assert outcome.passed, (outcome.detail, outcome.result)
    assert outcome.result is not None
    if attack.id in ENDINGS:
        assert (outcome.result.status, outcome.result.reason, outcome.result.state) == ENDINGS[attack.id]
    if not attack.aftershock:
        assert len(processes_in(folder)) == 1, "after a cell nothing but the interpreter lives"
    session.close()
    assert processes_in(folder) == []
    assert not folder.exists()


@attacks(Bare.REACHES, slow_from=1000)
def test_without_isolation_an_attack_gets_out_and_is_reported(
    open_session: OpenSession, neighbour: RunnerSession, surroundings: Surroundings, attack: Attack
) -> None:
    outcome = run_attack(open_session(attack.limits), neighbour, attack, surroundings)
    assert not outcome.passed
    assert "it got out" in outcome.detail or "LEAKED" in outcome.detail


def test_names_changed_by_a_killed_cell_are_rolled_back(open_session: OpenSession) -> None:
    session = open_session(BUSY)
    session.run("import random; random.seed(1); numbers = [1]")
    expected = session.run("state = random.getstate(); random.random()").output
    session.run("random.setstate(state)")
    session.run("numbers.append(2); random.random()\nwhile True: pass")
    assert session.run("numbers").output == "[1]\n"
    assert session.run("random.random()").output == expected, "a checkpoint must not reseed"


def test_the_checkpoint_of_a_checkpoint_works(open_session: OpenSession) -> None:
    session = open_session(BUSY)
    for number in range(3):
        session.run(f"x = {number}")
        session.run("x = 'lost'\nimport os; os._exit(1)")
        assert session.run("x").output == f"{number}\n"


def test_threads_of_one_cell_serve_the_next(open_session: OpenSession) -> None:
    session = open_session(Limits(cpu_s=60, wall_s=60))
    session.run("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)")
    assert session.run("list(pool.map(abs, [-1, -2]))").output == "[1, 2]\n"
    assert session.run("list(pool.map(abs, [-3, -4]))").output == "[3, 4]\n"


def test_an_alarm_does_not_ring_between_cells(open_session: OpenSession) -> None:
    session = open_session(BUSY)
    session.run("import signal\ndef ring(*_): raise TimeoutError\nx = 1; _ = signal.signal(signal.SIGALRM, ring)")
    session.run("_ = signal.setitimer(signal.ITIMER_REAL, 0.05)")
    time.sleep(0.2)
    assert session.run("x").output == "1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_of_a_cell_are_not_left_to_one_that_asked_for_them_before(open_session: OpenSession) -> None:
    """They would stay zombies, and count against cells that know nothing of them."""
    session = open_session(Limits(cpu_s=60, wall_s=60, pids=16))
    session.run("import ctypes, os, time\n_ = ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER")
    orphans = """
for _ in range(24):
    if not os.fork():
        if not os.fork(): os._exit(0)
        os._exit(0)
    _ = os.wait()
"""
    assert session.run(orphans).status == "ok"
    assert session.run("time.sleep(0.2)").status == "ok"


def test_an_interpreter_that_ends_between_two_cells_is_reported_and_replaced(open_session: OpenSession) -> None:
    session = open_session(BUSY)
    code = """
import os, threading, time
def strike():
    while not os.path.exists("strike"): time.sleep(0.02)
    os._exit(0)
threading.Thread(target=strike).start()
"""
    assert session.run(code).status == "ok"
    session.write("strike", b"")
    folder = folder_of(open_session(BUSY))  # another session does not care
    assert folder.exists()
    deadline = time.monotonic() + 60
    while (result := session.run("time.sleep(0.02)")).status == "ok":
        assert time.monotonic() < deadline
    # The thread strikes in a cell, which is then rolled back without it, or between two cells.
    assert (result.state, result.reason) in [("rolled_back", "died"), ("reset", "ended")]
    assert session.run("2").output == "2\n"


def test_output_is_bounded_and_its_head_and_tail_are_kept(open_session: OpenSession) -> None:
    session = open_session(Limits(cpu_s=60, wall_s=120, output_bytes=1000))
    result = session.run("import sys\nprint('begin')\nfor _ in range(200):\n    print('x' * 10 ** 5)\nprint('end')")
    # 6 bytes, 200 lines of 100,001 bytes, 4 bytes
    assert (result.output_bytes, result.truncated) == (6 + 200 * 100_001 + 4, True)
    assert result.output.startswith("begin\nxxx")
    assert result.output.endswith("xxx\nend\n")
    assert "bytes cut" in result.output
    assert len(result.output.encode()) <= 1000


def test_a_huge_output_costs_the_runner_no_memory(open_session: OpenSession) -> None:
    session = open_session(Limits(cpu_s=60, wall_s=120))
    runner = runner_of(session)

    def peak_kb() -> int:
        with open(f"/proc/{runner}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    before = peak_kb()
    assert session.run("for _ in range(1000): print('x' * 10 ** 5)").output_bytes == 1000 * 100_001  # 100 MB
    assert peak_kb() - before < 5_000
