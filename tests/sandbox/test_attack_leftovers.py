"""Processes that an attack leaves are found by a name that they have taken, and given time to go."""

import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentrl.sandbox.attacks.surroundings import leftovers

TAKE_NAME = "import ctypes, sys\nctypes.CDLL(None).prctl(15, b'{}', 0, 0, 0)\nprint('named', flush=True)\n"


@pytest.mark.usefixtures("one_look")
def test_processes_that_are_left_are_found_by_their_name() -> None:
    mark = secrets.token_hex(4)
    code = TAKE_NAME.format(f"{mark}) Z 1") + "sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"named\n"
    assert leftovers(mark) == [child.pid]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert leftovers(mark) == [], "a zombie is no living process"
    child.communicate()


@pytest.mark.usefixtures("one_look")
def test_a_process_whose_first_thread_has_ended_is_alive() -> None:
    mark = secrets.token_hex(4)
    code = TAKE_NAME.format(mark) + (
        "import threading\nthreading.Thread(target=sys.stdin.read).start()\nctypes.CDLL(None).pthread_exit(0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"named\n"
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert leftovers(mark) == [child.pid]
    child.kill()
    child.communicate()


def test_a_process_that_was_killed_has_time_to_go() -> None:
    mark = secrets.token_hex(4)
    code = TAKE_NAME.format(mark) + "sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"named\n"
        end = threading.Timer(0.2, child.kill)
        end.start()
        assert leftovers(mark) == []
        end.join()
