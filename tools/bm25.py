"""Full-text search with BM25 in SQLite FTS5, which is part of Python."""

import itertools
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, DataError
from agentrl.tools.corpus import Document, Hit

MAX_WORDS = 64
"""Words of a query that are looked up; the rest is ignored."""
_MAX_REMEMBERED = 100_000
_WORD = re.compile(r"[^\W_]+")
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x61726C73
"""Marks a database file as an index of this kind."""


class SearchIndex:
    """An index over documents, in memory or in a file; it never changes after it was built.

    The score is that of SQLite's `bm25()`: Okapi BM25 (Robertson and Zaragoza, 2009, equation 3.15) with k1 = 1.2 and
    b = 0.75 over title and text together, with words reduced to their stems (Porter, 1980). A word that is in half of
    the documents or more, whose weight would be zero or negative, weighs a millionth, and is looked up only where the
    other words find too little. Equal scores are ordered by document id.

    Several threads may search at once. A copy is the index itself; pickling carries the path, or the documents of an
    index in memory.

    Args:
        documents: What to index; ids must be unique.
        path: File to create; None keeps the index in memory.

    Raises:
        ConfigError: SQLite was built without FTS5, or the file exists.
        DataError: There is no document, two have the same id, or the file cannot be written.
    """

    def __init__(self, documents: Iterable[Document], path: str | Path | None = None) -> None:
        # In the order of ids, so that the row number breaks ties without reading any text.
        ordered = sorted(documents, key=lambda document: document.id)
        _check_ids(ordered)
        self.path = None if path is None else Path(path)
        if self.path is None:
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            _fill(connection, ordered)
            self._connect(connection)
        else:
            _write(self.path, ordered)
            self._connect(_open(self.path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens an index that was built with a path.

        Raises:
            DataError: The file is absent or is not such an index.
        """
        index = cls.__new__(cls)
        index.path = Path(path)
        index._connect(_open(index.path))
        return index

    def __len__(self) -> int:
        return int(self._num_documents)

    def search(self, query: str, top_k: int) -> list[Hit]:
        """The documents that match any word of the query best.

        Args:
            query: Plain words; punctuation and search operators mean nothing.
            top_k: Greatest number of hits.

        Returns:
            At most `top_k` hits, best first; none if no word of the query occurs.
        """
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))[:MAX_WORDS]
        if not words or top_k < 1:
            return []
        telling = [word for word in words if not self._is_common(word)]
        hits = self._best(telling, top_k)
        return hits if len(hits) == top_k or len(telling) == len(words) else self._best(words, top_k)

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        """The same as `search`: an index is a retriever."""
        return self.search(query, top_k)

    def documents(self) -> list[Document]:
        """All documents, ordered by id."""
        with self._lock:
            rows = self._connection.execute("SELECT id, title, text FROM documents ORDER BY number").fetchall()
        return [Document(*row) for row in rows]

    def _connect(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._common_words: dict[str, bool] = {}
        (self._num_documents,) = connection.execute("SELECT count(*) FROM documents").fetchone()

    def _best(self, words: Sequence[str], top_k: int) -> list[Hit]:
        if not words:
            return []
        pattern = " OR ".join(f'"{word}"' for word in words)
        ranked = "SELECT rowid, bm25(passages) AS score FROM passages WHERE passages MATCH ? ORDER BY 2, 1 LIMIT ?"
        joined = f"SELECT id, title, text, score FROM ({ranked}) AS best JOIN documents ON number = best.rowid"
        with self._lock:
            rows = self._connection.execute(f"{joined} ORDER BY score, number", (pattern, top_k)).fetchall()
        return [Hit(Document(id, title, text), -score) for id, title, text, score in rows]

    def _is_common(self, word: str) -> bool:
        """Whether a word is in half of the documents or more; scoring all those would take most of a search's time."""
        known = self._common_words.get(word)
        if known is None:
            enough = (self._num_documents + 1) // 2
            matches = "SELECT rowid FROM passages WHERE passages MATCH ? LIMIT ?"
            with self._lock:
                (count,) = self._connection.execute(
                    f"SELECT count(*) FROM ({matches})", (f'"{word}"', enough)
                ).fetchone()
            known = bool(count >= enough)
            if len(self._common_words) < _MAX_REMEMBERED:
                self._common_words[word] = known
        return known

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.documents(),)) if self.path is None else (type(self).load, (self.path,))


def is_index_file(path: str | Path) -> bool:
    """Whether a file is an SQLite database, that is, an index and not a corpus."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _check_ids(ordered: Sequence[Document]) -> None:
    if not ordered:
        raise DataError("An index needs at least one document, got none.")
    for before, after in itertools.pairwise(ordered):
        if before.id == after.id:
            raise DataError(f"Two documents have the id {before.id!r}; ids must be unique.")


def _fill(connection: sqlite3.Connection, ordered: Sequence[Document]) -> None:
    try:
        # The words alone (content='' keeps no second copy of the text); the documents are a table of their own.
        connection.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(title, text, content='', tokenize='porter unicode61')"
        )
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"The SQLite {sqlite3.sqlite_version} of this Python has no FTS5 ({error}). "
            "Use a Python built with it, as all from python.org, uv and conda are, or search over HTTP."
        ) from error
    connection.execute("CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT, title TEXT, text TEXT)")
    rows = [(number, doc.id, doc.title, doc.text) for number, doc in enumerate(ordered, 1)]
    connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
    connection.execute("INSERT INTO passages (rowid, title, text) SELECT number, title, text FROM documents")
    connection.execute("INSERT INTO passages (passages) VALUES ('optimize')")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.commit()


def _write(path: Path, ordered: Sequence[Document]) -> None:
    """Builds the file beside its place and moves it there whole."""
    if path.exists():
        raise ConfigError(f"{path} exists already: load it with SearchIndex.load, or remove it.")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        connection = sqlite3.connect(partial)
        try:
            connection.execute("PRAGMA journal_mode = OFF")
            _fill(connection, ordered)
        finally:
            connection.close()
        os.replace(partial, path)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"The index {path} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise DataError(f"The index {path} does not exist.")
    # Immutable: nothing locks the file, so any number of processes may read it, from a read-only place too.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True, check_same_thread=False)
    try:
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataError(f"{path} is not a search index: {error}.") from error
    if mark != _APPLICATION_ID:
        connection.close()
        raise DataError(f"{path} is an SQLite database, but not a search index of agentrl.")
    return connection
