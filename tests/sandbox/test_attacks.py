"""Programs that go wrong in the ways programs do: each is a result, the names from before it live, nothing is left.

This back end is no security boundary, so programs that mean harm to the machine are not among them.
"""

import time
from dataclasses import dataclass

import pytest
from session_checks import OpenSession, folder_of, processes_in

from agentrl.sandbox import ExecResult, Limits

BUSY = Limits(cpu_s=0.3, wall_s=60, memory_mb=200, file_mb=8, pids=32)
"""For programs that burn CPU: however slow the machine, it is the CPU limit that ends them."""
IDLE = Limits(cpu_s=30, wall_s=1.5, memory_mb=200, pids=32)
"""For programs that wait."""


@dataclass(frozen=True)
class Attack:
    """A program and what must come of it."""

    name: str
    code: str
    status: str
    reason: str | None = None
    state: str = "kept"
    limits: Limits = BUSY
    output: str = ""
    """Must be in the output."""
    exit_code: int | None = None
    signal: int | None = None


def cpu_bound(name: str, code: str) -> Attack:
    return Attack(name, code, "timeout", "cpu", "rolled_back", output="killed: 0.3 s CPU limit; names from before this")


def waiting(name: str, code: str) -> Attack:
    return Attack(name, code, "timeout", "wall", "rolled_back", IDLE, output="killed: 1.5 s time limit; names from be")


def fatal(name: str, code: str, *, exit_code: int | None = None, signal: int | None = None, output: str = "") -> Attack:
    return Attack(name, code, "killed", "died", "rolled_back", output=output, exit_code=exit_code, signal=signal)


IGNORE_ALL = """
import signal
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True: pass
"""
SWALLOW = """
while True:
    try:
        while True: pass
    except BaseException: pass
"""
HUNGRY_CHILDREN = """
import os, time
for _ in range(4):
    if not os.fork():
        block = b"x" * 80_000_000
        time.sleep(60)
time.sleep(60)
"""
BUSY_CHILD = """
import os
if not os.fork():
    while True: pass
os.wait()
"""
FORK_BOMB = "import os, time\nfor _ in range(8): os.fork()\ntime.sleep(60)"  # 2 ** 8 processes
SESSIONS_BOMB = (
    "import os, time\nfor _ in range(60):\n    if not os.fork(): os.setsid(); time.sleep(60)\ntime.sleep(60)"
)
THREADS = """
import threading, time
for _ in range(50): threading.Thread(target=time.sleep, args=(60,)).start()
time.sleep(60)
"""
DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(60)
os.wait()
print("done")
"""
CHILD_RUNS_ON = """
import os
if os.fork():
    os.wait()
    print("parent")
else:
    print("child")
"""
JUNK_TO_DESCRIPTORS = """
import os
for fd in range(3, 20):
    try: os.write(fd, b"\\xff" * 8)
    except OSError: pass
while True: pass
"""
DEEP_STACK = """
import sys
sys.setrecursionlimit(10 ** 9)
class Endless:
    def __repr__(self): return repr(self)
Endless()
"""
EVIL_REPR = "class A:\n    def __repr__(self):\n        while True: pass\nA()"
ATTACKS = [
    cpu_bound("busy loop", "while True: pass"),
    cpu_bound("all signals ignored and blocked", IGNORE_ALL),
    cpu_bound("every exception swallowed", SWALLOW),
    cpu_bound("catastrophic regular expression", "import re; re.match('(a+)+$', 'a' * 40 + 'b')"),
    cpu_bound("huge power", "9 ** 9 ** 9; 1"),
    cpu_bound("endless repr of the value", EVIL_REPR),
    cpu_bound("endless output", "while True: print('x' * 1000)"),
    cpu_bound("endless output to stderr", "import sys\nwhile True: sys.stderr.write('x' * 1000)"),
    cpu_bound("a child burns the CPU", BUSY_CHILD),
    waiting("sleep", "import time; time.sleep(60)"),
    waiting("stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"),
    Attack("one large block", "bytearray(10 ** 9)", "error", output="MemoryError"),
    Attack("many blocks", "x = []\nwhile True: x.append(bytearray(10 ** 6))", "error", output="MemoryError"),
    Attack("memory of children together", HUNGRY_CHILDREN, "killed", "memory", "rolled_back", output="200 MB memory"),
    Attack("fork bomb", FORK_BOMB, "killed", "pids", "rolled_back", output="limit of 32 processes and threads"),
    Attack("children in sessions of their own", SESSIONS_BOMB, "killed", "pids", "rolled_back"),
    Attack("threads", THREADS, "killed", "pids", "rolled_back", Limits(cpu_s=30, wall_s=60, memory_mb=4000, pids=32)),
    Attack("daemon that keeps stdout open", DAEMON, "ok", output="done\n"),
    Attack("zombies", "import os\nfor _ in range(20):\n    if not os.fork(): os._exit(0)", "ok"),
    Attack("waiting for children that are not there", "import os; os.wait()", "error", output="ChildProcessError"),
    Attack("a child runs to the end of the cell", CHILD_RUNS_ON, "ok", output="child\nparent\n"),
    fatal(
        "os._exit",
        "print('a'); import os; os._exit(3)",
        exit_code=3,
        output="a\nkilled: the interpreter exited with code 3",
    ),
    fatal("abort", "import os; os.abort()", signal=6, output="died by SIGABRT"),
    fatal("segmentation fault", "import ctypes; ctypes.string_at(0)", signal=11, output="died by SIGSEGV"),
    fatal("stack overflow in C", DEEP_STACK, signal=11),
    fatal("kills its process group", "import os; os.kill(0, 9)", signal=9, output="died by SIGKILL"),
    fatal("becomes another program", "import os; os.execv('/bin/echo', ['echo', 'hi'])", exit_code=0, output="hi\n"),
    fatal("closes all descriptors", "import os; os.closerange(0, 256)"),
    Attack("writes to all descriptors", JUNK_TO_DESCRIPTORS, "killed", "protocol", "rolled_back"),
    fatal("breaks the builtins", "import builtins; builtins.len = builtins.getattr = None"),
    Attack(
        "closes its output",
        "import os, sys; print('a'); sys.stdout.close(); os.close(1); os.close(2)",
        "ok",
        output="a\n",
    ),
    Attack("replaces its output", "import sys; sys.stdout = sys.stderr = None; 5", "ok", output="5\n"),
    Attack("invalid UTF-8", "import os; _ = os.write(1, b'a\\xff\\xfe\\x00b')", "ok", output="a\ufffd\ufffd\ufffdb"),
    Attack("lone surrogate", "print('\\ud800')", "ok", output="\\ud800\n"),
    Attack("looks like a message", "import os; _ = os.write(1, b'\\0\\0\\0\\2{}')", "ok", output="{}"),
    Attack("broken repr", "class A:\n    def __repr__(self): return 5\nA()", "error", output="TypeError"),
    Attack("hangs at exit", "import atexit, time; _ = atexit.register(time.sleep, 60)", "ok"),
    Attack("ignores its children", "import signal; _ = signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "ok"),
    Attack("large file", "open('f', 'wb').write(bytes(20 << 20))", "error", output="File too large"),
    Attack("sparse file", "open('f', 'wb').truncate(1 << 40)", "error", output="File too large"),
    Attack("many open files", "files = [open('/dev/null') for _ in range(500)]", "error", output="Too many open files"),
    Attack("deep folders", "import os\nfor _ in range(1200):\n    os.mkdir('d'); os.chdir('d')", "ok"),
    Attack("unreadable folder", "import os; os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0)", "ok"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_a_result_and_leaves_nothing(open_session: OpenSession, attack: Attack) -> None:
    session = open_session(attack.limits)
    folder = folder_of(session)
    session.run("canary = 41")
    result = session.run(attack.code)
    check(result, attack)
    assert len(processes_in(folder)) == 1, "after a cell nothing but the interpreter lives"
    assert session.run("canary + 1").output == "42\n"
    assert session.run("import sys; print('out'); print('err', file=sys.stderr)").output == "out\nerr\n"
    session.close()
    assert processes_in(folder) == []
    assert not folder.exists()


def check(result: ExecResult, attack: Attack) -> None:
    assert (result.status, result.reason, result.state) == (attack.status, attack.reason, attack.state), result
    assert attack.output in result.output
    assert len(result.output.encode()) <= attack.limits.output_bytes
    if attack.exit_code is not None or attack.signal is not None:
        assert (result.exit_code, result.signal) == (attack.exit_code, attack.signal)


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


def test_an_interpreter_that_ends_between_two_cells_is_reported_and_replaced(open_session: OpenSession) -> None:
    session = open_session(BUSY)
    session.run("x = 1\nimport os, threading\nthreading.Timer(0.1, os._exit, [0]).start()")
    folder = folder_of(open_session(BUSY))  # another session does not care
    assert folder.exists()
    for _ in range(200):
        result = session.run("import time; time.sleep(0.02)")
        if result.status != "ok":
            break
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
    supervisor = runner_of(session)

    def peak_kb() -> int:
        with open(f"/proc/{supervisor}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    before = peak_kb()
    assert session.run("for _ in range(1000): print('x' * 10 ** 5)").output_bytes == 1000 * 100_001  # 100 MB
    assert peak_kb() - before < 5_000
