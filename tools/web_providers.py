"""Search services by name: what each is sent, and how its answer is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.api_key import BEARER
from agentrl.messages import JsonDict
from agentrl.registry import Registry
from agentrl.text import clean_text
from agentrl.tools.corpus import Document, Hit, parse_document


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One kind of search service.

    To use one that is not here, make such an object and `PROVIDERS.add` it under a name.

    Example:
        Provider(method="POST", path="/find", fields=lambda query, top_k: {"text": query, "n": top_k}, read=read_answer)
    """

    method: str
    """"GET" with the fields in the URL, or "POST" with the fields as a JSON object."""
    path: str
    """Of the end point; added to a URL that has none."""
    fields: Callable[[str, int], JsonDict]
    """From query and number of results to what is sent."""
    read: Callable[[Any], list[Hit]]
    """From the decoded answer to its hits, best first; raises a `ValueError` that says what was expected."""
    url: str | None = None
    """Where it is, if there is only one."""
    key_env: str | None = None
    """Environment variable that holds the key, if it wants one."""
    key_header: str = BEARER
    headers: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[int, str] = field(default_factory=dict)
    """What to do about an HTTP status."""


PROVIDERS: Registry[Provider] = Registry("search provider")


def read_search_r1(answer: Any) -> list[Hit]:
    """The hits in an answer to one query, in any of the shapes that `/retrieve` servers send.

    These are `{"result": [[{"document": {...}, "score": 1.5}, ...]]}`, the same with the documents alone, and the same
    without the list per query. A document has "contents" (or "content"), or "title" and "text"; "id" is optional.

    Raises:
        ValueError: Saying what was expected.
    """
    items = _list(answer, "result")
    if items and isinstance(items[0], list):
        if len(items) != 1:
            raise ValueError(f"one list of hits was expected, for one query, got {len(items)}")
        items = items[0]
    return [_hit_of_document(item, rank) for rank, item in enumerate(items)]


def read_searxng(answer: Any) -> list[Hit]:
    """The hits in an answer of SearXNG; no hit because its engines failed is a failure.

    Raises:
        ValueError: Saying what was expected, or which engines failed.
    """
    hits = [_hit(item, link="url", text=("content",)) for item in _list(answer, "results")]
    silent = answer.get("unresponsive_engines")
    if not hits and isinstance(silent, list) and silent:
        raise ValueError(f"it has no result, and these engines did not answer: {str(silent)[:300]}")
    return hits


def read_serper(answer: Any) -> list[Hit]:
    """The direct answer and the entry of the knowledge graph, if there are any, and then the pages.

    Raises:
        ValueError: Saying what was expected.
    """
    pages = [_hit(item, link="link", text=("snippet",)) for item in _list(answer, "organic")]
    return [*_box(answer, "answerBox", ("answer", "snippet")), *_box(answer, "knowledgeGraph", _FACTS), *pages]


def read_jina(answer: Any) -> list[Hit]:
    """The pages that Jina found, with their text where it sends that.

    Raises:
        ValueError: Saying what was expected.
    """
    return [_hit(item, link="url", text=("content",), or_else="description") for item in _list(answer, "data")]


_FACTS = ("type", "description", "attributes")

PROVIDERS.add(
    "search_r1",
    Provider(
        method="POST",
        path="/retrieve",
        # Some servers fail without scores.
        fields=lambda query, top_k: {"queries": [query], "topk": top_k, "return_scores": True},
        read=read_search_r1,
    ),
)
PROVIDERS.add(
    "searxng",
    Provider(
        method="GET",
        path="/search",
        fields=lambda query, top_k: {"q": query, "format": "json"},
        read=read_searxng,
        refusals={403: "Add json to search.formats in settings.yml of SearXNG: it serves only html by default."},
    ),
)
PROVIDERS.add(
    "serper",
    Provider(
        method="POST",
        path="/search",
        fields=lambda query, top_k: {"q": query, "num": top_k},
        read=read_serper,
        url="https://google.serper.dev",
        key_env="SERPER_API_KEY",
        key_header="X-API-KEY",
    ),
)
PROVIDERS.add(
    "jina",
    Provider(
        method="POST",
        path="/",
        fields=lambda query, top_k: {"q": query, "num": top_k},
        read=read_jina,
        url="https://s.jina.ai",
        key_env="JINA_API_KEY",
        headers={"Accept": "application/json", "X-Respond-With": "no-content"},  # pages are cut to a few lines anyway
    ),
)


def _list(answer: Any, key: str) -> list[Any]:
    if not isinstance(answer, dict) or not isinstance(answer.get(key), list):
        raise ValueError(f'an object with a list "{key}" was expected')
    found: list[Any] = answer[key]
    return found


def _hit_of_document(item: Any, rank: int) -> Hit:
    document, score = (item["document"], item.get("score")) if _wraps_document(item) else (item, None)
    row = {"id": str(rank), **document} if isinstance(document, dict) else document
    return Hit(parse_document(row), _score(score))


def _wraps_document(item: Any) -> bool:
    return isinstance(item, dict) and "document" in item


def _hit(item: Any, *, link: str, text: tuple[str, ...], or_else: str = "") -> Hit:
    """A page; its address is its id."""
    if not isinstance(item, dict) or not isinstance(item.get(link), str):
        raise ValueError(f'a result is an object with the address of a page under "{link}"')
    words = _words(item, text) or _words(item, (or_else,))
    title = _words(item, ("title",))
    return Hit(Document(clean_text(item[link]), title, words), _score(item.get("score")))


def _box(answer: Mapping[str, Any], key: str, text: tuple[str, ...]) -> Iterator[Hit]:
    """What the service says itself, above the pages."""
    box = answer.get(key)
    if isinstance(box, dict) and (words := _words(box, text)):
        yield Hit(Document(key, _words(box, ("title",)), words), 0.0)


def _words(item: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Whatever text stands under the keys; services leave out what they do not have, or send null."""
    parts: list[str] = []
    for key in keys:
        value = item.get(key)
        if isinstance(value, dict):
            parts += [f"{name}: {fact}" for name, fact in value.items() if isinstance(fact, str)]
        elif isinstance(value, str) and value:
            parts.append(value)
    return clean_text("; ".join(parts))


def _score(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
