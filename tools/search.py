"""The search tool: a query in, numbered passages out."""

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, ToolError
from agentrl.messages import JsonDict
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.core import Tool
from agentrl.tools.corpus import Hit
from agentrl.tools.retriever import Retriever as Retriever  # a part of this module's interface
from agentrl.tools.search_backends import Corpus, open_retriever

MAX_TOP_K = 10
MAX_QUERY_CHARS = 1000
MAX_PASSAGE_CHARS = 600


class SearchTool(Tool):
    """Searches with any retriever. It has no state: all episodes share one.

    Args:
        retriever: Where to search.
        top_k: Passages shown if the model does not say how many.
        deadline_s: Wall-clock limit of one call; None if the retriever never waits for anything, so that calls need no
            thread of their own.

    Raises:
        ConfigError: `top_k` is out of range.
    """

    name = "search"
    description = "Search a collection of documents. Returns the passages that match the query best."
    idempotent = True

    def __init__(self, retriever: Retriever, *, top_k: int = 3, deadline_s: float | None = None) -> None:
        if not 1 <= top_k <= MAX_TOP_K:
            raise ConfigError(f"top_k must be from 1 to {MAX_TOP_K}, got {top_k!r}.")
        self._retriever = retriever
        self._top_k = top_k
        self.inline = deadline_s is None
        self.deadline_s = Tool.deadline_s if deadline_s is None else deadline_s
        self.parameters: JsonDict = {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for: a few words or a question."},
                "top_k": {"type": "integer", "description": f"Number of passages, {top_k} if not given."},
            },
            "required": ["query"],
        }

    def check(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks names, types and ranges."""
        super().check(arguments)
        problems = []
        if len(arguments["query"]) > MAX_QUERY_CHARS:
            problems.append(f"query has {len(arguments['query'])} characters; at most {MAX_QUERY_CHARS} are accepted")
        if not 1 <= arguments.get("top_k", 1) <= MAX_TOP_K:
            problems.append(f"top_k must be from 1 to {MAX_TOP_K}, got {arguments['top_k']}")
        if problems:
            raise InvalidArgumentsError(problems)
        return arguments

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Searches.

        Raises:
            ToolError: The query is empty.
            InfrastructureError: The retriever cannot be reached.
        """
        query = arguments["query"]
        if not query.strip():
            raise ToolError("The query is empty: give a few words to search for.")
        return format_passages(self._retriever.retrieve(query, arguments.get("top_k", self._top_k)))


def format_passages(hits: Iterable[Hit]) -> str:
    r"""Hits as the model sees them, one passage a line.

    >>> from agentrl.tools.corpus import Document
    >>> format_passages([Hit(Document("7", "Bordeaux", "A port\ncity."), 1.0)])
    '[1] Bordeaux: A port city.'
    """
    lines = []
    for number, hit in enumerate(hits, 1):
        title, text = (_one_line(part) for part in (hit.document.title, hit.document.text))
        lines.append(f"[{number}] {_shorten(f'{title}: {text}' if title else text)}")
    return "\n".join(lines) or "No passage matches the query."


def local_search(
    corpus: Corpus, *, top_k: int = 3, backend: str | None = None, model: str | Path | None = None
) -> SearchTool:
    """The search tool over a corpus on this machine.

    Args:
        corpus: Documents, or the path of a corpus (see `load_corpus`) or of an index.
        top_k: Passages shown if the model does not say how many.
        backend: "fts5", "tantivy", "dense" or "hybrid"; by default what the index is, and fts5 for a corpus.
        model: Folder of the sentence-embedding model that "dense" and "hybrid" need.

    Raises:
        ConfigError: `top_k`, the back end or the model cannot be used.
        DataError: The corpus or index cannot be read, or the vectors are of another corpus or model.
        MissingExtraError: The back end needs a package that is not installed.
        UnknownNameError: There is no such back end.
    """
    return SearchTool(open_retriever(corpus, backend=backend, model=model), top_k=top_k)


def _one_line(text: str) -> str:
    """White space made single spaces, control characters left out: what was found is other people's text."""
    kept = (c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(kept)


def _shorten(passage: str) -> str:
    if len(passage) <= MAX_PASSAGE_CHARS:
        return passage
    return passage[: MAX_PASSAGE_CHARS - 4].rsplit(" ", 1)[0] + " ..."
