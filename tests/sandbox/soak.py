"""Many executions over many sessions with attacks among them: nothing is lost, and nothing is left.

    python tests/sandbox/soak.py --sandbox bubblewrap --executions 5000 --sessions 32

`test_soak.py` runs a short form.
"""

import argparse
import gc
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.sandbox import Limits, RunnerSandbox, Session, open_sandbox
from agentrl.sandbox.attacks.attack import Attack
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.surroundings import Surroundings
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.linux.cgroups import owned_groups
from agentrl.sandbox.owner import owner_id

LIMITS = Limits(cpu_s=0.5, wall_s=20, memory_mb=200, file_mb=8, disk_mb=32, inodes=2000, pids=32, open_files=64)
ATTACK_SHARE = 0.1
EXECUTIONS_PER_SESSION = 40
SETTLE_S = 30.0
LONE = tuple(attack for attack in ATTACKS if not (attack.setup or attack.forgets or attack.aftershock))
"""Attacks that are one cell and leave the session's names alone."""


@dataclass
class Report:
    """What a soak has found."""

    num_executions: int = 0
    num_attacks: int = 0
    num_sessions: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def soak(sandbox: RunnerSandbox, *, num_executions: int, num_sessions: int, seed: int = 0) -> Report:
    """Runs cells in so many sessions at a time; each session counts its cells in a variable that must stay right.

    Args:
        sandbox: The back end; it must isolate.
        num_executions: Cells altogether; one in ten is an attack.
        num_sessions: Sessions at a time, each in a thread of its own, replaced after 40 cells.
        seed: Of the choice of attacks.
    """
    report = Report()
    open_many(sandbox, num_sessions)
    report.before = footprint(sandbox)
    lock = threading.Lock()
    left = iter(range(num_executions))

    def work(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        while True:
            numbers = []
            with lock:
                numbers = [n for _, n in zip(range(EXECUTIONS_PER_SESSION), left, strict=False)]
            if not numbers:
                return
            try:
                _run_session(sandbox, len(numbers), rng, values, report, lock)
            except Exception as error:
                with lock:
                    report.faults.append(f"{type(error).__name__}: {error}")

    begun = time.monotonic()
    with Surroundings() as surroundings:
        values = {**surroundings.values, "MARK": "soak"}
        threads = [threading.Thread(target=work, args=(number,)) for number in range(num_sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if damage := surroundings.damage():
            report.faults.append(f"on the host an attack {damage}")
    report.seconds = time.monotonic() - begun
    report.after = _settled(report.before, sandbox)
    return report


def open_many(sandbox: RunnerSandbox, num_sessions: int) -> None:
    """Opens so many sessions at a time, so that what stays for good (threads, the janitor) is there already."""
    sessions: list[Session] = []
    threads = [
        threading.Thread(target=lambda: sessions.append(sandbox.open(limits=LIMITS))) for _ in range(num_sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    closing = [threading.Thread(target=session.close) for session in sessions]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()


def _run_session(
    sandbox: RunnerSandbox,
    num_cells: int,
    rng: random.Random,
    values: dict[str, Any],
    report: Report,
    lock: threading.Lock,
) -> None:
    with sandbox.open(limits=LIMITS) as session:
        count = 0
        session.run("soak_count = 0")
        for _ in range(num_cells):
            if rng.random() < ATTACK_SHARE:
                count = _attack(session, rng.choice(LONE), values, count, report, lock)
            else:
                count = _count(session, count, report, lock)
    with lock:
        report.num_sessions += 1


def _count(session: Session, count: int, report: Report, lock: threading.Lock) -> int:
    result = session.run("soak_count += 1; print(soak_count)")
    with lock:
        report.num_executions += 1
        report.statuses[result.status] += 1
        if result.output != f"{count + 1}\n":
            report.faults.append(f"the count is {result.output!r} instead of {count + 1}")
    return count + 1


def _attack(
    session: Session, attack: Attack, values: dict[str, Any], count: int, report: Report, lock: threading.Lock
) -> int:
    result = session.run(attack.code_for(values))
    with lock:
        report.num_executions += 1
        report.num_attacks += 1
        report.statuses[result.status] += 1
        if "LEAKED" in result.output:
            report.faults.append(f"attack {attack.id} got out: {result.output[:200]}")
    if result.state == "reset":
        session.run("soak_count = 0")
        return 0
    return count


def footprint(sandbox: RunnerSandbox | None = None) -> dict[str, int]:
    """What this process and its sandboxes hold at the moment, but for connections to an engine that wait for use."""
    gc.collect()  # a client that finds no engine is left to the collector, with its connection
    me = Path("/proc/self")
    if isinstance(sandbox, DockerSandbox):
        sandbox._engine.client().close()  # those only: the client connects again when it is asked for something
    return {
        "processes below this one": len(_below(os.getpid())),
        "threads": threading.active_count(),
        "descriptors": len(list((me / "fd").iterdir())),
        "containers": len(_containers()),
        "cgroups": sum(owner == owner_id() for owner, _ in owned_groups()),
        "temporary files": sum(owner_id() in path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "memory, MiB": int((me / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


def grown(report: Report) -> dict[str, tuple[int, int]]:
    """What there is more of at the end; memory may grow by what Python's allocator keeps."""
    slack = {"memory, MiB": 60}
    return {
        name: (before, report.after[name])
        for name, before in report.before.items()
        if report.after[name] > before + slack.get(name, 0)
    }


def _settled(before: dict[str, int], sandbox: RunnerSandbox) -> dict[str, int]:
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = footprint(sandbox)
        if time.monotonic() > deadline or all(after[name] <= before[name] for name in before if "MiB" not in name):
            return after
        time.sleep(0.2)


def _below(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
        except OSError:
            continue
    return found


def _containers() -> list[Any]:
    try:
        import docker

        label = f"agentrl.owner={owner_id()}"
        client = docker.from_env()
        try:
            return list(client.api.containers(all=True, filters={"label": label}))
        finally:
            client.close()
    except Exception:  # no engine, no containers
        return []


def main() -> None:
    """Runs a soak and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandbox", default="bubblewrap")
    parser.add_argument("--executions", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sandbox = open_sandbox(arguments.sandbox)
    assert isinstance(sandbox, RunnerSandbox)
    report = soak(sandbox, num_executions=arguments.executions, num_sessions=arguments.sessions, seed=arguments.seed)
    print(json.dumps({**vars(report), "grown": grown(report)}, indent=2))
    if report.num_executions != arguments.executions:
        print(f"{report.num_executions} executions happened instead of {arguments.executions}")
    raise SystemExit(bool(report.faults or grown(report) or report.num_executions != arguments.executions))


if __name__ == "__main__":
    main()
