"""The retrieval client against a real server on this machine, which answers, stalls, breaks and lies."""

import copy
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentrl import json_service
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools import Document, Toolbox, http_retriever, http_search
from agentrl.tools.http_retriever import HttpRetriever, parse_hits

ROME = {"id": "1", "contents": '"Rome"\nThe capital of Italy.'}
OSLO = {"id": "2", "title": "Oslo", "text": "The capital of Norway."}
GOOD = {"result": [[{"document": ROME, "score": 2.5}, {"document": OSLO, "score": 1}]]}

Answer = Callable[[BaseHTTPRequestHandler], None]


def reply(body: Any, status: int = 200, **headers: str) -> Answer:
    """Answers with bytes, or anything else as JSON."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def break_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"result": [[')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def stall(handler: BaseHTTPRequestHandler) -> None:
    handler.server.released.wait(60)  # type: ignore[attr-defined]
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(200):  # ten seconds
            if handler.server.released.wait(0.05):  # type: ignore[attr-defined]
                return
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        return


class Server(ThreadingHTTPServer):
    """Gives its answers one after the other, the last one again and again, and keeps what it was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.requests: list[tuple[str, Any]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append((self.path, body))
        (server.answers.pop(0) if len(server.answers) > 1 else server.answers[0])(self)

    def log_message(self, *args: Any) -> None:
        pass


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.01)
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def test_the_request_is_that_of_the_protocol(serve: Serve) -> None:
    server = serve(reply(GOOD))
    HttpRetriever(server.url).retrieve("capital ü", 2)
    HttpRetriever(f"{server.url}/v2/find").retrieve("x", 1)
    body = {"queries": ["capital ü"], "topk": 2, "return_scores": True}
    assert server.requests == [("/retrieve", body), ("/v2/find", {**body, "queries": ["x"], "topk": 1})]


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
    "answer",
    [
        {"result": [[{"document": ROME, "score": 1.0}]]},
        {"result": [[ROME]]},
        {"result": [ROME]},
        {"result": [{"document": ROME}]},
        {"result": [[{"id": 1, "content": ROME["contents"]}]]},
        {"result": [[{"document": {"id": "1", "title": "Rome", "text": "The capital of Italy."}, "score": None}]]},
    ],
)
def test_all_shapes_of_answers_are_read(answer: Any) -> None:
    assert [hit.document for hit in parse_hits(answer)] == [Document("1", "Rome", "The capital of Italy.")]


def test_a_document_without_id_gets_its_rank_and_no_hits_are_fine() -> None:
    assert [hit.document.id for hit in parse_hits({"result": [[{"contents": "a"}, {"contents": "b"}]]})] == ["0", "1"]
    assert parse_hits({"result": [[]]}) == parse_hits({"result": []}) == []


@pytest.mark.parametrize(
    "failure",
    [hang_up, break_off, reply(b"", 500), reply(b"", 502), reply(b"", 503), reply(b"", 504), reply(b"", 429)],
)
def test_what_may_pass_is_tried_again(serve: Serve, failure: Answer) -> None:
    server = serve(failure, failure, reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("failure", [hang_up, reply(b"", 503)])
def test_what_does_not_pass_is_an_infrastructure_failure(serve: Serve, failure: Answer) -> None:
    server = serve(failure)
    message = rf"{server.url}/retrieve failed: .* \(tried (once|\d+ times) in 0.3 s\)"
    with pytest.raises(InfrastructureError, match=message):
        HttpRetriever(server.url, deadline_s=0.3).retrieve("q", 2)
    # Pauses of 10, 20, 40 ... ms, drawn down to half of that at most: 5 + 10 + 20 + 40 + 80 + 160 > 300.
    assert len(server.requests) <= 7


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(b"no such page", 404), "HTTP status 404: 'no such page'"),
        (reply(b"key", 401), "HTTP status 401"),
        (reply({"detail": "topk"}, 422), "HTTP status 422"),
        (reply(b"", 301, Location="http://127.0.0.1:1/"), "HTTP status 301"),  # redirects are not followed
        (reply(b"<html>"), "does not speak the /retrieve protocol: Expecting value"),
        (reply(b"[" * 100_000), "does not speak the /retrieve protocol"),
        (reply(b"\xff\xfe\xfd"), "does not speak the /retrieve protocol"),
        (reply([1]), 'an object with a list "result" was expected'),
        (reply({"result": "none"}), 'an object with a list "result" was expected'),
        (reply({"result": [[ROME], [OSLO]]}), "one list of hits was expected, for one query, got 2"),
        (reply({"result": [[{"document": {"id": "1"}, "score": 1}]]}), '"title" is missing'),
        (reply({"result": [["text"]]}), "a JSON object was expected, got str"),
        (reply({"result": [[{"contents": 5}]]}), '"contents" must be text, got int'),
        (reply(b" " * (http_retriever.MAX_RESPONSE_BYTES + 1)), "larger than 4194304 bytes"),
    ],
)
def test_an_answer_that_cannot_get_better_fails_at_once(serve: Serve, answer: Answer, message: str) -> None:
    server = serve(answer)
    with pytest.raises(InfrastructureError, match=message.replace("(", r"\(")):
        HttpRetriever(server.url).retrieve("q", 2)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InfrastructureError, match=f"127.0.0.1:{port}/retrieve failed: ConnectError"):
        HttpRetriever(f"http://127.0.0.1:{port}", deadline_s=0.2).retrieve("q", 1)


@pytest.mark.parametrize("answer", [stall, drip])
def test_silence_and_dripping_end_at_the_deadline(serve: Serve, answer: Answer) -> None:
    server = serve(answer)
    with pytest.raises(InfrastructureError, match="ReadTimeout"):  # the server alone would end in another way
        HttpRetriever(server.url, deadline_s=0.4).retrieve("q", 1)


def test_a_silent_server_is_asked_again_before_the_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retriever, "_READ_S", 0.1)
    server = serve(stall, reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2


def test_retry_after_is_honored(serve: Serve) -> None:
    server = serve(reply(b"", 429, Retry_After="1"), reply(GOOD))
    begun = time.monotonic()
    HttpRetriever(server.url).retrieve("q", 1)
    assert time.monotonic() - begun >= 1.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # whole seconds: at least 1 s away
    server = serve(reply(b"", 503, Retry_After=soon), reply(GOOD))
    begun = time.monotonic()
    HttpRetriever(server.url).retrieve("q", 1)
    assert time.monotonic() - begun >= 0.5


def test_a_wait_beyond_the_deadline_is_not_waited_for(serve: Serve) -> None:
    server = serve(reply(b"", 429, Retry_After="100"))
    with pytest.raises(InfrastructureError, match=r"HTTP status 429 \(tried once in 20 s\)"):
        HttpRetriever(server.url).retrieve("q", 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-1", "²", "Wed, 99 Foo 2020"])
def test_a_senseless_retry_after_is_ignored(serve: Serve, value: str) -> None:
    server = serve(reply(b"", 503, Retry_After=value.encode().decode("latin-1")), reply(GOOD))
    assert len(HttpRetriever(server.url).retrieve("q", 2)) == 2


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/x", "http://", "http://host:port", "http:///retrieve"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
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


def test_the_tools_deadline_comes_after_the_retrievers() -> None:
    assert http_search("http://host", deadline_s=5.0).deadline_s > 5.0
