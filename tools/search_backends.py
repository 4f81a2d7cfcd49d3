"""The ways to search documents on this machine by name, for configs and the command line."""

from collections.abc import Callable, Iterable
from pathlib import Path

from agentrl.errors import ConfigError, DataError
from agentrl.registry import Registry
from agentrl.tools import dense_index, tantivy_index
from agentrl.tools.bm25 import SearchIndex, is_index_file
from agentrl.tools.corpus import Document, load_corpus
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.embedder import SentenceEmbedder
from agentrl.tools.hybrid import HybridRetriever
from agentrl.tools.index_folder import kind_of_folder
from agentrl.tools.retriever import LocalRetriever
from agentrl.tools.tantivy_index import TantivyIndex

Corpus = Iterable[Document] | str | Path
"""Documents, or the path of a corpus (see `load_corpus`) or of an index."""

FTS5, HYBRID = "fts5", "hybrid"

BACKENDS: Registry[Callable[[Corpus, str | Path | None], LocalRetriever]] = Registry("search back end")
"""Name to what opens a corpus, or an index of that kind, with the folder of an embedding model or None."""


def open_retriever(corpus: Corpus, *, backend: str | None = None, model: str | Path | None = None) -> LocalRetriever:
    """Opens a search over a corpus or an index.

    Args:
        corpus: Documents, or the path of a corpus (see `load_corpus`) or of an index.
        backend: "fts5", "tantivy", "dense" or "hybrid" (fts5 and dense); None for what the index is, or fts5.
        model: Folder of a sentence-embedding model, for "dense" and "hybrid". The vectors of a corpus file are kept
            beside it, in a folder named by both (see `vectors_path`).

    Raises:
        ConfigError: The back end does not fit the index, or the model is missing, not needed, or cannot be loaded.
        DataError: The corpus or index cannot be read, or the vectors are of another corpus or model.
        MissingExtraError: The back end needs a package that is not installed.
        UnknownNameError: There is no such back end.
    """
    kind = _kind(corpus) if isinstance(corpus, str | Path) else None
    name = backend or kind or FTS5
    opened = BACKENDS[name]
    if kind not in (None, name) and (kind, name) != (dense_index.KIND, HYBRID):
        raise ConfigError(f"{corpus} is a {kind} index and cannot be searched with {name!r}: give the corpus itself.")
    return opened(corpus, model)


def vectors_path(corpus: str | Path, model: str | Path) -> Path:
    """Where dense search keeps the vectors of a corpus file.

    >>> str(vectors_path("data/wiki.jsonl", "models/minilm"))
    'data/wiki.jsonl.minilm.dense'
    """
    path = Path(corpus)
    return path.with_name(f"{path.name}.{Path(model).resolve().name}.dense")


@BACKENDS.register(FTS5)
def _open_fts5(corpus: Corpus, model: str | Path | None) -> LocalRetriever:
    _refuse_model(FTS5, model)
    if isinstance(corpus, str | Path) and _kind(corpus):
        return SearchIndex.load(corpus)
    return SearchIndex(_documents(corpus))


@BACKENDS.register(tantivy_index.KIND)
def _open_tantivy(corpus: Corpus, model: str | Path | None) -> LocalRetriever:
    _refuse_model(tantivy_index.KIND, model)
    if isinstance(corpus, str | Path) and _kind(corpus):
        return TantivyIndex.load(corpus)
    return TantivyIndex(_documents(corpus))


def _open_dense(corpus: Corpus, model: str | Path | None) -> DenseIndex:
    if model is None:
        raise ConfigError("Dense search needs model=FOLDER, the sentence-embedding model that embeds the queries.")
    if not isinstance(corpus, str | Path):
        return DenseIndex(corpus, SentenceEmbedder(model))
    if _kind(corpus):
        return DenseIndex.load(corpus, SentenceEmbedder(model))
    documents = load_corpus(corpus)
    return DenseIndex.load_or_build(vectors_path(corpus, model), SentenceEmbedder(model), documents)


BACKENDS.add(dense_index.KIND, _open_dense)


@BACKENDS.register(HYBRID)
def _open_hybrid(corpus: Corpus, model: str | Path | None) -> LocalRetriever:
    dense = _open_dense(corpus if isinstance(corpus, str | Path) else list(corpus), model)
    return HybridRetriever([SearchIndex(dense.documents()), dense])


def _kind(path: str | Path) -> str | None:
    """The kind of an index; None for anything else."""
    if not Path(path).is_dir():
        return FTS5 if is_index_file(path) else None
    kind = kind_of_folder(path)
    if kind is None:
        raise DataError(f"{path} is a folder, but not a search index; a corpus is a file of JSON lines.")
    return kind


def _documents(corpus: Corpus) -> Iterable[Document]:
    return load_corpus(corpus) if isinstance(corpus, str | Path) else corpus


def _refuse_model(backend: str, model: str | Path | None) -> None:
    if model is not None:
        raise ConfigError(f"The search back end {backend!r} uses no model; 'dense' and 'hybrid' do. Got {model}.")
