"""Full-text search with BM25 in SQLite FTS5, which is part of Python."""

import itertools
import math
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, DataError
from agentrl.tools.corpus import Document, Hit, in_order
from agentrl.tools.retriever import LocalRetriever

MAX_WORDS = 64
"""Words of a query that are looked up; the rest is ignored."""
_MAX_REMEMBERED = 100_000
_WORD = re.compile(r"[^\W_]+")
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x61726C73
"""Marks a database file as an index of this kind."""


_K1 = 1.2
_FEW_ROWS = 2000
"""Rows that are scored in about 2 ms; below that there is nothing to save."""
_WORTH_IT = 2
"""How many times fewer rows have to be scored for leaving documents out to pay, as it takes three queries."""


class SearchIndex(LocalRetriever):
    """An index over documents, in memory or in a file; it never changes after it was built.

    The score is that of SQLite's `bm25()`: Okapi BM25 (Robertson and Zaragoza, 2009, equation 3.15) with k1 = 1.2 and
    b = 0.75 over title and text together, with words reduced to their stems (Porter, 1980). A word that is in half of
    the documents or more, whose weight would be zero or negative, weighs a millionth, and is looked up only where the
    other words find too little. Equal scores are ordered by document id.

    SQLite scores every row that it matches, which takes about a microsecond each, so that a word of a third of the
    documents would cost most of a search. Documents that hold none of a query's rarer words are therefore left out
    where the common words cannot lift them into the result. Hits, order and scores are the same as without that.

    Pickling carries the path, or the documents of an index in memory.

    Args:
        documents: What to index; ids must be unique.
        path: File to create; None keeps the index in memory.

    Raises:
        ConfigError: SQLite was built without FTS5, or the file exists.
        DataError: There is no document, two have the same id, or the file cannot be written.
    """

    def __init__(self, documents: Iterable[Document], path: str | Path | None = None) -> None:
        ordered = in_order(documents)
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
        words = dict.fromkeys(word.lower() for word in _WORD.findall(query))
        counts = {word: self._num_with(word) for word in list(words)[:MAX_WORDS]}
        present = sorted((word for word in counts if counts[word]), key=lambda word: (counts[word], word))
        if not present or top_k < 1:
            return []
        telling = [word for word in present if 2 * counts[word] < self._num_documents]
        best = self._best(telling, top_k) if telling else []
        return self._fetch(best if len(best) == top_k or len(telling) == len(present) else self._best(present, top_k))

    def retrieve_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """`search` for each query: an index is a retriever."""
        return [self.search(query, top_k) for query in queries]

    def documents(self) -> list[Document]:
        """All documents, ordered by id."""
        with self._lock:
            rows = self._connection.execute("SELECT id, title, text FROM documents ORDER BY number").fetchall()
        return [Document(*row) for row in rows]

    def _connect(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        (self._num_documents,) = connection.execute("SELECT count(*) FROM documents").fetchone()

    def _best(self, words: Sequence[str], top_k: int) -> list[tuple[float, int]]:
        """Negated score and number of the best documents, best first.

        Each of them holds one of the needed words. Its score is what those give it and, where it holds another word
        too, what the others give. So it is among the best by needed words alone, or among the best of those that hold
        both kinds, which are scored with all words.

        Args:
            words: That occur, rarest first.
            top_k: Greatest number of documents.
        """
        num_needed = self._num_needed(words, top_k)
        needed, others = _any_of(words[:num_needed]), _any_of(words[num_needed:])
        if not others:
            return self._match(needed, top_k)
        scores = {number: score for score, number in self._match(needed, top_k)}
        scores |= {number: score for score, number in self._match(f"({needed}) AND ({others})", top_k)}
        return sorted((score, number) for number, score in scores.items())[:top_k]

    def _num_needed(self, words: Sequence[str], top_k: int) -> int:
        """How many words, from the rarest on, such that each of the best documents holds one of them.

        The idea of MaxScore (Turtle and Flood, 1995): all the remaining words together cannot give a document the
        score of the last hit that the rarest words find alone. All words, where leaving some out would save nothing.
        """
        counts = [self._num_with(word) for word in words]
        totals = list(itertools.accumulate(counts))
        num_rarest = next((i for i, total in enumerate(totals, 1) if total >= top_k), len(words))
        if totals[-1] <= _FEW_ROWS or totals[-1] < _WORTH_IT * totals[num_rarest - 1]:
            return len(words)
        hits = self._match(_any_of(words[:num_rarest]), top_k)
        if len(hits) < top_k:
            return len(words)
        to_reach = -hits[-1][0]
        num_needed = len(words)
        while num_needed > num_rarest and (part := self._greatest_part(counts[num_needed - 1])) < to_reach:
            to_reach -= part
            num_needed -= 1
        return num_needed if totals[-1] >= _WORTH_IT * totals[num_needed - 1] else len(words)

    def _match(self, pattern: str, top_k: int) -> list[tuple[float, int]]:
        ranked = "SELECT bm25(passages), rowid FROM passages WHERE passages MATCH ? ORDER BY 1, 2 LIMIT ?"
        with self._lock:
            return self._connection.execute(ranked, (pattern, top_k)).fetchall()

    def _fetch(self, best: Sequence[tuple[float, int]]) -> list[Hit]:
        one = "SELECT id, title, text FROM documents WHERE number = ?"
        with self._lock:
            rows = [self._connection.execute(one, (number,)).fetchone() for _, number in best]
        return [Hit(Document(*row), -score) for row, (score, _) in zip(rows, best, strict=True)]

    def _num_with(self, word: str) -> int:
        """How many documents hold a word."""
        known = self._counts.get(word)
        if known is None:
            count = "SELECT count(*) FROM passages WHERE passages MATCH ?"
            with self._lock:
                (known,) = self._connection.execute(count, (_any_of([word]),)).fetchone()
            if len(self._counts) < _MAX_REMEMBERED:
                self._counts[word] = known
        return int(known)

    def _greatest_part(self, count: int) -> float:
        """What a word in so many documents adds to a score at most: its weight by k1 + 1, the limit of many uses."""
        weight = math.log((self._num_documents - count + 0.5) / (count + 0.5))
        return max(weight, 1e-6) * (_K1 + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.documents(),)) if self.path is None else (type(self).load, (self.path,))


def is_index_file(path: str | Path) -> bool:
    """Whether a file is an SQLite database, that is, an index and not a corpus."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _any_of(words: Sequence[str]) -> str:
    """A pattern in FTS5's language. Words are quoted, and hold nothing but letters and digits."""
    return " OR ".join(f'"{word}"' for word in words)


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
