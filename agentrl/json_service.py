"""A server that takes JSON by POST and answers JSON, asked patiently: retries, pauses, one deadline for all of it."""

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from agentrl.errors import ConfigError, InfrastructureError

FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 10.0
_NEVER_IMPLEMENTED = {501, 505}
_MAX_SHOWN = 300

_jitter = random.Random()  # not the global generator, whose state belongs to the user


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


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, pause_s: float | None = None, *, connected: bool = True) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        """How long the server asked to wait."""
        self.connected = connected


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


class JsonService:
    """One URL; any number of threads may use it at a time.

    What may pass is tried again until the deadline, with pauses that double and are drawn at random so that many
    callers do not come back at the same moment: connection errors, time-outs, and the statuses 429 and 5xx
    (`Retry-After` is honored). Everything else fails at once. Redirects are not followed: they would turn a POST into
    a GET, and carry the key to another host.

    Args:
        url: Where to post.
        what: What the service is called in messages, such as "search server".
        patience: Time-outs.
        api_key: Sent as a bearer token; never part of a message.
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
        api_key: str | None = None,
        max_response_bytes: int = 4 << 20,
    ) -> None:
        self.url = url
        self.name = f"The {what} {_checked(url, what)}"
        self._patience = patience or Patience()
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
            raise ConfigError(f"The API key of the {what} is empty or holds characters that no key has.")
        self._api_key = api_key
        self._max_response_bytes = max_response_bytes
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def post(self, body: Mapping[str, Any], *, max_connects: int | None = None) -> Any:
        """The decoded answer to one request.

        Args:
            body: Encoded as JSON.
            max_connects: Other than that of `patience`.

        Raises:
            RefusedError: The server answered with a status that says no.
            InfrastructureError: No answer by the deadline.
            ValueError: The answer is not JSON or too long.
        """
        ends_at = time.monotonic() + self._patience.deadline_s
        pause_s = FIRST_PAUSE_S
        num_attempts = num_failed_connects = 0
        while True:
            num_attempts += 1
            try:
                return self._attempt(body, ends_at)
            except _TryAgainError as error:
                wait_s = error.pause_s if error.pause_s is not None else pause_s * _jitter.uniform(0.5, 1.5)
                num_failed_connects += not error.connected
                unreachable = num_failed_connects >= (max_connects or self._patience.max_connects)
                if unreachable or time.monotonic() + wait_s >= ends_at:
                    times = "once" if num_attempts == 1 else f"{num_attempts} times"
                    limit = "" if unreachable else f" in {self._patience.deadline_s:g} s"
                    raise InfrastructureError(f"{self.name} failed: {error} (tried {times}{limit}).") from error
                time.sleep(wait_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _attempt(self, body: Mapping[str, Any], ends_at: float) -> Any:
        left_s = max(0.01, ends_at - time.monotonic())
        timeout = httpx.Timeout(min(self._patience.read_s, left_s), connect=min(self._patience.connect_s, left_s))
        try:
            with self._connected().stream("POST", self.url, json=body, timeout=timeout) as response:
                data = self._read(response, ends_at)
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
            connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise _TryAgainError(f"{type(error).__name__} {error}".strip(), connected=connected) from error
        except httpx.HTTPError as error:
            raise InfrastructureError(f"{self.name} cannot be asked: {error}.") from error
        if response.is_success:
            return _decoded(data)
        text = self._shown(data)
        status = f"HTTP status {response.status_code}" + (f": {text!r}" if text else "")
        if _may_pass(response.status_code):
            raise _TryAgainError(status, _retry_after_s(response))
        raise RefusedError(f"{self.name} refused the request with {status}.", response.status_code, text)

    def _connected(self) -> httpx.Client:
        """The client, made at first use."""
        with self._lock:
            if self._client is None:
                headers = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
                unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=64)
                self._client = httpx.Client(headers=headers, limits=unlimited, follow_redirects=False)
            return self._client

    def _read(self, response: httpx.Response, ends_at: float) -> bytes:
        """The body, unless it is too long or comes too slowly: the client's own limit is one for each piece."""
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > self._max_response_bytes:
                raise ValueError(f"the answer is larger than {self._max_response_bytes} bytes")
            if time.monotonic() > ends_at:
                raise httpx.ReadTimeout("the answer comes too slowly")
        return bytes(data)

    def _shown(self, data: bytes) -> str:
        text = data.decode(errors="replace")
        if self._api_key:  # some servers repeat the key they refuse
            text = text.replace(self._api_key, "***")
        return " ".join(text.split())[:_MAX_SHOWN]


def _may_pass(status: int) -> bool:
    return status == 429 or (status >= 500 and status not in _NEVER_IMPLEMENTED)


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None


def _checked(url: str, what: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"The URL {url!r} of the {what} cannot be read: {error}.") from error
    if parsed.userinfo:
        raise ConfigError(f"The URL of the {what} must not hold a user name or password: it is shown in messages.")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"The URL of the {what} must look like http://host:port/path, got {url!r}.")
    return url


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
