"""A retriever that remembers: equal questions at the same time are asked once, and answers are kept in a file."""

import hashlib
import json
import unicodedata
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.text import clean_text
from agentrl.tools.corpus import Hit
from agentrl.tools.result_store import ResultStore, StoreMode
from agentrl.tools.search import Retriever
from agentrl.tools.single_flight import SingleFlight

_flights: SingleFlight[list[Hit]] = SingleFlight()
"""Of the whole process: each environment may have made a tool of its own for the same server."""


class CachedRetriever:
    """Answers from a file, or asks and keeps the answer. Failures are never kept.

    Args:
        source: What is asked, with everything that its answers depend on: provider, address and parameters.
        retriever: Asks it; None if the file has to do (replay).
        store: The file; None keeps nothing, and equal questions at the same time are still asked once.
    """

    def __init__(self, source: dict[str, Any], retriever: Retriever | None, store: ResultStore | None) -> None:
        self._source = source
        self._retriever = retriever
        self._store = store

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first.

        Raises:
            InfrastructureError: The server cannot be asked, or the recording does not hold this question.
        """
        query = normalized(query)
        question = json.dumps({**self._source, "query": query, "top_k": top_k}, sort_keys=True, ensure_ascii=False)
        where = None if self._store is None else (self._store.path, self._store.mode)
        return list(_flights.run((where, question), lambda: self._answer(question, query, top_k)))

    def _answer(self, question: str, query: str, top_k: int) -> list[Hit]:
        key = hashlib.sha256(question.encode()).hexdigest()
        known = None if self._store is None else self._store.get(key)
        if known is not None:
            return known
        if self._retriever is None:
            raise InfrastructureError(self._missing(query, top_k))
        hits = self._retriever.retrieve(query, top_k)
        return hits if self._store is None else self._store.put(key, question, hits)

    def _missing(self, query: str, top_k: int) -> str:
        assert self._store is not None, "only a store can stand in for a retriever"
        return (
            f"The recording {self._store.path} holds no answer of {self._source['provider']} to {query!r} with "
            f"top_k={top_k} and these parameters. A replay asks nobody: run with mode: {StoreMode.RECORD} to add it."
        )


def normalized(query: str) -> str:
    r"""The form in which a query is sent and remembered: one way to write each character, and single spaces.

    Upper and lower case stay apart: services tell "US" from "us".

    >>> normalized("  cafe\u0301\n prices ") == "caf\u00e9 prices"
    True
    """
    return " ".join(unicodedata.normalize("NFC", clean_text(query)).split())
