"""A server that answers JSON, asked patiently: retries, pauses, one deadline for all of it."""

import contextlib
import functools
import json
import queue
import random
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol

import httpx

from agentrl.api_key import ApiKey
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.forking import fresh_after_fork

FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 10.0
_MAY_PASS = {429, 500, 502, 503, 504, 529}
"""Too many requests, errors of the server and its proxies, and "overloaded" as some model servers say it."""
_MAX_RETRY_AFTER_S = 86400.0
_MAX_SHOWN = 300
_MAX_ERROR_BYTES = 1 << 16
_GRACE_S = 0.1
_UNZIP = 32 + zlib.MAX_WBITS
"""zlib finds out by itself whether the data is gzip or deflate."""

_jitter = random.Random()  # not the global generator, whose state belongs to the user
fresh_after_fork(_jitter, random.Random.seed)  # else copies of this process would all come back at the same moments


class RefusedError(InfrastructureError):
    """The server understood and said no; asking again would not help.

    Attributes:
        status: HTTP status.
        text: What the server said, on one line and cut to a readable length.
    """

    def __init__(self, message: str, status: int, text: str) -> None:
        super().__init__(message)
        self.status = status
        self.text = text


class AnswerTooLongError(ValueError):
    """The answer is longer than it may be."""


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, pause_s: float | None = None, *, connected: bool = True) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        """How long the server asked to wait."""
        self.connected = connected
        """Whether the server may have got the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a service is waited for, in seconds.

    Raises:
        ConfigError: A time that is not positive and finite.
    """

    connect_s: float = 5.0
    read_s: float = 10.0
    """A server that is silent for longer than this is asked again."""
    deadline_s: float = 20.0
    """Longest time that one answer may take, all attempts and pauses included."""
    max_connects: int = 8
    """Attempts at reaching a server that does not take connections, which take about half a minute."""

    def __post_init__(self) -> None:
        for name in ("connect_s", "read_s", "deadline_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}.")


class Gate(Protocol):
    """Decides when a request may be sent."""

    def turn(self) -> contextlib.AbstractContextManager[object]:
        """Waits until one request may be sent, and counts it as running inside the `with` block.

        Raises:
            InfrastructureError: Its turn does not come.
        """
        ...

    def hold(self, seconds: float) -> None:
        """Lets nothing through for a while: the server asked for it."""
        ...


class _OpenGate:
    def turn(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def hold(self, seconds: float) -> None:
        pass


class _Answer(NamedTuple):
    status: int
    retry_after: str
    text: str
    """Without the key."""


class JsonService:
    """One URL; any number of threads may use it at a time.

    What may pass is tried again until the deadline, with pauses that double and are drawn at random so that many
    callers do not come back at the same moment: connection errors, time-outs, and the statuses 429, 500, 502, 503, 504
    and 529 (`Retry-After` is honored). Everything else fails at once. Redirects are not followed: they would turn a
    POST into a GET, and carry the key to another host.

    Args:
        url: What to ask.
        what: What the service is called in messages, such as "search server".
        patience: Time-outs.
        api_key: Sent with every request, as a bearer token unless it names another header; never part of a message,
            nor of an answer in which the server repeats it.
        headers: Others to send.
        gate: Asked before every attempt; the time that it takes does not count against the deadline.
        max_response_bytes: A longer answer is an error.

    Raises:
        ConfigError: The URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        what: str = "server",
        patience: Patience | None = None,
        api_key: ApiKey | str | None = None,
        headers: Mapping[str, str] | None = None,
        gate: Gate | None = None,
        max_response_bytes: int = 4 << 20,
    ) -> None:
        self.url = url
        self.name = f"The {what} {checked_url(url, what)}"
        self._patience = patience or Patience()
        self._api_key = ApiKey(api_key, what=what) if isinstance(api_key, str) else api_key
        self._headers = {**(headers or {}), "Accept-Encoding": "gzip, deflate"}
        self._gate = gate or _OpenGate()
        self._max_response_bytes = max_response_bytes
        self._begin()
        fresh_after_fork(self, JsonService._begin)  # two processes must not read from one connection

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def post(self, body: Mapping[str, Any], *, max_connects: int | None = None, repeat: bool = True) -> Any:
        """The decoded answer to a POST request.

        Args:
            body: Encoded as JSON.
            max_connects: Other than that of `patience`.
            repeat: Whether the server may get the request twice. If not, only attempts that did not reach it are made
                again.

        Raises:
            RefusedError: The server answered with a status that says no.
            InfrastructureError: No answer by the deadline.
            AnswerTooLongError: The answer is larger than `max_response_bytes`.
            ValueError: The answer is not JSON.
        """
        return self._ask("POST", {"json": body}, max_connects or self._patience.max_connects, repeat)

    def get(self, parameters: Mapping[str, Any]) -> Any:
        """The decoded answer to a GET request with parameters in the URL.

        Raises:
            RefusedError: The server answered with a status that says no.
            InfrastructureError: No answer by the deadline.
            AnswerTooLongError: The answer is larger than `max_response_bytes`.
            ValueError: The answer is not JSON.
        """
        return self._ask("GET", {"params": parameters}, self._patience.max_connects, repeat=True)

    def _ask(self, method: str, content: Mapping[str, Any], max_connects: int, repeat: bool) -> Any:
        ends_at = time.monotonic() + self._patience.deadline_s
        pause_s = FIRST_PAUSE_S
        num_attempts = num_failed_connects = 0
        while True:
            num_attempts += 1
            queued_at = time.monotonic()
            try:
                with self._gate.turn():
                    ends_at += time.monotonic() - queued_at
                    return self._attempt(method, content, ends_at)
            except _TryAgainError as error:
                wait_s = error.pause_s if error.pause_s is not None else pause_s * _jitter.uniform(0.5, 1.5)
                if error.pause_s is not None:
                    self._gate.hold(error.pause_s)
                num_failed_connects += not error.connected
                is_last = num_failed_connects >= max_connects or (error.connected and not repeat)
                if is_last or time.monotonic() + wait_s >= ends_at:
                    times = "once" if num_attempts == 1 else f"{num_attempts} times"
                    limit = "" if is_last else f" in {self._patience.deadline_s:g} s"
                    raise InfrastructureError(f"{self.name} failed: {error} (tried {times}{limit}).") from error
                time.sleep(wait_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _attempt(self, method: str, content: Mapping[str, Any], ends_at: float) -> Any:
        client = self._connected()  # here, see `_certificates`
        answer = _by(ends_at, lambda: self._send(client, method, content, ends_at))
        if 200 <= answer.status < 300:
            return _decoded(answer.text)
        text = " ".join(answer.text.split())[:_MAX_SHOWN]
        status = f"HTTP status {answer.status}" + (f": {text!r}" if text else "")
        if answer.status in _MAY_PASS:
            raise _TryAgainError(status, _retry_after_s(answer.retry_after))
        raise RefusedError(f"{self.name} refused the request with {status}.", answer.status, text)

    def _send(self, client: httpx.Client, method: str, content: Mapping[str, Any], ends_at: float) -> _Answer:
        left_s = max(0.01, ends_at - time.monotonic())
        timeout = httpx.Timeout(min(self._patience.read_s, left_s), connect=min(self._patience.connect_s, left_s))
        try:
            with client.stream(method, self.url, **content, auth=self._sign, timeout=timeout) as response:
                data = self._read(response, ends_at)
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
            connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise _TryAgainError(f"{type(error).__name__} {error}".strip(), connected=connected) from None
        except httpx.HTTPError as error:
            raise InfrastructureError(f"{self.name} cannot be asked: {error}.") from None
        text = data.decode(json.detect_encoding(data), "replace")
        if self._api_key is not None:
            text = self._api_key.masked(text)
        return _Answer(response.status_code, response.headers.get("Retry-After", "").strip(), text)

    def _sign(self, request: httpx.Request) -> httpx.Request:
        if self._api_key is not None:
            request.headers[self._api_key.header] = self._api_key.header_value
        return request

    def _connected(self) -> httpx.Client:
        """The client, made at first use."""
        with self._lock:
            if self._client is None:
                unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=64)
                self._client = httpx.Client(
                    headers=self._headers, limits=unlimited, follow_redirects=False, verify=_certificates()
                )
            return self._client

    def _read(self, response: httpx.Response, ends_at: float) -> bytes:
        """The body, unless it is too long or comes too slowly: the client's own limit is one for each piece."""
        max_bytes = self._max_response_bytes if response.is_success else _MAX_ERROR_BYTES
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if len(data) > max_bytes:
                break
            if time.monotonic() > ends_at:
                raise httpx.ReadTimeout("the answer comes too slowly")
        # Unpacked here and not by the client, which unpacks a piece of any size: a small bomb fills the memory.
        unpacked = _unpacked(bytes(data), response.headers.get("Content-Encoding", "identity"), max_bytes)
        if response.is_success and len(unpacked) > max_bytes:
            raise AnswerTooLongError(f"the answer is larger than {max_bytes} bytes")
        return unpacked[:max_bytes]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once in a process and its forks, and never in the thread of a single request.

    A thread that has used OpenSSL locks it for a moment while it ends. Whoever is forked in that moment would wait for
    ever when it first uses OpenSSL.
    """
    return httpx.create_ssl_context()


def _by(ends_at: float, send: Callable[[], _Answer]) -> _Answer:
    """Runs one attempt in a thread of its own: looking up a name, or headers that drip, no time-out of httpx ends.

    Errors leave the frames of that thread behind: those hold headers and raw answers, and so the key.
    """
    outcomes: queue.SimpleQueue[_Answer | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put(send())
        except BaseException as error:  # whatever it is, the caller raises it
            outcomes.put(error)

    try:
        threading.Thread(target=run, name="agentrl-request", daemon=True).start()
    except RuntimeError as error:
        raise InfrastructureError(f"No thread can be started for a request: {error}") from error
    try:
        outcome = outcomes.get(timeout=max(0.0, ends_at - time.monotonic()) + _GRACE_S)
    except queue.Empty:
        raise _TryAgainError("ReadTimeout: no answer in time") from None
    if isinstance(outcome, BaseException):
        raise outcome.with_traceback(None) from None
    return outcome


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None


def _unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """At most one byte more than the limit.

    Raises:
        ValueError: The data is broken, or packed in a way that was not asked for.
    """
    if encoding.strip().lower() in ("", "identity"):
        return data
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"the answer is packed as {encoding[:40]!r}; gzip was asked for")
    try:
        return zlib.decompressobj(_UNZIP).decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"the answer cannot be unpacked: {error}") from None


def checked_url(url: str, what: str) -> str:
    """The URL itself, if it can be asked and shown.

    Args:
        url: Of a service.
        what: What it is called in messages, such as "search server".

    Raises:
        ConfigError: It is no URL, or holds a password.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The URL {url!r} of the {what} cannot be read: {error}.") from error
    if parsed.userinfo:
        raise ConfigError(f"The URL of the {what} must not hold a user name or password: it is shown in messages.")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The URL of the {what} must look like http://host:port/path, got {url!r}.")
    return url


def _retry_after_s(value: str) -> float | None:
    """Seconds that a `Retry-After` header asks for, given as a number or as a date; None without a usable one."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), _MAX_RETRY_AFTER_S)
    except (TypeError, ValueError):
        return None
