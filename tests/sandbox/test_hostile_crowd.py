"""Many sessions at once, a quarter of them hostile: the others get their answers (case 92)."""

import itertools
import threading
from collections.abc import Callable

import pytest
from engines import require_bubblewrap
from soak import LONE

from agentrl.sandbox import Limits, RunnerSandbox
from agentrl.sandbox.attacks import Surroundings
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap

PEACEFUL = Limits(cpu_s=20, wall_s=120)
HOSTILE = Limits(cpu_s=0.3, wall_s=3, memory_mb=200, file_mb=8, disk_mb=32, inodes=2000, pids=32, open_files=64)
GROUPS = ("memory", "process", "output", "exit", "fs", "kernel", "state")
CELLS = 8


@pytest.mark.parametrize("num_sessions", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_the_others_get_their_answers(num_sessions: int) -> None:
    require_bubblewrap()
    crowd = Crowd(Bubblewrap(), num_sessions)
    crowd.run()
    # Cell k of a session adds k to its number: n, n + 1, n + 3, n + 6, ...
    sums = list(itertools.accumulate(range(CELLS)))
    assert crowd.answers == {number: [f"{number + total}\n" for total in sums] for number in crowd.peaceful}
    assert crowd.faults == []
    assert min(crowd.num_attacks.values()) >= 1


class Crowd:
    """Every fourth session attacks until the others have done their work; each has a thread of its own."""

    def __init__(self, sandbox: RunnerSandbox, num_sessions: int) -> None:
        self._sandbox = sandbox
        self._hostile = range(0, num_sessions, 4)
        self.peaceful = [number for number in range(num_sessions) if number % 4]
        self._all_open = threading.Barrier(num_sessions)
        self._num_at_work = len(self.peaceful)
        self._lock = threading.Lock()
        self.answers: dict[int, list[str]] = {}
        self.num_attacks: dict[int, int] = dict.fromkeys(self._hostile, 0)
        self.faults: list[str] = []

    def run(self) -> None:
        with Surroundings() as surroundings:
            self._values = {**surroundings.values, "MARK": "crowd"}
            work = {**dict.fromkeys(self._hostile, self._attack), **dict.fromkeys(self.peaceful, self._add)}
            threads = [threading.Thread(target=self._guarded, args=(work[n], n)) for n in sorted(work)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if damage := surroundings.damage():
                self.faults.append(f"on the host an attack {damage}")

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except Exception as error:  # also of the others, for whom this one waits no more
            self._all_open.abort()
            self.faults.append(f"session {number}: {type(error).__name__}: {error}")
        finally:
            if number in self.peaceful:
                with self._lock:
                    self._num_at_work -= 1

    def _add(self, number: int) -> None:
        with self._sandbox.open(limits=PEACEFUL) as session:
            session.run(f"total = {number}")
            self._all_open.wait()
            self.answers[number] = [session.run(f"total += {k}; total").output for k in range(CELLS)]

    def _attack(self, number: int) -> None:
        mine = [attack for attack in LONE if attack.group in GROUPS][number // 4 :: len(self._hostile)]
        attacks = itertools.cycle(mine)
        with self._sandbox.open(limits=HOSTILE) as session:
            self._all_open.wait()
            while self._num_at_work or not self.num_attacks[number]:
                attack = next(attacks)
                output = session.run(attack.code_for(self._values)).output
                self.num_attacks[number] += 1
                if "LEAKED" in output:
                    self.faults.append(f"attack {attack.id} got out: {output[:200]}")
