"""How often a server is asked that is not there, and who decides when; the rest is tested through its two users,
retriever and endpoint."""

import contextlib
import gzip
import time
import zlib
from collections.abc import Iterator

import pytest
from http_server import hang_up, reply, stall, unused_address
from search_server import SkippingTime, break_off, reset, serving

from agentrl import json_service
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.json_service import AnswerTooLongError, JsonService, Patience


@pytest.fixture
def closed_url() -> Iterator[str]:
    with unused_address() as address:
        yield f"http://{address}/x"


def test_a_server_that_takes_no_connections_is_given_up_before_the_deadline(
    closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.001)
    service = JsonService(closed_url, what="oracle", patience=Patience(deadline_s=3600.0, max_connects=5))
    for attempts, times in ((None, "5 times"), (2, "2 times"), (1, "once")):
        with pytest.raises(InfrastructureError, match=rf"^The oracle {closed_url} failed: Connect.* \(tried {times}\)"):
            service.post({}, max_connects=attempts)


def test_pauses_double_up_to_a_limit(closed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    clock = SkippingTime()
    monkeypatch.setattr(json_service, "time", clock)
    with pytest.raises(InfrastructureError):
        JsonService(closed_url, patience=Patience(deadline_s=3600.0)).post({})
    # 0.25 s, doubled up to 10 s, each times a number between 0.5 and 1.5; the eighth attempt is the last.
    assert len(clock.pauses) == 7
    for pause, middle in zip(clock.pauses, [0.25, 0.5, 1, 2, 4, 8, 10], strict=True):
        assert 0.5 * middle <= pause <= 1.5 * middle


@pytest.mark.parametrize("changes", [{"connect_s": 0.0}, {"read_s": -1.0}, {"deadline_s": float("nan")}])
def test_a_senseless_time_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} must be positive and finite"):
        Patience(**changes)  # type: ignore[arg-type]


def test_a_bomb_is_unpacked_no_further_than_needed() -> None:
    bomb = zlib.compress(b"a" * 10_000_000)
    assert len(bomb) < 20_000
    assert len(json_service._unpacked(bomb, "deflate", 1000)) == 1001
    assert json_service._unpacked(gzip.compress(b"abc"), "GZIP", 1000) == b"abc"


class SlowGate:
    """Lets everything through after 100 s, and writes down what it is told."""

    def __init__(self, clock: SkippingTime) -> None:
        self.told: list[str] = []
        self._clock = clock

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self._clock.sleep(100.0)
        self.told.append("enter")
        try:
            yield
        finally:
            self.told.append("leave")

    def hold(self, seconds: float) -> None:
        self.told.append(f"hold {seconds:g}")


def test_every_attempt_has_its_turn_and_waiting_for_it_is_not_the_servers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SkippingTime()
    gate = SlowGate(clock)
    monkeypatch.setattr(json_service, "time", clock)
    with serving(monkeypatch) as serve:
        server = serve(reply(b"", 429, Retry_After="7"), reply(b"", 503), reply({"a": 1}))
        service = JsonService(server.url, patience=Patience(deadline_s=90.0), gate=gate)
        assert service.get({"q": "a b", "n": 3}) == {"a": 1}
        # What the server asks for holds everybody; a pause of our own holds nobody else.
        assert gate.told == ["enter", "leave", "hold 7", "enter", "leave", "enter", "leave"]
        assert [(asked.method, asked.fields) for asked in server.asked] == [("GET", {"q": "a b", "n": "3"})] * 3
        assert sum(clock.pauses) > 300


@pytest.mark.parametrize("value", ["999999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_server_can_ask_for_more_than_a_day(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    gate = SlowGate(SkippingTime())
    with serving(monkeypatch) as serve:
        server = serve(reply(b"", 429, Retry_After=value))
        with pytest.raises(InfrastructureError, match=r"HTTP status 429 \(tried once in 20 s\)"):
            JsonService(server.url, gate=gate).get({})
    assert gate.told[-1] == "hold 86400"


def test_what_must_not_be_repeated_is_sent_again_only_if_it_was_not_received(
    closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as serve:
        with pytest.raises(InfrastructureError, match=r"Connect.* \(tried 3 times\)"):
            JsonService(closed_url).post({}, max_connects=3, repeat=False)
        for answer in (hang_up, break_off, reset, reply(b"", 503), reply(b"", 429)):
            server = serve(answer, reply({"a": 1}))
            with pytest.raises(InfrastructureError, match=r"\(tried once\)"):
                JsonService(server.url).post({}, repeat=False)
            assert len(server.asked) == 1
            assert JsonService(serve(answer, reply({"a": 1})).url).post({}) == {"a": 1}


def test_a_silent_server_is_not_asked_again_either(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as serve:
        server = serve(stall)
        with pytest.raises(InfrastructureError, match=r"ReadTimeout.* \(tried once\)"):
            JsonService(server.url, patience=Patience(read_s=0.05, deadline_s=60.0)).post({}, repeat=False)
        ends_at = time.monotonic() + 60
        while not server.asked and time.monotonic() < ends_at:
            time.sleep(0.01)  # the request may reach the server after its sender has given it up
        assert len(server.asked) == 1


def test_an_answer_that_is_too_long_can_be_told_from_one_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as serve:
        url = serve(reply([1, 2, 3])).url  # nine bytes
        assert JsonService(url, max_response_bytes=9).get({}) == [1, 2, 3]
        with pytest.raises(AnswerTooLongError, match="larger than 8 bytes"):
            JsonService(url, max_response_bytes=8).get({})
