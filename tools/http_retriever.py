"""A client for search services on the web or in the cluster."""

from collections.abc import Mapping
from typing import Any, Self

import httpx

from agentrl.api_key import key_from_environment
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.json_service import JsonService, Patience, RefusedError, checked_url
from agentrl.messages import JsonDict
from agentrl.tools.corpus import Hit
from agentrl.tools.rate_limit import limits_of
from agentrl.tools.web_providers import PROVIDERS

MAX_RESPONSE_BYTES = 4 << 20
_WHAT = "search server"
_CONNECT_S = 5.0
_READ_S = 10.0
"""A server that is silent for longer than this is asked again."""


class HttpRetriever:
    """Asks one search service.

    What may pass is tried again until the deadline (see `JsonService`). Every failure is an `InfrastructureError`, a
    wrong address (404) or a refusal (401) too: whatever the model asks, such a server cannot answer, and the message
    names the cause.

    Args:
        url: Of the server; without a path, that of the provider's end point is added. None: where the provider is.
        provider: How it is asked, a name in `PROVIDERS`.
        parameters: Sent with every query as they are, such as {"gl": "de"}.
        api_key_env: Name of the environment variable that holds the key; None: that of the provider.
        deadline_s: Longest time that one search may take, in seconds, all attempts and pauses included. Waiting for
            its turn under the next two is not.
        rate: Requests per second to this host, from this process; None for any number.
        max_concurrency: Requests at a time to this host, from this process.

    Raises:
        ConfigError: The URL, the key or a limit cannot be used.
        UnknownNameError: There is no such provider.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        provider: str = "search_r1",
        parameters: Mapping[str, Any] | None = None,
        api_key_env: str | None = None,
        deadline_s: float = 20.0,
        rate: float | None = None,
        max_concurrency: int = 16,
    ) -> None:
        self._settings = {
            "url": url,
            "provider": provider,
            "parameters": parameters,
            "api_key_env": api_key_env,
            "deadline_s": deadline_s,
            "rate": rate,
            "max_concurrency": max_concurrency,
        }
        self.url, self.deadline_s = end_point(provider, url), deadline_s
        self._provider = PROVIDERS[provider]
        self._parameters = checked_parameters(provider, parameters)
        variable = api_key_env or self._provider.key_env
        key_header = self._provider.key_header
        self._service = JsonService(
            self.url,
            what=_WHAT,
            patience=Patience(connect_s=_CONNECT_S, read_s=_READ_S, deadline_s=deadline_s),
            api_key=None if variable is None else key_from_environment(variable, what=_WHAT, header=key_header),
            headers=self._provider.headers,
            gate=limits_of(httpx.URL(self.url).netloc.decode(), rate, max_concurrency),
            max_response_bytes=MAX_RESPONSE_BYTES,
        )

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first, as the server ranks them.

        Raises:
            InfrastructureError: The server cannot be reached, refuses, or answers something else.
        """
        fields = {**self._provider.fields(query, top_k), **self._parameters}
        try:
            answer = self._service.get(fields) if self._provider.method == "GET" else self._service.post(fields)
            return self._provider.read(answer)[:top_k]
        except RefusedError as error:
            remedy = self._provider.refusals.get(error.status, "Check the address and what the server expects.")
            raise InfrastructureError(f"{error} {remedy}") from error
        except ValueError as error:
            name = self._settings["provider"]
            raise InfrastructureError(f"{self._service.name} gives no {name} answer: {error}.") from error

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def end_point(provider: str, url: str | None) -> str:
    """The whole address of what is asked.

    Raises:
        ConfigError: There is none, or it cannot be used.
        UnknownNameError: There is no such provider.
    """
    given = url or PROVIDERS[provider].url
    if given is None:
        raise ConfigError(f"The search provider {provider!r} needs the url of a server, such as http://localhost:8000.")
    parsed = httpx.URL(checked_url(given, _WHAT))
    if parsed.query and PROVIDERS[provider].method == "GET":
        raise ConfigError(f"The url of {provider!r} ends with its path: what follows the ? belongs into parameters.")
    return str(parsed.copy_with(path=PROVIDERS[provider].path)) if parsed.path in ("", "/") else given


def checked_parameters(provider: str, parameters: Mapping[str, Any] | None) -> JsonDict:
    """What is sent with every query.

    Raises:
        ConfigError: It would overwrite the query or what belongs to it.
    """
    taken = PROVIDERS[provider].fields("", 1).keys() & (parameters or {}).keys()
    if taken:
        raise ConfigError(f"parameters of {provider!r} cannot hold {', '.join(sorted(taken))}: the search sets it.")
    return dict(parameters or {})
