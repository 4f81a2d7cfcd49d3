"""What every search back end is: queries in, documents out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

from agentrl.tools.corpus import Hit


class Retriever(Protocol):
    """Anything that finds documents for a query."""

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first.

        Raises:
            InfrastructureError: What lies behind cannot be reached.
        """
        ...


class LocalRetriever(ABC):
    """A retriever over documents on this machine, which answers many queries in one go.

    It never changes after it was built, so a copy is the retriever itself, and any number of threads may use it. A
    query is plain text: no character or word of it is an operator.
    """

    @abstractmethod
    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """For every query at most `top_k` hits, best first; equal scores are ordered by document id."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents."""

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits for one query, best first."""
        return self.retrieve_many([query], top_k)[0]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


def retrieve_many(retriever: Retriever, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
    """The hits of every query: in one go where the retriever can do that, else one query after the other."""
    if isinstance(retriever, LocalRetriever):
        return retriever.retrieve_many(queries, top_k)
    return [retriever.retrieve(query, top_k) for query in queries]
