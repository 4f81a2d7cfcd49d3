"""Latency, throughput and memory of sandbox sessions, per back end, in one run.

    python benchmarks/sandbox.py
    python benchmarks/sandbox.py --sandbox bubblewrap --sessions 1 8
    python benchmarks/sandbox.py --sandbox docker bubblewrap --sessions 64 --check

Needs a Docker engine with the image of `agentrl sandbox build-image`, and bubblewrap; a back end that cannot be used is
left out, with the reason. Prints a Markdown table. Times are medians in milliseconds. With `--check` it fails unless
every back end that isolates meets the targets, with a line for each that was missed or not measured.
"""

import argparse
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agentrl.sandbox import Limits, RunnerSandbox, SandboxUnavailableError, WarmPool, open_sandbox
from agentrl.sandbox.session import RunnerSession

SNIPPET = "sum(i * i for i in range(100))"
LIMITS = Limits(cpu_s=60, wall_s=600)
BALLAST_MB = 100
POOL_SIZE = 8

START = "start of a session, ms"
POOLED = "session from a warm pool, ms"
CALL = "call in a warm session, ms"
FORK = f"session.fork() with {BALLAST_MB} MB, ms"
BY_EXEC = "the same by docker exec, ms"
RATIO = "docker exec / call"
MEMORY = "memory of {} sessions, MiB"

TARGETS = {CALL: 5.0, FORK: 50.0, POOLED: 10.0, MEMORY.format(64): 1024.0}
"""Figure to the most that it may be."""
LEAST_RATIO = 20.0


def median_ms(action: Callable[[], object], repetitions: int) -> float:
    """Median time of an action."""
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


@contextmanager
def opened(sandbox: RunnerSandbox, number: int = 1) -> Iterator[list[RunnerSession]]:
    """So many sessions, which are closed afterwards."""
    with ExitStack() as stack:
        sessions = []
        for _ in range(number):
            sessions.append(sandbox.open(limits=LIMITS))
            stack.callback(sessions[-1].close)
        yield sessions


def time_start(sandbox: RunnerSandbox) -> float:
    """From nothing to a session that is ready."""
    return median_ms(lambda: sandbox.open(limits=LIMITS).close(), 5)


def time_call(sandbox: RunnerSandbox) -> float:
    """A call in a session that has run one before."""
    with opened(sandbox) as (session,):
        session.run(SNIPPET)
        return median_ms(lambda: session.run(SNIPPET), 200)


def time_fork(sandbox: RunnerSandbox) -> float:
    """A fork of a session that holds an array of 100 MB."""
    with opened(sandbox) as (session,), ExitStack() as stack:
        session.run(f"ballast = bytearray({BALLAST_MB} << 20)")
        return median_ms(lambda: stack.callback(session.fork().close), 7)


def time_pooled(sandbox: RunnerSandbox) -> float:
    """A session from a pool in which one is ready."""
    pool = WarmPool(sandbox, num_ready=POOL_SIZE)
    try:
        pool.open(limits=LIMITS).close()
        while pool.count_ready(LIMITS) < POOL_SIZE:
            time.sleep(0.01)
        with ExitStack() as stack:
            return median_ms(lambda: stack.callback(pool.open(limits=LIMITS).close), POOL_SIZE - 1)
    finally:
        pool.close()


def calls_per_second(sessions: Sequence[RunnerSession], seconds: float = 3.0) -> float:
    """Of all sessions together, each used by a thread of its own."""
    counts = [0] * len(sessions)
    ends_at = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < ends_at:
            assert sessions[number].run(SNIPPET).output == "328350\n"
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sessions))]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - begun)


def memory_mb(pids: set[int]) -> float:
    """Memory of processes, shared pages divided among those that share them."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended
            continue
        total_kb += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total_kb / 1024


def processes() -> set[int]:
    """All process ids."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def time_docker_exec(image: str = "agentrl-sandbox") -> float:
    """The same snippet by `docker exec` in a warm container: what a tool without a runner does."""
    import docker

    client = docker.from_env()
    container = client.containers.create(image, ["python3", "-c", "import time; time.sleep(600)"], network_mode="none")
    try:
        container.start()
        command = ["python3", "-c", f"print({SNIPPET})"]
        assert container.exec_run(command).output == b"328350\n"
        return median_ms(lambda: container.exec_run(command), 20)
    finally:
        container.remove(force=True)


def measure(sandbox: RunnerSandbox, numbers: Sequence[int]) -> dict[str, float]:
    """All figures of a back end."""
    figures = {
        START: time_start(sandbox),
        POOLED: time_pooled(sandbox),
        CALL: time_call(sandbox),
        FORK: time_fork(sandbox),
    }
    for number in numbers:
        before = processes()
        with opened(sandbox, number) as sessions:
            figures[f"calls per second, {number} sessions"] = calls_per_second(sessions)
            figures[MEMORY.format(number)] = memory_mb(processes() - before)
    return figures


def missed_targets(name: str, figures: Mapping[str, float]) -> list[str]:
    """A line for each target that a back end misses; a figure that was not measured is nan."""
    missed = []
    for row, most in TARGETS.items():
        value = figures.get(row, math.nan)
        if not value <= most:
            missed.append(f"{name}: {row}: {value:.1f}, at most {most:g} is the target")
    ratio = figures.get(RATIO, math.nan)
    if name == "docker" and not ratio >= LEAST_RATIO:
        missed.append(f"{name}: {RATIO}: {ratio:.1f}, at least {LEAST_RATIO:g} is the target")
    return missed


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandbox", nargs="+", default=["docker", "bubblewrap", "unsafe_subprocess"])
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    arguments = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    for name in arguments.sandbox:
        sandbox: Any = open_sandbox(name)
        try:
            sandbox.check()
        except SandboxUnavailableError as error:
            print(f"{name} is left out: {error}")
            continue
        columns[name] = measure(sandbox, arguments.sessions)
        if name == "docker":
            by_exec = time_docker_exec()
            columns[name] |= {BY_EXEC: by_exec, RATIO: by_exec / columns[name][CALL]}
    print(f"| {os.cpu_count()} cores | {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for row in max(columns.values(), key=len, default={}):
        cells = [f"{figures[row]:.1f}" if row in figures else "" for figures in columns.values()]
        print(f"| {row} | {' | '.join(cells)} |")
    if arguments.check:
        isolating = [name for name in arguments.sandbox if name != "unsafe_subprocess"]
        missed = [line for name in isolating for line in missed_targets(name, columns.get(name, {}))]
        raise SystemExit("\n".join(missed) or None)


if __name__ == "__main__":
    main()
