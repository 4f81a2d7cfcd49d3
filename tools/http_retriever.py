"""A client for retrieval servers that speak the `/retrieve` protocol of Search-R1, verl and ARPO."""

import json
import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.tools.corpus import Document, Hit, parse_document

MAX_RESPONSE_BYTES = 4 << 20
_CONNECT_S = 5.0
_READ_S = 10.0
"""A server that is silent for longer than this is asked again."""
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 5.0
_RETRIED_STATUS = {429, 500, 502, 503, 504}


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        """How long the server asked to wait."""


class HttpRetriever:
    """Sends `POST /retrieve {"queries": [query], "topk": k, "return_scores": true}`.

    What may pass is tried again until the deadline, with pauses that double and are drawn at random so that many
    episodes do not come back at the same moment: connection errors, time-outs, and the statuses 429, 500, 502, 503 and
    504 (`Retry-After` is honored). Everything else fails at once. Every failure is an `InfrastructureError`, a wrong
    address (404) or a refusal (401) too: whatever the model asks, such a server cannot answer, and the message
    names the cause.

    Args:
        url: Of the server; without a path, `/retrieve` is added.
        deadline_s: Longest time that one search may take, in seconds, all attempts and pauses included.

    Raises:
        ConfigError: The URL or the deadline cannot be used.
    """

    def __init__(self, url: str, *, deadline_s: float = 20.0) -> None:
        if not 0 < deadline_s < 1e6:
            raise ConfigError(f"deadline_s must be positive and finite, got {deadline_s!r}.")
        self.url = _end_point(url)
        self.deadline_s = deadline_s
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first, as the server ranks them.

        Raises:
            InfrastructureError: The server cannot be reached, refuses, or answers something else.
        """
        ends_at = time.monotonic() + self.deadline_s
        body = {"queries": [query], "topk": top_k, "return_scores": True}  # some servers fail without scores
        pause_s = _FIRST_PAUSE_S
        num_attempts = 0
        while True:
            num_attempts += 1
            try:
                return parse_hits(self._post(body, ends_at))[:top_k]
            except _TryAgainError as error:
                wait_s = error.pause_s if error.pause_s is not None else pause_s * _jitter.uniform(0.5, 1.5)
                if time.monotonic() + wait_s >= ends_at:
                    times = "once" if num_attempts == 1 else f"{num_attempts} times"
                    raise InfrastructureError(
                        f"The search server {self.url} failed: {error} (tried {times} in {self.deadline_s:g} s)."
                    ) from error
                time.sleep(wait_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            except (ValueError, RecursionError) as error:
                raise InfrastructureError(
                    f"The search server {self.url} does not speak the /retrieve protocol: {error}."
                ) from error

    def _post(self, body: Mapping[str, Any], ends_at: float) -> Any:
        """One attempt: the decoded answer.

        Raises:
            _TryAgainError: It failed in a way that may pass.
            InfrastructureError: It failed for good.
            ValueError: The answer is not JSON.
        """
        left_s = max(0.01, ends_at - time.monotonic())
        timeout = httpx.Timeout(min(_READ_S, left_s), connect=min(_CONNECT_S, left_s))
        try:
            with self._connected().stream("POST", self.url, json=body, timeout=timeout) as response:
                data = _read(response, ends_at)
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
            raise _TryAgainError(f"{type(error).__name__} {error}".strip()) from error
        except httpx.HTTPError as error:
            raise InfrastructureError(f"The search server {self.url} cannot be asked: {error}.") from error
        if response.status_code in _RETRIED_STATUS:
            raise _TryAgainError(f"HTTP status {response.status_code}", _retry_after_s(response))
        if response.status_code != 200:
            text = " ".join(data[:200].decode(errors="replace").split())
            raise InfrastructureError(
                f"The search server {self.url} refused the request with HTTP status {response.status_code}: {text!r}. "
                "Check the address and what the server expects."
            )
        return json.loads(data)

    def _connected(self) -> httpx.Client:
        """The client, made at first use: many threads share its connections."""
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(follow_redirects=False)
            return self._client

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "deadline_s": self.deadline_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], deadline_s=state["deadline_s"])  # type: ignore[misc]


_jitter = random.Random()  # not the global generator, whose state belongs to the user


def parse_hits(answer: Any) -> list[Hit]:
    """The hits in an answer to one query, in any of the shapes that servers send.

    These are `{"result": [[{"document": {...}, "score": 1.5}, ...]]}`, the same with the documents alone, and the same
    without the list per query. A document has "contents" (or "content"), or "title" and "text"; "id" is optional.

    Raises:
        ValueError: Saying what was expected.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("result"), list):
        raise ValueError('an object with a list "result" was expected')
    items = answer["result"]
    if items and isinstance(items[0], list):
        if len(items) != 1:
            raise ValueError(f"one list of hits was expected, for one query, got {len(items)}")
        items = items[0]
    return [_parse_hit(item, rank) for rank, item in enumerate(items)]


def _parse_hit(item: Any, rank: int) -> Hit:
    if isinstance(item, dict) and "document" in item:
        score = item.get("score")
        return Hit(_parse_document(item["document"], rank), float(score) if isinstance(score, int | float) else 0.0)
    return Hit(_parse_document(item, rank), 0.0)


def _parse_document(row: Any, rank: int) -> Document:
    return parse_document({"id": str(rank), **row} if isinstance(row, dict) else row)


def _read(response: httpx.Response, ends_at: float) -> bytes:
    """The body, unless it is too large or comes too slowly: the client's own limit is one for each piece."""
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > MAX_RESPONSE_BYTES:
            raise ValueError(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > ends_at:
            raise httpx.ReadTimeout("the answer comes too slowly")
    return bytes(data)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that a `Retry-After` header asks for, given as a number or as a date; None without a usable one."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _end_point(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The search server's URL {url!r} cannot be read: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The search server's URL must look like http://host:port/retrieve, got {url!r}.")
    return str(parsed.copy_with(path="/retrieve")) if parsed.path in ("", "/") else url
