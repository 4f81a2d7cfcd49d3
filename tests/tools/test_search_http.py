"""The retrieval client against a real server on this machine, which answers, stalls, breaks and lies."""

import copy
import gzip
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from http_server import Answer, hang_up, reply, stall
from search_server import GOOD, OSLO, ROME, Serve, SkippingTime, break_off, drip, drip_headers, flood, reset, serving

from agentrl import json_service
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools import Document, Toolbox, http_retriever, http_search, rate_limit
from agentrl.tools.http_retriever import HttpRetriever

HANGS = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection = server.accept()[0]
connection.recv(1)
print("asked", flush=True)
server.accept()
"""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    with serving(monkeypatch) as start:
        yield start


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> SkippingTime:
    clock = SkippingTime()
    monkeypatch.setattr(json_service, "time", clock)
    bucket = rate_limit.TokenBucket(clock=clock.monotonic)
    limits = rate_limit.HostLimits("host", bucket=bucket, sleep=clock.sleep)
    monkeypatch.setattr(http_retriever, "limits_of", lambda *settings: limits)
    return clock


def test_the_request_is_that_of_the_protocol(serve: Serve) -> None:
    server = serve(reply(GOOD))
    HttpRetriever(server.url).retrieve("capital ü", 2)
    HttpRetriever(f"{server.url}/v2/find").retrieve("x", 1)
    body = {"queries": ["capital ü"], "topk": 2, "return_scores": True}
    assert [(asked.method, asked.path, asked.fields) for asked in server.asked] == [
        ("POST", "/retrieve", body),
        ("POST", "/v2/find", {**body, "queries": ["x"], "topk": 1}),
    ]


def test_hits_come_back_in_order_and_no_more_than_asked_for(serve: Serve) -> None:
    retriever = HttpRetriever(serve(reply(GOOD)).url)
    hits = retriever.retrieve("capital", 5)
    assert [hit.document for hit in hits] == [
        Document("1", "Rome", "The capital of Italy."),
        Document("2", "Oslo", "The capital of Norway."),
    ]
    assert [hit.score for hit in hits] == [2.5, 1.0]
    assert len(retriever.retrieve("capital", 1)) == 1


@pytest.mark.parametrize(
    "failure",
    [hang_up, reset, break_off, *(reply(b"", status) for status in (429, 500, 502, 503, 504))],
)
def test_what_may_pass_is_tried_again(serve: Serve, failure: Answer) -> None:
    server = serve(failure, failure, reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize("failure", [hang_up, reply(b"", 503)])
def test_what_does_not_pass_is_an_infrastructure_failure(serve: Serve, failure: Answer) -> None:
    server = serve(failure)
    message = rf"{server.url}/retrieve failed: .* \(tried (once|\d+ times) in 0.3 s\)"
    with pytest.raises(InfrastructureError, match=message):
        HttpRetriever(server.url, deadline_s=0.3).retrieve("q", 2)
    # Pauses of 10, 20, 40 ... ms, drawn down to half of that at most: 5 + 10 + 20 + 40 + 80 + 160 > 300.
    assert len(server.asked) <= 7


def test_a_server_that_is_killed_while_it_is_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.001)
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        failures: list[str] = []

        def ask() -> None:
            with pytest.raises(InfrastructureError) as failure:
                HttpRetriever(f"http://127.0.0.1:{port}").retrieve("q", 1)
            failures.append(str(failure.value))

        asking = threading.Thread(target=ask)
        asking.start()
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGKILL)
        asking.join()
    assert f"127.0.0.1:{port}/retrieve failed: ConnectError" in failures[0]  # it was asked again and is not there


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(b"no such page", 404), "HTTP status 404: 'no such page'"),
        (reply(b"key", 401), "HTTP status 401"),
        (reply({"detail": "topk"}, 422), "HTTP status 422"),
        (reply(b"", 501), "HTTP status 501"),
        (reply(b"", 507), "HTTP status 507"),
        (reply(b"", 301, Location="http://127.0.0.1:1/"), "HTTP status 301"),  # redirects are not followed
        (reply(b"", 302, Location="/retrieve"), "HTTP status 302"),
        (reply(b"<html>"), "gives no search_r1 answer: Expecting value"),
        (reply(b"[" * 100_000), "gives no search_r1 answer: the answer is nested too deeply"),
        (reply(b"\xff\xfe\xfd"), "gives no search_r1 answer: Expecting value"),
        (reply([1]), 'an object with a list "result" was expected'),
        (reply({"result": "none"}), 'an object with a list "result" was expected'),
        (reply({"result": [[ROME], [OSLO]]}), "one list of hits was expected, for one query, got 2"),
        (reply({"result": [[{"document": {"id": "1"}, "score": 1}]]}), '"title" is missing'),
        (reply({"result": [["text"]]}), "a JSON object was expected, got str"),
        (reply({"result": [[{"contents": 5}]]}), '"contents" must be text, got int'),
        (reply(b" " * (http_retriever.MAX_RESPONSE_BYTES + 1)), "larger than 4194304 bytes"),
        (flood, "larger than 4194304 bytes"),
        (reply(gzip.compress(b" " * (5 << 20)), Content_Encoding="gzip"), "larger than 4194304 bytes"),
        (reply(b"junk", Content_Encoding="gzip"), "cannot be unpacked"),
        (reply(b"junk", Content_Encoding="br"), "packed as 'br'; gzip was asked for"),
        (reply(b" " * (1 << 20) + b"x", 403), "HTTP status 403. Check the address"),  # only its beginning is read
    ],
)
def test_an_answer_that_cannot_get_better_fails_at_once(serve: Serve, answer: Answer, message: str) -> None:
    server = serve(answer)
    with pytest.raises(InfrastructureError, match=message.replace("(", r"\(")):
        HttpRetriever(server.url).retrieve("q", 2)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.001)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen, nor does anybody else
        port = taken.getsockname()[1]
        with pytest.raises(InfrastructureError, match=f"127.0.0.1:{port}/retrieve failed: ConnectError"):
            HttpRetriever(f"http://127.0.0.1:{port}").retrieve("q", 1)


def test_a_packed_answer_is_read(serve: Serve) -> None:
    server = serve(reply(gzip.compress(json.dumps(GOOD).encode()), Content_Encoding="gzip"))
    assert [hit.document.title for hit in HttpRetriever(server.url).retrieve("q", 2)] == ["Rome", "Oslo"]
    assert server.asked[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("answer", [stall, drip, drip_headers])
def test_silence_and_dripping_end_at_the_deadline(serve: Serve, answer: Answer) -> None:
    server = serve(answer)
    # The server alone would end in another way. Of a machine that stands still, the time may be over while connecting.
    with pytest.raises(InfrastructureError, match=r"(Read|Connect)Timeout.* \(tried (once|\d+ times) in 0\.4 s\)"):
        HttpRetriever(server.url, deadline_s=0.4).retrieve("q", 1)


def test_a_silent_server_is_asked_again_before_the_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retriever, "_READ_S", 0.1)
    server = serve(stall, reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2


def test_retry_after_is_honored(serve: Serve, skipping: SkippingTime) -> None:
    server = serve(reply(b"", 429, Retry_After="7"), reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2
    assert skipping.pauses == [7.0]
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)
    server = serve(reply(b"", 503, Retry_After=date), reply(GOOD))
    assert len(HttpRetriever(server.url, deadline_s=60.0).retrieve("q", 2)) == 2
    assert 0 < skipping.pauses[1] <= 9.0


def test_a_wait_beyond_the_deadline_is_not_waited_for(serve: Serve, skipping: SkippingTime) -> None:
    server = serve(reply(b"", 429, Retry_After="100"))
    with pytest.raises(InfrastructureError, match=r"HTTP status 429 \(tried once in 20 s\)"):
        HttpRetriever(server.url).retrieve("q", 1)
    assert len(server.asked) == 1
    assert skipping.pauses == []


def test_pauses_back_off_and_are_drawn_at_random(serve: Serve, skipping: SkippingTime) -> None:
    server = serve(*[reply(b"", 503)] * 5, reply(GOOD))
    HttpRetriever(server.url).retrieve("q", 2)
    for pause, middle in zip(skipping.pauses, [0.01, 0.02, 0.04, 0.08, 0.16], strict=True):
        assert 0.5 * middle <= pause <= 1.5 * middle
    assert len({round(pause / middle, 9) for pause, middle in zip(skipping.pauses, [1, 2, 4, 8, 16], strict=True)}) > 1


@pytest.mark.parametrize("value", ["soon", "-1", "²", "Wed, 99 Foo 2020"])
def test_a_senseless_retry_after_is_ignored(serve: Serve, value: str) -> None:
    server = serve(reply(b"", 503, Retry_After=value.encode().decode("latin-1")), reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "http://host:port", "http:///retrieve"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        HttpRetriever(url)


@pytest.mark.parametrize("url", ["", None])
def test_a_server_of_ones_own_needs_a_url(url: str | None) -> None:
    with pytest.raises(ConfigError, match="'search_r1' needs the url of a server"):
        HttpRetriever(url)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wrong_deadline_is_refused(deadline_s: float) -> None:
    with pytest.raises(ConfigError, match="deadline_s"):
        HttpRetriever("http://host", deadline_s=deadline_s)


def test_copies_share_the_client_and_pickles_make_their_own(serve: Serve) -> None:
    retriever = HttpRetriever(serve(reply(GOOD)).url, deadline_s=7.0)
    retriever.retrieve("q", 1)
    assert copy.deepcopy(retriever) is retriever
    again = pickle.loads(pickle.dumps(retriever))
    assert (again.url, again.deadline_s) == (retriever.url, 7.0)
    assert again.retrieve("q", 2) == retriever.retrieve("q", 2)


def test_many_threads_share_one_retriever(serve: Serve) -> None:
    retriever = HttpRetriever(serve(reply(GOOD)).url)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(retriever.retrieve("q", 2)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2] * 8


def test_the_tool_gives_passages_and_lets_failures_through(serve: Serve) -> None:
    server = serve(reply(GOOD), reply(b"", 404))
    with Toolbox([http_search(server.url)]) as toolbox:
        result = toolbox.call(ToolCall("search", {"query": "capital"}))
        assert result.text == "[1] Rome: The capital of Italy.\n[2] Oslo: The capital of Norway."
        with pytest.raises(InfrastructureError, match="404"):
            toolbox.call(ToolCall("search", {"query": "capital"}))


def test_the_tool_waits_for_as_long_as_its_retriever_does() -> None:
    tool = http_search("http://host", deadline_s=5.0)
    assert (tool.deadline_s, tool.inline) == (None, False)
