"""The stream to a container and its end, with small programs in the runner's place."""

import os
import time

import pytest
from docker_checks import containers_of, receive_exactly, start_program
from other_trainers import wait_until

from agentrl.sandbox import Limits
from agentrl.sandbox.docker.sandbox import DockerSandbox

ECHO = """
import os
def main():
    while data := os.read(0, 65536):
        while data:
            data = data[os.write(1, data):]
"""
LIMITS = Limits(memory_mb=32, disk_mb=8, pids=5)
MEBIBYTE = 1 << 20


def test_bytes_come_through_unchanged_both_ways(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, ECHO)
    blob = os.urandom(150_000)  # less than pipes and sockets hold: nobody reads while this is sent
    link.send(blob, 60)
    assert receive_exactly(link, len(blob)) == blob
    link.send(b"abc", 60)
    assert [link.receive(2, 60), link.receive(2, 60)] == [b"ab", b"c"]
    link.close()


def test_closing_removes_the_container_and_wakes_whoever_waits(docker_sandbox: DockerSandbox) -> None:
    before = containers_of()
    link = start_program(docker_sandbox, "import time\ndef main(): time.sleep(1000)")
    assert len(containers_of().keys() - before.keys()) == 1
    link.close()
    assert containers_of().keys() <= before.keys()
    with pytest.raises(OSError, match=r"descriptor|closed"):
        link.receive(1, 60)
    link.close()


def test_a_hang_up_ends_a_program_that_reads(docker_sandbox: DockerSandbox) -> None:
    before = containers_of()
    link = start_program(docker_sandbox, ECHO)
    link.abandon()  # as the kernel does for a trainer that was killed
    assert wait_until(lambda: containers_of().keys() <= before.keys())


def test_a_forked_copy_abandons_without_harm(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, ECHO)
    pid = os.fork()
    if not pid:
        link.abandon()
        os._exit(0)
    os.waitpid(pid, 0)
    link.send(b"still here", 60)
    assert receive_exactly(link, 10) == b"still here"
    link.close()


def test_silence_is_a_timeout_however_much_is_written_to_standard_error(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, "import os\ndef main():\n  while True: os.write(2, b'noise\\n')")

    def stays_silent() -> bool:
        with pytest.raises(TimeoutError):
            link.receive(1, 0.3)
        return link.last_words() != ""  # by then it has begun

    assert wait_until(stays_silent)
    with pytest.raises(TimeoutError):
        link.send(bytes(50 * MEBIBYTE), 0.3)  # it does not read either
    assert link.last_words() in ("n", "no", "noi", "nois", "noise")  # the last piece ends anywhere
    link.close()


def test_the_last_words_are_the_last_line_of_standard_error(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, "def main(): raise ValueError('no room')")
    assert receive_exactly(link, 1) == b""
    assert link.last_words() == "ValueError: no room"
    assert not link.ran_out_of_memory()
    link.close()


def test_a_program_killed_for_its_memory_is_told_from_one_that_ended(docker_sandbox: DockerSandbox) -> None:
    greedy = start_program(
        docker_sandbox, "def main():\n  hoard = []\n  while True: hoard.append(bytearray(1 << 20))", LIMITS
    )
    assert receive_exactly(greedy, 1) == b""
    assert greedy.ran_out_of_memory()
    greedy.close()
    # Same exit status, no lack of memory.
    liar = start_program(docker_sandbox, "import os\ndef main(): os._exit(137)", LIMITS)
    assert receive_exactly(liar, 1) == b""
    assert not liar.ran_out_of_memory()
    liar.close()


def test_a_child_killed_for_its_memory_long_ago_is_not_why_a_program_ends(docker_sandbox: DockerSandbox) -> None:
    child_dies = """
import os
def main():
    pid = os.fork()
    if not pid:
        with open("/proc/self/oom_score_adj", "w") as file: file.write("1000")
        hoard = []
        while True: hoard.append(bytearray(1 << 20))
    status = os.waitpid(pid, 0)[1]
    os.write(1, b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)
"""
    link = start_program(docker_sandbox, child_dies, LIMITS)
    assert receive_exactly(link, 100) == b"-9"
    assert not link.ran_out_of_memory()
    link.close()


TELL_LIMITS = """
import os
def read(*paths):
    for path in paths:
        if os.path.exists(path):
            with open(path) as file: return file.read().strip()
def main():
    while os.read(0, 1):
        memory = read("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
        with_swap = read("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
        if with_swap is None:
            with_swap = int(memory) + int(read("/sys/fs/cgroup/memory.swap.max"))
        tasks = read("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max")
        os.write(1, f"{memory} {with_swap} {tasks}".ljust(100).encode())
"""


def test_limits_grow_with_sessions(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, TELL_LIMITS, LIMITS)

    def limits() -> list[int]:
        link.send(b"?", 60)
        return [int(number) for number in receive_exactly(link, 100).split()]

    # Memory: 64 MiB for the runner, 8 of files, 32 for each session and the checkpoint: 64 + 8 + 2 * 32 = 136.
    # Tasks: 16 for the runner, 5 for each session and the checkpoint: 16 + 2 * 5 = 26.
    assert limits() == [136 * MEBIBYTE, 136 * MEBIBYTE, 26]
    link.resize(1)
    assert limits() == [136 * MEBIBYTE, 136 * MEBIBYTE, 26]
    link.resize(3)  # room is made for four: 64 + 8 + 5 * 32 = 232, 16 + 5 * 5 = 41
    assert limits() == [232 * MEBIBYTE, 232 * MEBIBYTE, 41]
    link.resize(4)
    link.resize(2)
    assert limits() == [232 * MEBIBYTE, 232 * MEBIBYTE, 41]
    link.close()
    with pytest.raises(OSError, match="status 404"):
        link.resize(5)


def test_nothing_is_left_open(docker_sandbox: DockerSandbox) -> None:
    def descriptors() -> int:
        docker_sandbox._engine.client().close()  # idle connections, of which it keeps a bounded number
        return len(os.listdir("/proc/self/fd"))

    containers, before = containers_of(), descriptors()
    for _ in range(3):
        start_program(docker_sandbox, ECHO).close()
    assert descriptors() <= before
    assert containers_of().keys() <= containers.keys()


def test_a_busy_fork_of_the_trainer_uses_connections_of_its_own(docker_sandbox: DockerSandbox) -> None:
    link = start_program(docker_sandbox, ECHO)
    pid = os.fork()
    if not pid:
        try:
            twin = start_program(docker_sandbox, ECHO)
            twin.send(b"x", 60)
            os._exit(0 if twin.receive(1, 60) == b"x" else 1)
        finally:
            os._exit(2)
    started = time.monotonic()
    while time.monotonic() - started < 0.3:
        assert len(containers_of()) >= 1  # both talk to the engine at once
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    link.send(b"y", 60)
    assert link.receive(1, 60) == b"y"
    link.close()
