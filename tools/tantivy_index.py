"""Full-text search with BM25 in tantivy, a search library in Rust: for large corpora and many queries."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.text import clean_text
from agentrl.tools.corpus import Document, Hit, in_order
from agentrl.tools.index_folder import create_folder, read_card
from agentrl.tools.retriever import LocalRetriever

if TYPE_CHECKING:
    import tantivy

KIND = "tantivy"
MAX_WORDS = 64
"""Words of a query that are looked up; the rest is ignored."""
_HEAP_BYTES = 512 << 20
"""Greatest memory of the writer; an index that fits is one segment, whose scores do not depend on timing."""
_WORDS, _DOCUMENT = "words", "document"
_ANALYZER = "agentrl"


class TantivyIndex(LocalRetriever):
    """An index over documents, in memory or in a folder; it never changes after it was built.

    The score is Okapi BM25 with k1 = 1.2 and b = 0.75 over title and text together, with words without case or accents
    and reduced to their stems (Porter2). It differs from that of `SearchIndex` in two points: the weight of a word
    that n of N documents hold is log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative, and lengths above 40
    words are rounded down to one of 216 steps. Equal scores are ordered by document id.

    A query is never parsed: its words are looked up one by one.

    Args:
        documents: What to index; ids must be unique.
        path: Folder to create; None keeps the index in memory.

    Raises:
        ConfigError: The folder exists.
        DataError: There is no document, two have the same id, or the folder cannot be written.
        MissingExtraError: The package tantivy is not installed.
    """

    def __init__(self, documents: Iterable[Document], path: str | Path | None = None) -> None:
        ordered = in_order(documents)
        library = _library()
        self.path = None if path is None else Path(path)
        if self.path is None:
            self._connect(_fill(library.Index(_schema(library)), ordered))
        else:
            if not create_folder(self.path, KIND, lambda folder: _write(folder, ordered)):
                raise ConfigError(f"{path} exists already: load it with TantivyIndex.load, or remove it.")
            self._connect(_open(self.path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens an index that was built with a path.

        Raises:
            DataError: The folder is absent, is no such index, or cannot be written to (tantivy locks it for a moment).
            MissingExtraError: The package tantivy is not installed.
        """
        index = cls.__new__(cls)
        index.path = Path(path)
        index._connect(_open(index.path))
        return index

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """For every query the documents that match any word of it best; none if no word occurs."""
        return [self._search(query, top_k) for query in queries]

    def documents(self) -> list[Document]:
        """All documents, ordered by id."""
        everything = _library().Query.all_query()
        found = self._searcher.search(everything, len(self), count=False).hits
        return sorted((self._document(address) for _, address in found), key=lambda document: document.id)

    def _connect(self, index: "tantivy.Index") -> None:
        index.config_reader("manual")  # the index never changes, so nothing has to be watched
        index.reload()
        self._schema = index.schema
        self._searcher = index.searcher()
        self._analyzer = _analyzer(_library())

    def _search(self, query: str, top_k: int) -> list[Hit]:
        words = list(dict.fromkeys(self._analyzer.analyze(clean_text(query))))[:MAX_WORDS]
        if not words or top_k < 1:
            return []
        library = _library()
        terms = [library.Query.term_query(self._schema, _WORDS, word, "freq") for word in words]
        found = self._best(library.Query.boolean_query([(library.Occur.Should, term) for term in terms]), top_k)
        hits = [Hit(self._document(address), float(score)) for score, address in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.document.id))[:top_k]

    def _best(self, query: "tantivy.Query", top_k: int) -> list[tuple[Any, "tantivy.DocAddress"]]:
        """Score and address of the best, and of all that score the same as the last of them."""
        limit = top_k + 1
        while True:
            found = self._searcher.search(query, limit, count=False).hits
            if len(found) < limit:
                return found
            if found[-1][0] < found[top_k - 1][0]:
                return [hit for hit in found if hit[0] >= found[top_k - 1][0]]
            limit *= 4

    def _document(self, address: "tantivy.DocAddress") -> Document:
        return Document(*(part.decode() for part in self._searcher.doc(address)[_DOCUMENT]))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.documents(),)) if self.path is None else (type(self).load, (self.path,))


def _library() -> Any:
    try:
        import tantivy
    except ImportError as error:
        raise MissingExtraError("tantivy", "The search back end 'tantivy'") from error
    return tantivy


def _analyzer(library: Any) -> "tantivy.TextAnalyzer":
    filters = library.Filter
    builder = library.TextAnalyzerBuilder(library.Tokenizer.simple())
    for part in (filters.lowercase(), filters.ascii_fold(), filters.stemmer("english")):
        builder = builder.filter(part)
    analyzer: tantivy.TextAnalyzer = builder.build()
    return analyzer


def _schema(library: Any) -> "tantivy.Schema":
    builder = library.SchemaBuilder()
    builder.add_text_field(_WORDS, tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_bytes_field(_DOCUMENT, stored=True, indexed=False)  # id, title and text: kept, and not searched in
    schema: tantivy.Schema = builder.build()
    return schema


def _fill(index: "tantivy.Index", documents: Iterable[Document]) -> "tantivy.Index":
    library = _library()
    index.register_tokenizer(_ANALYZER, _analyzer(library))
    writer = index.writer(_HEAP_BYTES, 1)
    for document in documents:
        row = library.Document()
        for text in (document.title, document.text):
            row.add_text(_WORDS, text)
        for text in (document.id, document.title, document.text):
            row.add_bytes(_DOCUMENT, text.encode())
        writer.add_document(row)
    writer.commit()
    writer.wait_merging_threads()
    return index


def _write(folder: Path, documents: Sequence[Document]) -> dict[str, Any]:
    library = _library()
    try:
        _fill(library.Index(_schema(library), path=str(folder)), documents)
    except ValueError as error:  # what the library raises, whatever happened
        raise OSError(str(error)) from error
    return {"num_documents": len(documents), "analyzer": "simple, lowercase, ascii_fold, stemmer(english)"}


def _open(path: Path) -> "tantivy.Index":
    read_card(path, KIND)
    try:
        index: tantivy.Index = _library().Index.open(str(path))
    except ValueError as error:
        raise DataError(f"The index {path} cannot be opened: {error}.") from error
    return index
