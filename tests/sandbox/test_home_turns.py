"""Ends of sessions that reach the runner while others talk to it, and runners that stay silent."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_home import GOOD, LIMITS, Scripted, ScriptedLink, answering, frame

from agentrl.errors import InfrastructureError


class RecordingLink(ScriptedLink):
    """Remembers what it was asked, and calls a hook when it is asked something of a kind."""

    def __init__(self) -> None:
        super().__init__(lambda request: frame(json.dumps({"id": request["id"], **GOOD}).encode()))
        self.hooks: dict[str, Callable[[], object]] = {}
        self.operations: list[tuple[str, str]] = []

    def send(self, data: bytes, timeout_s: float) -> None:
        try:
            message = json.loads(data[4:])
        except ValueError:  # the runner's code
            message = {}
        if "session" in message:
            self.operations.append((message["op"], message["session"]))
        self.hooks.pop(message.get("op", ""), lambda: None)()
        super().send(data, timeout_s)
        if message.get("op") == "list":
            self._outgoing[:] = frame(json.dumps({"id": message["id"], "error": None, "paths": []}).encode())


def test_a_session_that_ends_during_another_ones_request_is_closed_after_it() -> None:
    link = RecordingLink()
    session = Scripted(link).open(limits=LIMITS)
    fork = session.fork()
    link.hooks["list"] = fork.close  # at that time the request holds the home
    session.list_files()
    assert link.operations[-2:] == [("list", session._name), ("close", fork._name)]


class HookedLock:
    """Calls a hook before it is released, once."""

    def __init__(self, hook: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._hooks = [hook]

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        while self._hooks:
            self._hooks.pop()()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def test_a_session_that_ends_at_the_very_end_of_another_ones_cell_is_closed() -> None:
    link = RecordingLink()
    session = Scripted(link).open(limits=LIMITS)
    fork = session.fork()
    session.home._lock = HookedLock(fork.close)  # type: ignore[assignment]
    assert session.run("1").output == "out\n"
    assert link.operations[-2:] == [("run", session._name), ("close", fork._name)]


def test_a_result_is_kept_though_the_sandbox_fails_after_it() -> None:
    link = RecordingLink()
    session = Scripted(link).open(limits=LIMITS)
    link.hooks["run"] = session.fork().close

    def fail() -> None:
        raise OSError("gone")

    link.hooks["close"] = fail
    assert session.run("1").output == "out\n"
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("2")
    assert link.num_closed


@pytest.mark.parametrize("reachable", [True, False])
def test_silence_is_the_programs_doing_only_if_the_way_to_it_is_open(reachable: bool) -> None:
    class Silent(ScriptedLink):
        def receive(self, num_bytes: int, timeout_s: float) -> bytes:
            if not self._outgoing:
                raise TimeoutError("timed out")
            return super().receive(num_bytes, timeout_s)

        def is_reachable(self) -> bool:
            return reachable

    def say_nothing(_: dict[str, Any]) -> bytes:
        return b""

    silent = Silent(say_nothing)
    session = Scripted(silent, answering()).open(limits=LIMITS)
    if reachable:
        result = session.run("1")
        assert (result.status, result.reason, result.state) == ("timeout", "wall", "reset")
    else:
        with pytest.raises(InfrastructureError, match="The sandbox failed: timed out"):
            session.run("1")
    assert silent.num_closed
