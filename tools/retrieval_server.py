"""A server that answers `POST /retrieve` as that of Search-R1 does, from any retriever."""

import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self

from agentrl.errors import ConfigError
from agentrl.messages import JsonDict
from agentrl.tools.corpus import Hit, join_contents
from agentrl.tools.retriever import LocalRetriever

DEFAULT_TOP_K = 3
MAX_TOP_K = 100
MAX_QUERIES = 4096
MAX_REQUEST_BYTES = 8 << 20
MAX_THREADS = 32
"""Requests that are answered at a time; more wait for their turn."""
_READ_S = 10.0
"""A client that sends nothing for longer than this is given up."""
_MAX_DISCARDED_BYTES = 64 << 20
"""Of a request that is too large, so that most clients come to read the answer."""
_PIECE_BYTES = 1 << 16
_NOT_FOUND = "There is no such path here: there are POST /retrieve and GET /health."
_FINISH_S = 5.0
"""How long a server that stops waits for requests that it is answering."""


class RetrievalServer:
    r"""Listens from the moment it is made and answers in threads of its own; a context manager that stops it.

    `POST /retrieve` takes `{"queries": [...], "topk": 3, "return_scores": true}`, as Search-R1, verl and ARPO send it,
    or `{"query": "..."}` for one query, as SkyRL does. The answer is `{"result": [[hit, ...], ...]}` with a list for
    each query. A hit is `{"document": {"id": "7", "contents": "\"Title\"\ntext"}, "score": 1.5}`, or without scores,
    which is the default of the protocol, the document alone. `GET /health` says whether the server is up. Errors are
    `{"error": "..."}`. There are no accounts: whoever reaches the port may search.

    Args:
        retriever: Answers.
        host: Address to listen at.
        port: 0 takes a free one.

    Raises:
        ConfigError: The address cannot be listened at.
    """

    def __init__(self, retriever: LocalRetriever, *, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            self._server = _Server(retriever, host, port)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"The server cannot listen at {host}, port {port}: {reason or error}.") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/retrieve"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes no more requests, finishes those at hand for up to five seconds, and frees the port."""
        self._server.stopping = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        ends_at = time.monotonic() + _FINISH_S
        for _ in range(MAX_THREADS):
            self._server.turns.acquire(timeout=max(0.0, ends_at - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class RetrievalRequest:
    """The body of a request.

    Example:
        RetrievalRequest(queries=("capital of France",), top_k=3, with_scores=True)
    """

    queries: tuple[str, ...]
    top_k: int
    with_scores: bool


def parse_request(body: Any) -> RetrievalRequest:
    """Reads a decoded body.

    Raises:
        ValueError: Saying what was expected and what was given.
    """
    if not isinstance(body, dict):
        raise ValueError(f'a JSON object with "queries" was expected, got {_shown(body)}')
    queries = [body["query"]] if "query" in body and "queries" not in body else body.get("queries")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError(f'"queries" must be a list of texts (or "query" one text), got {_shown(queries)}')
    if len(queries) > MAX_QUERIES:
        raise ValueError(f'"queries" has {len(queries)} entries; at most {MAX_QUERIES} are answered at a time')
    top_k = DEFAULT_TOP_K if body.get("topk") is None else body["topk"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f'"topk" must be an integer from 1 to {MAX_TOP_K}, got {_shown(top_k)}')
    with_scores = body.get("return_scores", False)
    if not isinstance(with_scores, bool):
        raise ValueError(f'"return_scores" must be true or false, got {_shown(with_scores)}')
    return RetrievalRequest(tuple(queries), top_k, with_scores)


def answer(retriever: LocalRetriever, request: RetrievalRequest) -> JsonDict:
    """The body of the answer to a request."""
    found = retriever.retrieve_many(request.queries, request.top_k)
    return {"result": [[_item(hit, request.with_scores) for hit in hits] for hits in found]}


def _item(hit: Hit, with_score: bool) -> JsonDict:
    document = {"id": hit.document.id, "contents": join_contents(hit.document)}
    return {"document": document, "score": hit.score} if with_score else document


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that dawdles does not keep the program alive
    block_on_close = False  # `RetrievalServer.stop` waits, but not for ever
    request_queue_size = 128

    def __init__(self, retriever: LocalRetriever, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.retriever = retriever
        self.turns = threading.Semaphore(MAX_THREADS)
        self.stopping = False
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the host's name that the base class does, which can take seconds."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Waits for a free thread; connections wait in the queue of the operating system meanwhile."""
        while not self.turns.acquire(timeout=0.1):
            if self.stopping:
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.turns.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are everyday; anything else is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and hangs up: a connection that is kept open would keep a thread from others."""

    server: _Server
    server_version, sys_version = "agentrl", ""
    protocol_version = "HTTP/1.1"
    timeout = _READ_S
    wbufsize = -1  # header and body leave together

    def do_GET(self) -> None:
        """Health."""
        if self._path() == "/health":
            self._send(HTTPStatus.OK, {"status": "ok", "num_documents": len(self.server.retriever)})
        elif self._path() == "/retrieve":
            self._fail(HTTPStatus.METHOD_NOT_ALLOWED, "/retrieve is asked by POST.", Allow="POST")
        else:
            self._fail(HTTPStatus.NOT_FOUND, _NOT_FOUND)

    def do_POST(self) -> None:
        """Retrieval."""
        body = self._body()  # read whatever comes of it: hanging up on unread data could drop the answer
        if body is None:
            return
        if self._path() != "/retrieve":
            self._fail(HTTPStatus.NOT_FOUND, _NOT_FOUND)
            return
        try:
            request = parse_request(json.loads(body))
        except (ValueError, RecursionError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, f"The request cannot be read: {error}.")
            return
        try:
            result = answer(self.server.retriever, request)
        except Exception as error:
            traceback.print_exc()
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"The search failed: {type(error).__name__}: {error}")
            return
        self._send(HTTPStatus.OK, result)

    def handle_expect_100(self) -> bool:
        """Lets a client go on that asked before sending a large body, as curl does."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def _path(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _body(self) -> bytes | None:
        """The body; None after an error was sent."""
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit() and len(given) <= 18):
            self._fail(HTTPStatus.LENGTH_REQUIRED, "A request needs its Content-Length.")
            return None
        length = int(given)
        if length <= MAX_REQUEST_BYTES:
            return self.rfile.read(length)
        for start in range(0, min(length, _MAX_DISCARDED_BYTES), _PIECE_BYTES):
            self.rfile.read(min(_PIECE_BYTES, length - start))
        self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have {MAX_REQUEST_BYTES} bytes: split it.")
        return None

    def _fail(self, status: HTTPStatus, message: str, **headers: str) -> None:
        self._send(status, {"error": message}, headers)

    def _send(self, status: HTTPStatus, body: JsonDict, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors that the base class finds, as JSON too."""
        self._fail(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each search would bury everything else."""
