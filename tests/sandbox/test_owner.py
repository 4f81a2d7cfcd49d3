"""Owner ids: alive while the process lives, dead after it, silent about processes that cannot be seen from here."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.sandbox import owner
from agentrl.sandbox.owner import is_dead, owner_id

PRINT_OWNER = "from agentrl.sandbox.owner import owner_id; print(owner_id(), flush=True); input()"


@pytest.fixture
def other() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PRINT_OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _id_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_is_alive_until_it_is_killed_and_dead_while_it_is_still_a_zombie(
    other: "subprocess.Popen[str]",
) -> None:
    with other:
        name = _id_of(other)
        assert not is_dead(name)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and left unreaped
        assert Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        assert is_dead(name)
    assert is_dead(name)


def test_a_stopped_process_is_alive(other: "subprocess.Popen[str]") -> None:
    with other:
        name = _id_of(other)
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        assert not is_dead(name)
        other.kill()


def test_the_process_id_given_to_another_process_is_not_the_owner() -> None:
    host, boot, namespace, pid, start = owner_id().split(".")
    assert is_dead(".".join((host, boot, namespace, pid, str(int(start) - 1))))


def test_a_forked_child_is_another_owner() -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write_fd, owner_id().encode())
        os._exit(0)
    os.close(write_fd)
    with open(read_fd) as pipe:
        child = pipe.read()
    os.waitpid(pid, 0)
    assert child.split(".")[3] == str(pid)
    assert is_dead(child)
    assert not is_dead(owner_id())


def test_after_a_restart_of_the_machine_all_its_owners_are_dead() -> None:
    host, boot, *rest = owner_id().split(".")
    assert is_dead(".".join((host, boot[::-1] + "0", *rest)))


@pytest.mark.parametrize("position", [0, 2])  # the machine, the pid namespace
def test_nothing_is_known_of_processes_elsewhere(position: int) -> None:
    parts = owner_id().split(".")
    parts[position] += "0"
    parts[4] = "1"  # would be dead, were it here
    assert not is_dead(".".join(parts))


@pytest.mark.parametrize("text", ["", "someone else's label", "1.2.3", "a.b.c.x.d", "a.b.c.-1.d", "....."])
def test_labels_of_others_are_left_alone(text: str) -> None:
    assert not is_dead(text)


def test_ids_are_safe_in_labels_and_file_names() -> None:
    assert re.fullmatch(r"[A-Za-z0-9.-]{1,120}", owner_id())


def test_a_system_without_proc_asks_ps() -> None:
    start = owner._start_time_by_ps(os.getpid())
    assert start
    assert re.fullmatch(r"[A-Za-z0-9-]+", start)
    assert owner._start_time_by_ps(os.getpid()) == start
    assert owner._start_time_by_ps(2**22 + 1) is None  # beyond the largest process id
