"""A client for retrieval servers that speak the `/retrieve` protocol of Search-R1, verl and ARPO."""

from typing import Any, Self

import httpx

from agentrl.errors import InfrastructureError
from agentrl.json_service import JsonService, Patience, RefusedError
from agentrl.tools.corpus import Document, Hit, parse_document

MAX_RESPONSE_BYTES = 4 << 20
_CONNECT_S = 5.0
_READ_S = 10.0
"""A server that is silent for longer than this is asked again."""


class HttpRetriever:
    """Sends `POST /retrieve {"queries": [query], "topk": k, "return_scores": true}`.

    What may pass is tried again until the deadline (see `JsonService`). Every failure is an `InfrastructureError`, a
    wrong address (404) or a refusal (401) too: whatever the model asks, such a server cannot answer, and the message
    names the cause.

    Args:
        url: Of the server; without a path, `/retrieve` is added.
        deadline_s: Longest time that one search may take, in seconds, all attempts and pauses included.

    Raises:
        ConfigError: The URL or the deadline cannot be used.
    """

    def __init__(self, url: str, *, deadline_s: float = 20.0) -> None:
        self.url = _end_point(url)
        self.deadline_s = deadline_s
        patience = Patience(connect_s=_CONNECT_S, read_s=_READ_S, deadline_s=deadline_s)
        self._service = JsonService(
            self.url, what="search server", patience=patience, max_response_bytes=MAX_RESPONSE_BYTES
        )

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first, as the server ranks them.

        Raises:
            InfrastructureError: The server cannot be reached, refuses, or answers something else.
        """
        body = {"queries": [query], "topk": top_k, "return_scores": True}  # some servers fail without scores
        try:
            return parse_hits(self._service.post(body))[:top_k]
        except RefusedError as error:
            raise InfrastructureError(f"{error} Check the address and what the server expects.") from error
        except ValueError as error:
            raise InfrastructureError(
                f"{self._service.name} does not speak the /retrieve protocol: {error}."
            ) from error

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "deadline_s": self.deadline_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], deadline_s=state["deadline_s"])  # type: ignore[misc]


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


def _end_point(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return url  # JsonService says what is wrong with it
    return str(parsed.copy_with(path="/retrieve")) if parsed.path in ("", "/") else url
