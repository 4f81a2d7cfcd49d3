"""Several retrievers fused by the ranks that they give."""

import math
from collections.abc import Sequence

from agentrl.errors import ConfigError
from agentrl.tools.corpus import Document, Hit
from agentrl.tools.retriever import LocalRetriever, Retriever, retrieve_many

RANK_OFFSET = 60
"""k in the paper, which fixed it in a pilot study and found that the choice is not critical."""
DEPTH = 100
"""Hits of each retriever that are fused."""


class HybridRetriever(LocalRetriever):
    """Reciprocal rank fusion: finds what any of several retrievers finds, and ranks first what many rank high.

    The score of a document d is the sum of 1 / (60 + rank(d)) over the retrievers that found it, with ranks counted
    from 1 (Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods", SIGIR 2009). Scores of the retrievers, which have different units, play no part. The first 100 hits of
    each are fused, or `top_k` if that is more.

    Documents are the same if their ids are; the text is that of the first retriever that found it. Equal scores are
    ordered by document id.

    Args:
        retrievers: Two or more, each over the same documents.

    Raises:
        ConfigError: There are fewer than two.
    """

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        if len(retrievers) < 2:
            raise ConfigError(f"Fusion needs two retrievers or more, got {len(retrievers)}.")
        self.retrievers = tuple(retrievers)

    def __len__(self) -> int:
        """Documents of the largest of the local retrievers; 0 if all are remote."""
        return max((len(part) for part in self.retrievers if isinstance(part, LocalRetriever)), default=0)

    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """For every query at most `top_k` documents, by fused score."""
        if top_k < 1:
            return [[] for _ in queries]
        found = [retrieve_many(retriever, queries, max(DEPTH, top_k)) for retriever in self.retrievers]
        return [fuse(rankings)[:top_k] for rankings in zip(*found, strict=True)]


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """One ranking from several, as `HybridRetriever` says.

    >>> a, b = Document("a", "", "x"), Document("b", "", "y")
    >>> [(hit.document.id, hit.score) for hit in fuse([[Hit(a, 9.0), Hit(b, 8.0)], [Hit(b, 0.3)]])]
    [('b', 0.03252247488101534), ('a', 0.01639344262295082)]
    """
    documents: dict[str, Document] = {}
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            id = hit.document.id
            documents.setdefault(id, hit.document)
            parts.setdefault(id, []).append(1.0 / (RANK_OFFSET + rank))
    scores = {id: math.fsum(part) for id, part in parts.items()}  # exact, so that equal ranks are equal scores
    ordered = sorted(scores, key=lambda id: (-scores[id], id))
    return [Hit(documents[id], scores[id]) for id in ordered]
