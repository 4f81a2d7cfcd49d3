"""Asking a vLLM server over HTTP: a pool of connections, one deadline per request, and what its refusals mean."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from agentrl.errors import ConfigError, InfrastructureError, PolicyError
from agentrl.json_service import checked_url
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.patience import Patience

SERVE = "Start it with: agentrl serve-policy MODEL"
"""The remedy for a server that lacks something."""
_OVERLOADED = 503
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 2.0
_MAX_SHOWN = 500


class ServerFaultError(EngineLostError):
    """The server answered that something in it is broken; whether it can go on is another question."""


class NotFoundError(PolicyError):
    """The server does not know the address or the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a server is waited for, in seconds, since it was asked or last did what any request asked.

    Raises:
        ConfigError: A time that is not positive and finite.

    Example:
        Deadlines(per_token_s=0.1).of_turn(512) == 111.2
    """

    connect_s: float = 10.0
    turn_s: float = 60.0
    """For a turn of any length: the prompt, a weight update in between."""
    per_token_s: float = 0.5
    """Besides, for each token that the turn may have."""
    control_s: float = 300.0
    """For everything that is not a turn, such as an exchange of weights."""

    def __post_init__(self) -> None:
        for name in ("connect_s", "turn_s", "per_token_s", "control_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}.")

    def of_turn(self, max_tokens: int) -> float:
        """For a turn of so many tokens."""
        return self.turn_s + self.per_token_s * max_tokens


class Connection:
    """One server; any number of coroutines of one event loop may ask it at a time.

    Args:
        url: Without a path.
        deadlines: Of them, the time for a connection.

    Raises:
        ConfigError: The URL cannot be used, or ends in /v1.
    """

    def __init__(self, url: str, deadlines: Deadlines) -> None:
        self.url = checked_url(url, "vLLM server").rstrip("/")
        if self.url.endswith("/v1"):
            raise ConfigError(f"Leave out the /v1 of {url}: all addresses of the server are used, not that part alone.")
        self._patience = Patience()
        self._client = _client(self.url, deadlines, max_idle=None)
        self._fresh_client = _client(self.url, deadlines, max_idle=0)

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        within_s: float,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded answer. Cancelling it closes its connection, which cancels the request in the server.

        Args:
            method: "GET" or "POST".
            path: Of the URL.
            body: Sent as JSON.
            within_s: The deadline, counted anew whenever the server does what another request asks (see `Patience`;
                refusals do not count). A server that says it has too much to do is asked again until then.
            parameters: Of the URL.

        Raises:
            EngineLostError: No connection, no answer by the deadline, or an error within the server.
            PolicyError: The server does not offer what it takes.
            InfrastructureError: It refuses this request.
        """
        pause_s = _FIRST_PAUSE_S
        try:
            async with self._patience.wait(within_s):
                while True:
                    response = await self._send(method, path, body, parameters or {})
                    if response.status_code != _OVERLOADED:
                        return self._read(response, path)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        except TimeoutError:
            raise EngineLostError(f"The vLLM server {self.url} did not answer {path} within {within_s:g} s.") from None

    async def close(self) -> None:
        """Closes all connections. Safe to call twice."""
        await self._client.aclose()
        await self._fresh_client.aclose()

    async def is_healthy(self, within_s: float) -> bool:
        """Whether the server says that its engine is alive."""
        try:
            async with asyncio.timeout(within_s):
                return (await self._send("GET", "/health", None, {})).is_success
        except (TimeoutError, InfrastructureError):
            return False

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, parameters: Mapping[str, str]
    ) -> httpx.Response:
        """Sends a request, again on a new connection if a kept one turns out to be closed.

        After an error of its own vLLM closes the connection while saying that it will keep it.
        """
        try:
            try:
                return await self._client.request(method, path, json=body, params=parameters)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                return await self._fresh_client.request(method, path, json=body, params=parameters)
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__} {error}".strip(" .")
            raise EngineLostError(f"The vLLM server {self.url} cannot be reached: {reason}.") from None

    def _read(self, response: httpx.Response, path: str) -> Any:
        status = response.status_code
        if response.is_success:
            try:
                return json.loads(response.content) if response.content else None
            except ValueError:
                return response.text
        said = f"The vLLM server {self.url} answered {path} with status {status}: {_message(response)!r}."
        if status >= 500:
            raise ServerFaultError(said)
        if status == 404:
            raise NotFoundError(f"{said} Either it serves another model, or it does not offer this. {SERVE}")
        if status in (401, 403):
            raise PolicyError(f"{said} It does not offer what training needs. {SERVE}")
        raise InfrastructureError(said)


def _client(url: str, deadlines: Deadlines, *, max_idle: int | None) -> httpx.AsyncClient:
    """A client that keeps so many connections open when nobody uses them."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(None, connect=deadlines.connect_s),  # the deadline of a request bounds the rest
        # With a transport of its own it uses no proxy that the environment names for other addresses.
        transport=httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_idle)
        ),
    )


def _message(response: httpx.Response) -> str:
    """What the server says, without the JSON around it."""
    try:
        said = response.json()["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError):
        said = response.text
    return " ".join(str(said).split())[:_MAX_SHOWN]
