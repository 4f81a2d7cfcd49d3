"""The retrieval server over real sockets: what clients of Search-R1, verl and SkyRL send, and what they must not."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.tools import Document, Hit, SearchIndex, http_search, retrieval_server
from agentrl.tools.corpus import parse_document
from agentrl.tools.retrieval_server import RetrievalServer
from agentrl.tools.retriever import LocalRetriever

DOCUMENTS = [
    Document("1", "Rome", "The capital of Italy, on the Tiber."),
    Document("2", "", "Oslo is the capital\nof Norway."),
    Document("3", 'The "Po"', "A river of Italy."),
]
INDEX = SearchIndex(DOCUMENTS)


class Scripted(LocalRetriever):
    """Waits, or breaks, when the query says so."""

    def __init__(self) -> None:
        self.busy = threading.Semaphore(0)
        self.go_on = threading.Event()

    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        if "break" in queries:
            raise ZeroDivisionError("of the index")
        if "wait" in queries:
            self.busy.release()
            self.go_on.wait(60)
        return INDEX.retrieve_many(queries, top_k)

    def __len__(self) -> int:
        return len(INDEX)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    retriever = Scripted()
    yield retriever
    retriever.go_on.set()


@pytest.fixture
def server(scripted: Scripted) -> Iterator[RetrievalServer]:
    with RetrievalServer(scripted) as server:
        yield server
        scripted.go_on.set()


def connect(server: RetrievalServer) -> HTTPConnection:
    host, _, port = server.url.removeprefix("http://").removesuffix("/retrieve").rpartition(":")
    return HTTPConnection(host.strip("[]"), int(port), timeout=30)


def ask(server: RetrievalServer, body: Any, *, method: str = "POST", path: str = "/retrieve") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = connect(server)
    connection.request(method, path, data, {"Content-Type": "application/json", "Accept": "application/json"})
    response = connection.getresponse()
    return response.status, read_json(response)


def read_json(response: HTTPResponse) -> Any:
    assert response.getheader("Content-Type") == "application/json"
    assert response.getheader("Connection") == "close"
    return json.loads(response.read())


ROME = {"id": "1", "contents": '"Rome"\nThe capital of Italy, on the Tiber.'}


def test_the_request_of_search_r1_and_verl(server: RetrievalServer) -> None:
    status, answer = ask(server, {"queries": ["Tiber", "Norway", "zebra"], "topk": 2, "return_scores": True})
    assert status == 200
    score = INDEX.search("Tiber", 1)[0].score
    assert answer["result"][0] == [{"document": ROME, "score": score}]
    assert [len(hits) for hits in answer["result"]] == [1, 1, 0]


def test_the_request_of_skyrl(server: RetrievalServer) -> None:
    status, answer = ask(server, {"query": "Tiber", "topk": 3, "return_scores": True})
    assert status == 200
    assert [[item["document"] for item in hits] for hits in answer["result"]] == [[ROME]]


def test_without_scores_a_hit_is_the_document(server: RetrievalServer) -> None:
    assert ask(server, {"queries": ["Tiber"]}) == (200, {"result": [[ROME]]})
    assert ask(server, {"queries": ["Tiber"], "topk": None, "return_scores": False})[1]["result"] == [[ROME]]
    assert ask(server, {"queries": []}) == (200, {"result": []})


def test_three_hits_unless_asked_otherwise() -> None:
    with RetrievalServer(SearchIndex([Document(str(i), "", "same words") for i in range(200)])) as server:
        for top_k, expected in ((None, 3), (1, 1), (100, 100)):
            assert len(ask(server, {"queries": ["words"], "topk": top_k})[1]["result"][0]) == expected


@pytest.mark.parametrize("document", DOCUMENTS)
def test_clients_get_the_documents_back(document: Document, server: RetrievalServer) -> None:
    (hit, *_) = ask(server, {"query": document.text})[1]["result"][0]
    assert parse_document(hit) == document
    title, text = hit["contents"].split("\n", 1)  # how Search-R1 takes it apart
    assert (title.strip('"'), text) == (document.title.strip('"'), document.text)


def test_our_own_client(server: RetrievalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for url in (server.url, server.url.removesuffix("/retrieve")):
        assert http_search(url).call({"query": "Tiber"}) == "[1] Rome: The capital of Italy, on the Tiber."


def test_health(server: RetrievalServer) -> None:
    assert ask(server, b"", method="GET", path="/health") == (200, {"status": "ok", "num_documents": 3})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        ([1], 'a JSON object with "queries" was expected, got [1]'),
        ({}, '"queries" must be a list of texts (or "query" one text), got null'),
        ({"queries": "text"}, 'got "text"'),
        ({"queries": ["a", 5]}, 'got ["a", 5]'),
        ({"query": None}, "got [null]"),
        ({"query": ["a"]}, 'got [["a"]]'),
        ({"query": 5, "queries": None}, "got null"),
        ({"queries": ["a"], "topk": 0}, '"topk" must be an integer from 1 to 100, got 0'),
        ({"queries": ["a"], "topk": 101}, "got 101"),
        ({"queries": ["a"], "topk": "3"}, 'got "3"'),
        ({"queries": ["a"], "topk": True}, "got true"),
        ({"queries": ["a"], "topk": 2.0}, "got 2.0"),
        ({"queries": ["a"], "return_scores": 1}, '"return_scores" must be true or false, got 1'),
        ({"queries": ["a"] * 4097}, '"queries" has 4097 entries; at most 4096'),
        ({"queries": [["x" * 1000]]}, "..."),
    ],
)
def test_a_wrong_request_is_explained(server: RetrievalServer, body: Any, message: str) -> None:
    status, answer = ask(server, body)
    assert status == 400
    assert message in answer["error"]
    assert len(answer["error"]) < 300


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/retrieve", 405),
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("POST", "/search", 404),
        ("GET", "/../../etc/passwd", 404),
        ("PUT", "/retrieve", 501),
        ("POST", "/retrieve/?x=1", 200),
    ],
)
def test_other_paths_and_methods(method: str, path: str, status: int, server: RetrievalServer) -> None:
    found, answer = ask(server, {"query": "Tiber"}, method=method, path=path)
    assert found == status
    assert ("result" if status == 200 else "error") in answer


@pytest.mark.parametrize("num_bytes", [retrieval_server.MAX_REQUEST_BYTES + 1, 20 << 20])
def test_a_request_that_is_too_large_is_answered_all_the_same(num_bytes: int, server: RetrievalServer) -> None:
    status, answer = ask(server, b" " * num_bytes)
    assert (status, answer["error"]) == (413, "A request may have 8388608 bytes: split it.")
    assert ask(server, {"query": "Tiber"})[0] == 200


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 5000, "²"])
def test_a_request_of_unknown_length_is_refused(length: str, server: RetrievalServer) -> None:
    connection = connect(server)
    connection.putrequest("POST", "/retrieve")
    if length:
        connection.putheader("Content-Length", length.encode())
    connection.endheaders()
    assert connection.getresponse().status == 411


def raw(server: RetrievalServer, data: bytes) -> bytes:
    connection = connect(server)
    connection.connect()
    connection.sock.sendall(data)
    connection.sock.shutdown(socket.SHUT_WR)
    pieces = iter(lambda: connection.sock.recv(65536), b"")
    return b"".join(pieces)


@settings(max_examples=30)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_leave_the_server_up(data: bytes, after_a_request_line: bool) -> None:
    with RetrievalServer(INDEX) as server:
        raw(server, b"POST /retrieve HTTP/1.1\r\n" * after_a_request_line + data + b"\r\n\r\n")
        assert ask(server, {"query": "Tiber"})[0] == 200


def test_a_body_that_is_asked_for_first_is_asked_for(server: RetrievalServer) -> None:
    body = b'{"query": "Tiber"}'
    head = b"POST /retrieve HTTP/1.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
    connection = connect(server)
    connection.connect()
    connection.sock.sendall(head)
    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 Continue")
    connection.sock.sendall(body)
    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_search_that_breaks_is_an_error_500(server: RetrievalServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = ask(server, {"query": "break"})
    assert (status, answer) == (500, {"error": "The search failed: ZeroDivisionError: of the index"})
    assert "Traceback" in capsys.readouterr().err
    assert ask(server, {"query": "Tiber"})[0] == 200


def test_a_client_that_sends_half_and_waits_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_server._Handler, "timeout", 0.05)
    monkeypatch.setattr(retrieval_server, "MAX_THREADS", 1)
    with RetrievalServer(INDEX) as server:
        server._server.turns.acquire()  # so that the server does not begin to wait before the half has been sent
        connection = connect(server)
        connection.connect()
        connection.sock.sendall(b"POST /retrieve HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        server._server.turns.release()
        assert connection.sock.recv(1000) == b""


def test_more_requests_than_threads_wait_for_their_turn(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_server, "MAX_THREADS", 2)
    with RetrievalServer(scripted) as server:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(ask(server, {"query": "wait"})[0])) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            assert scripted.busy.acquire(timeout=30)
        assert not scripted.busy.acquire(timeout=0.2)  # the third is not begun
        assert found == []
        scripted.go_on.set()
        for thread in threads:
            thread.join()
        assert found == [200] * 6


def takes_connections(server: RetrievalServer) -> bool:
    try:
        connect(server).connect()
    except OSError:
        return False
    return True


def test_a_stop_finishes_what_was_begun_and_frees_the_port(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_server, "_FINISH_S", 60.0)
    server = RetrievalServer(scripted)
    found: list[int] = []
    client = threading.Thread(target=lambda: found.append(ask(server, {"query": "wait"})[0]))
    client.start()
    assert scripted.busy.acquire(timeout=30)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    while takes_connections(server):
        pass
    stopper.join(0.2)
    assert stopper.is_alive()  # as long as the request is not answered
    scripted.go_on.set()
    client.join()
    stopper.join()
    assert found == [200]
    with RetrievalServer(INDEX, port=int(server.url.split(":")[2].split("/")[0])) as again:
        assert again.url == server.url


def test_a_stop_does_not_wait_for_ever(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_server, "_FINISH_S", 0.1)
    server = RetrievalServer(scripted)
    client = threading.Thread(target=lambda: ask(server, {"query": "wait"}))
    client.start()
    assert scripted.busy.acquire(timeout=30)
    server.stop()
    assert client.is_alive()
    scripted.go_on.set()
    client.join()


def test_an_address_that_cannot_be_used_is_named(server: RetrievalServer) -> None:
    taken = int(server.url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=rf"listen at 127\.0\.0\.1, port {taken}: Address already in use"):
        RetrievalServer(INDEX, port=taken)
    with pytest.raises(ConfigError, match=r"listen at 192\.0\.2\.1, port 0"):
        RetrievalServer(INDEX, host="192.0.2.1")
    with pytest.raises(ConfigError, match=r"listen at 127\.0\.0\.1, port 70000"):
        RetrievalServer(INDEX, port=70000)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_version_6() -> None:
    with RetrievalServer(INDEX, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert ask(server, {"query": "Tiber"})[0] == 200
