"""What a runner may say, and what the host makes of it: the sandbox on the other side is not to be trusted."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agentrl.errors import InfrastructureError
from agentrl.sandbox import Limits, RunnerSandbox, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.link import Started

LIMITS = Limits(wall_s=1)
GOOD = {
    "head": "out\n",
    "tail": "",
    "num_bytes": 4,
    "exit_code": None,
    "signal": None,
    "reason": None,
    "cpu_s": 0.1,
    "wall_s": 0.2,
    "status": "ok",
    "state": "kept",
}


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


class ScriptedLink:
    """A runner that starts as it should and then answers every cell with given bytes."""

    def __init__(self, answer: Callable[[dict[str, Any]], bytes], *, out_of_memory: bool = False) -> None:
        self._answer = answer
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._num_received = 0
        self._out_of_memory = out_of_memory
        self.num_closed = 0
        self.largest_read = 0

    def send(self, data: bytes, timeout_s: float) -> None:
        self._incoming += data
        while len(self._incoming) >= 4 and len(self._incoming) >= 4 + (
            size := int.from_bytes(self._incoming[:4], "big")
        ):
            message = json.loads(self._incoming[4 : 4 + size])
            del self._incoming[: 4 + size]
            self._num_received += 1
            if self._num_received == 2:  # after its code comes the configuration
                self._outgoing += frame(b'{"op": "ready"}')
            elif message.get("op") == "run":
                self._outgoing += self._answer(message)
            elif self._num_received > 2:
                self._outgoing += frame(json.dumps({"id": message["id"], "error": None}).encode())

    def receive(self, num_bytes: int, timeout_s: float) -> bytes:
        self.largest_read = max(self.largest_read, num_bytes)
        data = bytes(self._outgoing[:num_bytes])
        del self._outgoing[:num_bytes]
        return data

    def resize(self, num_sessions: int) -> None:
        pass

    def is_reachable(self) -> bool:
        return True

    def ran_out_of_memory(self) -> bool:
        return self._out_of_memory

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.num_closed += 1

    def abandon(self) -> None:
        pass


class Scripted(RunnerSandbox):
    """Starts one link after the other."""

    name = "scripted"
    security_level = SecurityLevel.CONTAINER

    def __init__(self, *links: ScriptedLink) -> None:
        self._links = list(links)

    def start(self, limits: Limits) -> Started:
        return Started(link=self._links.pop(0))


def answering(**changes: Any) -> ScriptedLink:
    return ScriptedLink(lambda request: frame(json.dumps({"id": request["id"], **GOOD, **changes}).encode()))


def test_a_proper_answer_is_a_result() -> None:
    result = Scripted(answering()).open(limits=LIMITS).run("1")
    assert (result.status, result.output, result.state, result.cpu_s) == ("ok", "out\n", "kept", 0.1)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0xFFFFFFFF) + b"x" * 100,
        struct.pack(">I", 50) + b"half",
        b"\0\0",
        b"",
        frame(b"\xff\xfe junk"),
        frame(b"[]"),
        frame(b'"text"'),
        frame(b"[" * 100_000),
        frame(b'{"id": NaN}'),
        frame(b'{"id": Infinity}'),
        frame(b'{"id": ' + b"9" * 10_000 + b"}"),
    ],
    ids=["4 GiB", "half", "half a length", "nothing", "junk", "list", "text", "deep", "nan", "inf", "huge number"],
)
def test_what_is_no_message_is_an_infrastructure_failure(data: bytes) -> None:
    link = ScriptedLink(lambda _: data)
    session = Scripted(link).open(limits=LIMITS)
    with pytest.raises(InfrastructureError, match="The sandbox failed"):
        session.run("1")
    assert link.num_closed
    assert link.largest_read <= 1 << 16, "no memory is taken for a length that was not checked"
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("1")


@pytest.mark.parametrize("request_id", [0, -1, None, "1", 10**6])
def test_an_answer_to_another_request_is_refused(request_id: Any) -> None:
    with pytest.raises(InfrastructureError, match="an answer to request"):
        Scripted(answering(id=request_id)).open(limits=LIMITS).run("1")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "fine"},
        {"state": "?"},
        {"head": 5},
        {"tail": None},
        {"num_bytes": "4"},
        {"exit_code": [1]},
        {"signal": 1.5},
        {"reason": 3},
        {"cpu_s": "1"},
    ],
)
def test_an_answer_with_other_fields_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InfrastructureError, match="without a proper"):
        Scripted(answering(**changes)).open(limits=LIMITS).run("1")


def test_an_unknown_signal_has_a_number() -> None:
    result = Scripted(answering(status="killed", reason="died", signal=40)).open(limits=LIMITS).run("1")
    assert result.output == "out\nkilled: the interpreter died by signal 40; names from before this cell are kept\n"


def test_a_sandbox_that_the_kernel_ended_for_its_memory_is_the_programs_doing() -> None:
    dying = ScriptedLink(lambda _: b"", out_of_memory=True)
    session = Scripted(dying, answering()).open(limits=LIMITS)
    result = session.run("1")
    assert (result.status, result.reason, result.state) == ("killed", "memory", "reset")
    assert result.output == "killed: 512 MB memory limit; all names are lost\n"
    assert session.run("1").output == "out\n"
    assert dying.num_closed


def test_a_runner_that_gives_up_because_of_a_cell_says_so_and_is_replaced() -> None:
    giving_up = answering(status="killed", reason="sandbox", state="reset")
    session = Scripted(giving_up, answering()).open(limits=LIMITS)
    result = session.run("1")
    assert (result.status, result.reason, result.state) == ("killed", "sandbox", "reset")
    assert giving_up.num_closed
    assert session.run("1").output == "out\n"


def test_a_runner_that_never_gets_ready_is_explained() -> None:
    class Mute(ScriptedLink):
        def last_words(self) -> str:
            return "no python"

    mute = Mute(lambda _: b"")
    mute.send = lambda data, timeout_s: None  # type: ignore[method-assign]
    with pytest.raises(SandboxUnavailableError, match="did not start: no python"):
        Scripted(mute).open(limits=LIMITS)
    assert mute.num_closed
