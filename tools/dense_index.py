"""Dense search: the documents whose vectors fit that of the query best, by comparing with every one."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agentrl.errors import ConfigError, DataError
from agentrl.text import clean_text
from agentrl.tools.corpus import Document, Hit, in_order
from agentrl.tools.document_file import DocumentFile, hash_documents, write_documents
from agentrl.tools.embedder import Embedder, Vectors
from agentrl.tools.index_folder import create_folder, read_card
from agentrl.tools.nearest import longest_row, nearest
from agentrl.tools.retriever import LocalRetriever

KIND = "dense"
_VECTORS = "vectors.npy"
_CHUNK = 1024
"""Documents that are embedded in one go."""


class DenseIndex(LocalRetriever):
    """Vectors of documents, in memory or in a folder; it never changes after it was built.

    The score is the inner product of the vectors of query and document, which for most models is the cosine. The
    search is exact: it reads every vector, a few megabytes at a time. In a folder, vectors and documents stay on disk
    and are shared by all processes that read them. Equal scores are ordered by document id.

    Args:
        documents: What to index; ids must be unique.
        embedder: Turns documents, and later queries, into vectors.
        path: Folder to create; None keeps the index in memory.
        vectors: Of the documents in the order given, [documents, dimension], where the same model made them already;
            else the embedder is asked, 1024 documents at a time.

    Raises:
        ConfigError: The folder exists.
        DataError: There is no document, two have the same id, the vectors cannot be used, or the folder cannot be
            written.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        embedder: Embedder,
        path: str | Path | None = None,
        *,
        vectors: Vectors | None = None,
    ) -> None:
        given = list(documents)
        ordered = in_order(given)
        if vectors is not None:
            vectors = _arranged(vectors, given)
        self._embedder = embedder
        self.path = None if path is None else Path(path)
        if self.path is None:
            vectors = _embed(embedder, ordered) if vectors is None else vectors
            self._connect(ordered, vectors, longest_row(vectors))
        else:
            if not create_folder(self.path, KIND, lambda folder: _write(folder, ordered, embedder, vectors)):
                raise ConfigError(f"{path} exists already: load it with DenseIndex.load, or remove it.")
            self._open(self.path, read_card(self.path, KIND))

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder, documents: Iterable[Document] | None = None) -> Self:
        """Opens an index that was built with a path.

        Args:
            path: The folder.
            embedder: The same model that made the vectors.
            documents: What the index should hold; None takes it as it is.

        Raises:
            DataError: The folder is absent or no such index, another model made its vectors, or it is about other
                documents.
        """
        index = cls.__new__(cls)
        index.path = Path(path)
        index._embedder = embedder
        card = read_card(path, KIND)
        model = card["model"]
        if model["fingerprint"] != embedder.fingerprint:
            raise DataError(
                f"The vectors in {path} were made by the model {model['name']!r} ({model['fingerprint'][:12]}), and "
                f"queries would be embedded by {embedder.name!r} ({embedder.fingerprint[:12]}): these cannot be "
                "compared. Give the model that made them, or remove the folder to have it built anew."
            )
        if documents is not None and hash_documents(in_order(documents)) != card["documents"]:
            raise DataError(
                f"The index {path} is about other documents: the corpus has changed since it was built. "
                "Remove the folder to have it built anew."
            )
        index._open(index.path, card)
        return index

    @classmethod
    def load_or_build(cls, path: str | Path, embedder: Embedder, documents: Sequence[Document]) -> Self:
        """Opens the index, built first where there is none; of several processes one builds, the others wait.

        Raises:
            DataError: As `load` does, and where the folder cannot be written.
        """
        if not Path(path).exists():
            ordered = in_order(documents)
            create_folder(Path(path), KIND, lambda folder: _write(folder, ordered, embedder, None))
        return cls.load(path, embedder, documents)

    def __len__(self) -> int:
        return len(self._documents)

    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """For every query the documents whose vectors fit best; none for a query without any text."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        hits: list[list[Hit]] = [[] for _ in queries]
        if asked and top_k > 0:
            vectors = self._embedder.embed_queries([clean_text(queries[number]) for number in asked])
            if vectors.shape != (len(asked), self._vectors.shape[1]) or not np.isfinite(vectors).all():
                raise DataError(
                    f"The model {self._embedder.name!r} gave query vectors of shape {vectors.shape}, and "
                    f"{(len(asked), self._vectors.shape[1])} finite numbers were expected."
                )
            for number, found in zip(asked, nearest(self._vectors, vectors, top_k, longest=self._longest), strict=True):
                hits[number] = [Hit(self._documents[row], score) for score, row in found]
        return hits

    def documents(self) -> list[Document]:
        """All documents, ordered by id."""
        return list(self._documents)

    def _connect(self, documents: Sequence[Document], vectors: Vectors, longest: float) -> None:
        self._documents = documents
        self._vectors = vectors
        self._longest = longest

    def _open(self, path: Path, card: Mapping[str, Any]) -> None:
        documents = DocumentFile(path)
        try:
            vectors = np.load(path / _VECTORS, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"The vectors of the index {path} cannot be read: {error}.") from error
        if vectors.ndim != 2 or len(vectors) != len(documents):
            raise DataError(f"The index {path} has {len(documents)} documents and vectors of shape {vectors.shape}.")
        self._connect(documents, vectors, float(card["longest_vector"]))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return _in_memory, (self.documents(), self._embedder, np.asarray(self._vectors))
        return type(self).load, (self.path, self._embedder)


def _in_memory(documents: list[Document], embedder: Embedder, vectors: Vectors) -> DenseIndex:
    return DenseIndex(documents, embedder, vectors=vectors)


def _arranged(vectors: NDArray[Any], documents: Sequence[Document]) -> Vectors:
    """Ready-made vectors, checked and brought into the order of document ids."""
    if vectors.ndim != 2 or len(vectors) != len(documents) or not vectors.shape[1]:
        raise DataError(f"{len(documents)} vectors were expected, one for each document, got shape {vectors.shape}.")
    order = sorted(range(len(documents)), key=lambda number: documents[number].id)
    if order == list(range(len(order))):
        return _checked(vectors)
    return _checked(vectors[order])


def _checked(vectors: NDArray[Any]) -> Vectors:
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(single).all():
        raise DataError("A vector of a document holds a number that is not finite in float32.")
    return single


def _embed(embedder: Embedder, documents: Sequence[Document]) -> Vectors:
    texts = [f"{document.title}\n{document.text}" if document.title else document.text for document in documents]
    vectors = embedder.embed_documents(texts)
    if vectors.ndim != 2 or len(vectors) != len(documents):
        raise DataError(f"The model {embedder.name!r} gave shape {vectors.shape} for {len(documents)} documents.")
    return _checked(vectors)


def _write(folder: Path, documents: Sequence[Document], embedder: Embedder, vectors: Vectors | None) -> dict[str, Any]:
    if vectors is None:
        first = _embed(embedder, documents[:_CHUNK])
        shape = (len(documents), first.shape[1])
        stored = np.lib.format.open_memmap(folder / _VECTORS, mode="w+", dtype=np.float32, shape=shape)
        stored[: len(first)] = first
        for begin in range(_CHUNK, len(documents), _CHUNK):
            stored[begin : begin + _CHUNK] = _embed(embedder, documents[begin : begin + _CHUNK])
        stored.flush()
        vectors = stored
    else:
        np.save(folder / _VECTORS, vectors)
    write_documents(folder, documents)
    model = {"name": embedder.name, "fingerprint": embedder.fingerprint}
    return {
        "num_documents": len(documents),
        "documents": hash_documents(documents),
        "model": model,
        "longest_vector": longest_row(vectors),
    }
