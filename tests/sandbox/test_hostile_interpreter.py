"""A cell can walk to the interpreter that runs it and make it say anything: none of it brings down the sandbox.

Whatever does is an infrastructure failure, and masks an episode that is only lost.
"""

import json
import os
import struct
import time

import pytest
from session_checks import OpenSession, runner_of

from agentrl.errors import ForkError
from agentrl.sandbox import Limits
from agentrl.sandbox.session import RunnerSession

REACH = """
import sys
frame = sys._getframe()
while 'self' not in frame.f_locals or type(frame.f_locals['self']).__name__ != 'Interpreter': frame = frame.f_back
interpreter = frame.f_locals['self']
channel = interpreter._channel
"""
SEND = "import socket, struct\nchannel._sock.sendall(struct.pack('>I', len(text)) + text)\n"


def forged_done(**changes: object) -> str:
    text = json.dumps({"op": "done", "number": 2, "succeeded": True, "exit_code": None, "cpu_s": 0.0} | changes)
    return REACH + f"text = {text!r}.encode()\n" + SEND + "while True: pass\n"


@pytest.fixture
def session(open_session: OpenSession) -> RunnerSession:
    session = open_session(Limits(cpu_s=0.5, wall_s=60))
    session.run("x = 1")
    return session


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_s": float("inf")},
        {"cpu_s": float("nan")},
        {"cpu_s": -1e308},
        {"cpu_s": 10**400},
        {"cpu_s": True},
        {"exit_code": 10**300},
        {"exit_code": -1},
        {"exit_code": True},
        {"succeeded": 1},
        {"number": 3},
        {"op": "ready"},
    ],
    ids=str,
)
def test_a_forged_end_with_odd_fields_is_refused(session: RunnerSession, changes: dict[str, object]) -> None:
    result = session.run(forged_done(**changes))
    assert (result.status, result.reason, result.state) == ("killed", "protocol", "rolled_back")
    assert session.run("x").output == "1\n"


def test_a_forged_end_does_not_end_the_watch(session: RunnerSession) -> None:
    result = session.run(forged_done())
    assert (result.status, result.reason, result.state) == ("timeout", "cpu", "rolled_back")
    assert session.run("x").output == "1\n"


@pytest.mark.parametrize("num_bytes", [1, 3, 4, 10])
def test_half_a_message_does_not_stop_the_watch(session: RunnerSession, num_bytes: int) -> None:
    """The limits hold all the same: half a second of CPU time, not the time that a message is waited for."""
    part = (struct.pack(">I", 100) + b"{" * 100)[:num_bytes]
    begun = time.process_time()
    result = session.run(REACH + f"channel._sock.sendall({part!r})\nwhile True: pass")
    assert (result.reason, result.state) == ("cpu", "rolled_back")
    assert result.cpu_s < 5
    assert time.process_time() - begun < 5
    assert session.run("x").output == "1\n"


@pytest.mark.parametrize("pid", [0, 1, -1, 2**70, "1", None, True, 4_000_000])
def test_a_false_process_id_of_a_copy_loses_names_and_nothing_else(session: RunnerSession, pid: object) -> None:
    lie = f"""
def clone(self, fd):

    from types import SimpleNamespace
    text = __import__('json').dumps({{'op': 'ready', 'pid': {pid!r}}}).encode()
    os.write(fd, len(text).to_bytes(4, 'big') + text)
    os.close(fd)
    return False
type(interpreter)._clone = clone
"""
    assert session.run(REACH + lie).status == "ok"
    result = session.run("x")
    assert (result.status, result.reason, result.state) == ("killed", "ended", "reset")
    assert session.run("2").output == "2\n"


def test_a_long_refusal_to_fork_is_cut(session: RunnerSession) -> None:
    lie = "type(interpreter)._find_obstacle = lambda self, fds: 'ü' * 500_000\n"
    assert session.run(REACH + lie).status == "ok"
    with pytest.raises(ForkError) as refused:
        session.fork()
    assert len(str(refused.value)) < 1000


def test_descriptors_that_a_cell_attaches_are_not_kept(session: RunnerSession) -> None:

    runner = runner_of(session)
    before = len(os.listdir(f"/proc/{runner}/fd"))
    attach = "import os, socket\nsocket.send_fds(channel._sock, [b'\\0'], [os.open('/dev/null', os.O_RDONLY)] * 50)\n"
    for _ in range(3):
        session.run(REACH + attach)
        session.run("x")
    assert len(os.listdir(f"/proc/{runner}/fd")) <= before + 1
    assert session.run("x").output == "1\n"
