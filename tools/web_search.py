"""Search tools over HTTP, by the name of the service."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError
from agentrl.tools.search import SearchTool


def web_search(
    provider: str,
    url: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    api_key_env: str | None = None,
    top_k: int = 3,
    deadline_s: float = 20.0,
    rate: float | None = None,
    max_concurrency: int = 16,
    cache: str | Path | None = None,
    mode: str = "read_write",
    expires_days: float = 30.0,
) -> SearchTool:
    """The search tool over a service on the web or in the cluster.

    Args:
        provider: "search_r1", "searxng", "serper", "jina", or what was added to `PROVIDERS`.
        url: Of the server; services that are in one place only do not need it.
        parameters: Sent with every query as they are, such as {"gl": "de"}.
        api_key_env: Environment variable that holds the key; None: that of the provider, if it wants a key.
        top_k: Passages shown if the model does not say how many.
        deadline_s: Longest time that one search may take, attempts and pauses included, waiting for its turn not.
        rate: Requests per second to this host, from this process; None for any number.
        max_concurrency: Requests at a time to this host, from this process.
        cache: File in which answers are kept; None keeps none.
        mode: What the file is: a cache ("read_write"), or a recording to "record" or to "replay".
        expires_days: Age at which an answer in a cache is asked again.

    Raises:
        ConfigError: An option cannot be used, or the key is missing.
        UnknownNameError: There is no such provider.
    """
    # Not at the top: httpx takes long to import.
    from agentrl.tools.cached_retriever import CachedRetriever
    from agentrl.tools.http_retriever import HttpRetriever, checked_parameters, end_point
    from agentrl.tools.result_store import ResultStore, StoreMode

    if mode not in [*StoreMode]:
        raise ConfigError(f"mode is {', '.join(StoreMode)}; got {mode!r}.")
    if cache is None and mode != StoreMode.READ_WRITE:
        raise ConfigError(f"mode: {mode} needs a file: give its path as cache.")
    source = {
        "provider": provider,
        "url": end_point(provider, url),
        "parameters": checked_parameters(provider, parameters),
    }
    retriever = None
    if mode != StoreMode.REPLAY:  # which needs neither the server nor the key
        retriever = HttpRetriever(
            url,
            provider=provider,
            parameters=parameters,
            api_key_env=api_key_env,
            deadline_s=deadline_s,
            rate=rate,
            max_concurrency=max_concurrency,
        )
    store = None if cache is None else ResultStore(cache, StoreMode(mode), expires_days=expires_days)
    tool = SearchTool(CachedRetriever(source, retriever, store), top_k=top_k, deadline_s=deadline_s)
    # The retriever keeps the deadline itself, so that a server that is down is an infrastructure failure; one of the
    # tool would also count the time until a request has its turn, and be held against the model.
    tool.deadline_s = None
    return tool


def search_with(provider: str, summary: str) -> "partial[SearchTool]":
    """`web_search` with the provider given.

    Args:
        provider: Its name.
        summary: What `agentrl tools` says about it.
    """
    factory = partial(web_search, provider)
    factory.__doc__ = summary
    return factory


http_search = search_with(
    "search_r1", "The search tool over a server that answers `POST /retrieve`, as Search-R1 does."
)
