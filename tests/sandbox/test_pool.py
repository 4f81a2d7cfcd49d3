"""Sandboxes that are ready, and sandboxes that programs share one after the other."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox import Limits, SandboxFileError, StatelessSandbox, UnsafeSubprocess, WarmPool, open_sandbox
from agentrl.sandbox.link import Started

LIMITS = Limits(cpu_s=60, wall_s=120)


class Counting(UnsafeSubprocess):
    """Knows how many sandboxes it has started, and fails when told to."""

    def __init__(self) -> None:
        self.num_started = 0
        self.num_failures = 0
        self._lock = threading.Lock()

    def start(self, limits: Limits) -> Started:
        with self._lock:
            if self.num_failures:
                self.num_failures -= 1
                raise InfrastructureError("no luck")
            self.num_started += 1
        return super().start(limits)


@pytest.fixture
def back_end() -> Counting:
    return Counting()


@pytest.fixture
def pool(back_end: Counting) -> Iterator[WarmPool]:
    pool = WarmPool(back_end, num_ready=2)
    yield pool
    pool.close()


@pytest.fixture
def shared(back_end: Counting) -> Iterator[StatelessSandbox]:
    sandbox = StatelessSandbox(back_end)
    yield sandbox
    sandbox.close()


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pool_has_sandboxes_ready_after_the_first_was_asked_for(back_end: Counting, pool: WarmPool) -> None:
    first = pool.open(limits=LIMITS)
    wait_until(lambda: pool.count_ready(LIMITS) == 2)
    assert back_end.num_started == 3
    sessions = [pool.open(limits=LIMITS) for _ in range(2)]
    wait_until(lambda: pool.count_ready(LIMITS) == 2)
    assert back_end.num_started == 5
    for number, session in enumerate([first, *sessions]):
        assert session.run(f"x = {number}; x").output == f"{number}\n"
        session.close()
    assert back_end.num_started == 5, "an ended session gives nothing back"


def test_a_sandbox_is_never_handed_out_twice(pool: WarmPool) -> None:
    processes = set()
    for _ in range(4):
        session = pool.open(limits=LIMITS)
        output = session.run("import os, glob; canary = 1; open('canary', 'w').close(); os.getpid()").output
        processes.add(output)
        session.close()
    assert len(processes) == 4


def test_other_limits_are_another_sandbox(pool: WarmPool) -> None:
    pool.open(limits=LIMITS).close()
    wait_until(lambda: pool.count_ready(LIMITS) == 2)
    result = pool.open(limits=Limits(cpu_s=0.3, wall_s=60)).run("while True: pass")
    assert result.reason == "cpu"


def test_a_failing_start_is_tried_again(back_end: Counting, pool: WarmPool) -> None:
    back_end.num_failures = 2
    assert pool.open(limits=LIMITS).run("1").output == "1\n"


def test_a_back_end_that_keeps_failing_says_so(back_end: Counting, pool: WarmPool) -> None:
    back_end.num_failures = 10**6
    with pytest.raises(InfrastructureError, match="no luck"):
        pool.open(limits=LIMITS)


def test_dead_sandboxes_are_passed_over(pool: WarmPool) -> None:
    pool.open(limits=LIMITS).close()
    wait_until(lambda: pool.count_ready(LIMITS) == 2)
    for home in pool._ready[LIMITS]:
        home._link._process.kill()  # type: ignore[attr-defined]
    assert pool.open(limits=LIMITS).run("1").output == "1\n"


def test_a_closed_pool_keeps_nothing(pool: WarmPool) -> None:
    pool.open(limits=LIMITS).close()
    pool.close()
    wait_until(lambda: pool._num_starting[LIMITS] == 0)
    assert pool.count_ready(LIMITS) == 0


def test_a_pool_that_got_no_thread_fills_up_later(pool: WarmPool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "agentrl-sandbox-pool":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pool.open(limits=LIMITS) as session:
            assert session.run("1").output == "1\n"
    assert pool.count_ready(LIMITS) == 0
    pool.open(limits=LIMITS).close()
    wait_until(lambda: pool.count_ready(LIMITS) == 2)


def test_a_forked_copy_of_the_host_begins_with_an_empty_pool(pool: WarmPool) -> None:
    session = pool.open(limits=LIMITS)
    wait_until(lambda: pool.count_ready(LIMITS) == 2)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_fd, str(pool.count_ready(LIMITS)).encode())
        os._exit(0)
    os.waitpid(pid, 0)  # that one alone: sandboxes are children, too
    assert os.read(read_fd, 10) == b"0"
    os.close(read_fd)
    os.close(write_fd)
    assert session.run("1").output == "1\n"
    assert pool.open(limits=LIMITS).run("2").output == "2\n"


def test_shared_sandboxes_keep_nothing_of_a_program(back_end: Counting, shared: StatelessSandbox) -> None:
    session = shared.open(limits=LIMITS, files={"data": b"1"})
    leave = "import os, time; x = 1; os.remove('data'); open('new', 'w').close()\nif not os.fork(): time.sleep(600)"
    assert session.run(leave).status == "ok"
    look = "import os; 'x' in globals(), os.listdir(), [p for p in os.listdir('/proc') if p.isdigit()]"
    found = session.run(look)
    assert found.output.startswith("(False, ['data'], ")
    assert found.state == "reset"
    assert back_end.num_started == 1


def test_a_program_that_is_killed_says_why_and_the_next_runs(back_end: Counting, shared: StatelessSandbox) -> None:
    session = shared.open(limits=Limits(cpu_s=0.3, wall_s=60))
    result = session.run("print('so far')\nwhile True: pass")
    assert (result.status, result.reason, result.state) == ("timeout", "cpu", "reset")
    assert result.output == "so far\nkilled: 0.3 s CPU limit\n"
    assert session.run("2").output == "2\n"
    assert back_end.num_started == 1


def test_many_programs_at_a_time_answer_each_its_own(back_end: Counting, shared: StatelessSandbox) -> None:
    outputs: dict[int, list[str]] = {}

    def work(number: int) -> None:
        session = shared.open(limits=LIMITS)
        outputs[number] = [session.run(f"{number} * {i}").output for i in range(5)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {n: [f"{n * i}\n" for i in range(5)] for n in range(8)}
    assert back_end.num_started <= shared._turns.num


def test_a_dead_shared_sandbox_is_replaced(back_end: Counting, shared: StatelessSandbox) -> None:
    session = shared.open(limits=LIMITS)
    session.run("1")
    shared._idle[LIMITS][0]._link._process.kill()  # type: ignore[attr-defined]
    assert session.run("2").output == "2\n"
    assert back_end.num_started == 2


def test_files_of_programs_are_not_kept(shared: StatelessSandbox) -> None:
    session = shared.open(limits=LIMITS)
    session.write("a", b"1")
    session.run("open('b', 'w').close()")
    assert session.list_files() == ["a"]
    with pytest.raises(SandboxFileError, match="no cell's files are kept"):
        session.read("b", 10)


def test_the_catalog_makes_both_and_refuses_nonsense() -> None:
    pool = open_sandbox("unsafe_subprocess", ready=1)
    assert isinstance(pool, WarmPool)
    shared = open_sandbox("unsafe_subprocess", share="stateless")
    assert isinstance(shared, StatelessSandbox)
    assert (pool.keeps_state, shared.keeps_state) == (True, False)
    with pytest.raises(ConfigError, match="must be 'nothing' or 'stateless', got 'all'"):
        open_sandbox("unsafe_subprocess", share="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave out ready"):
        open_sandbox("unsafe_subprocess", share="stateless", ready=1)
    with pytest.raises(ConfigError, match="at least one"):
        open_sandbox("unsafe_subprocess", ready=-1)
