"""Answers of search servers in an SQLite file that any number of threads and processes use at a time."""

import contextlib
import enum
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.tools.corpus import Document, Hit

_BUSY_S = 60.0
_DAY_S = 86400.0
_KINDS = {0x61726C63: "cache", 0x61726C72: "recording"}
"""Marks in the header of the file: "arlc" and "arlr"."""
_TABLE = """CREATE TABLE results (
    key TEXT PRIMARY KEY, stored_at REAL NOT NULL, question TEXT NOT NULL, hits TEXT NOT NULL
) WITHOUT ROWID"""


class StoreMode(enum.StrEnum):
    """How a file of results is used."""

    READ_WRITE = "read_write"
    """A cache: what is too old is asked again, the oldest goes when the file is full."""
    RECORD = "record"
    """A recording: the first answer to a question stays, whatever its age and number."""
    REPLAY = "replay"
    """Only what a recording or a cache holds, whatever its age; nothing is asked and nothing changes."""


class ResultStore:
    """Hits by key, in a file that is made if need be.

    Every access opens the file anew (0.3 ms to read): nothing is held that a fork or a pickle would have to carry. It
    is in write-ahead mode, so that readers do not wait for writers, and what a killed process had stored stays. That
    mode needs a disk of this machine, not a network file system.

    A cache and a recording are different files, so that no cache ever forgets what a run needs to be repeated.

    Args:
        path: Of the file.
        mode: What it is used as.
        expires_days: Age at which an answer in a cache is asked again; fractions are fine.
        max_bytes: Size that a cache keeps to.
        clock: Gives the present time in seconds since 1970.

    Raises:
        ConfigError: The file is not there (replay), is something else, or cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        mode: StoreMode = StoreMode.READ_WRITE,
        *,
        expires_days: float = 30.0,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not expires_days > 0:
            raise ConfigError(f"expires_days must be positive, got {expires_days!r}.")
        self.path = Path(path).absolute()
        self.mode = mode
        self._expires_s = expires_days * _DAY_S if mode is StoreMode.READ_WRITE else float("inf")
        self._max_bytes = max_bytes
        self._clock = clock
        self._prepare()

    def get(self, key: str) -> list[Hit] | None:
        """The hits under a key; None without any that may still be used.

        Raises:
            InfrastructureError: The file cannot be read.
        """
        with self._transaction("DEFERRED") as connection:
            found = self._find(connection, key)
        return None if found is None else _decode(found)

    def put(self, key: str, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """Stores the hits unless somebody else has just done so, and returns those that are stored now.

        Args:
            key: Of the question.
            question: For people who look into the file.
            hits: The answer.

        Raises:
            InfrastructureError: The file cannot be written.
        """
        with self._transaction("IMMEDIATE") as connection:
            found = self._find(connection, key)
            if found is None:
                found = json.dumps([[*astuple(hit.document), hit.score] for hit in hits], ensure_ascii=False)
                row = (key, self._clock(), question, found)
                connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", row)
                if self.mode is StoreMode.READ_WRITE:
                    self._shrink(connection)
        return _decode(found)

    def __len__(self) -> int:
        with self._transaction("DEFERRED") as connection:
            (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
        return int(count)

    def _find(self, connection: sqlite3.Connection, key: str) -> str | None:
        oldest = self._clock() - self._expires_s
        query = "SELECT hits FROM results WHERE key = ? AND stored_at > ?"
        row = connection.execute(query, (key, oldest)).fetchone()
        return None if row is None else str(row[0])

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Forgets the oldest tenth until the rest fits; the file keeps its size and uses the room again."""
        while self._used_bytes(connection) > self._max_bytes:
            (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
            if count <= 1:
                return
            oldest = "SELECT key FROM results ORDER BY stored_at LIMIT ?"
            connection.execute(f"DELETE FROM results WHERE key IN ({oldest})", (max(1, count // 10),))

    def _used_bytes(self, connection: sqlite3.Connection) -> int:
        pages, unused, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - unused) * size)

    def _prepare(self) -> None:
        """Makes the file, or checks that it is what it should be."""
        if self.mode is StoreMode.REPLAY and not self.path.is_file():
            raise ConfigError(f"There is no recording {self.path} to replay: run once with mode: record to make it.")
        wanted = "recording" if self.mode is StoreMode.RECORD else "cache"
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _create(self.path, wanted)
            with contextlib.closing(self._open()) as connection:
                (mark,) = connection.execute("PRAGMA application_id").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.path} cannot be used to store search results: {error}.") from error
        kind = _KINDS.get(mark)
        if kind is None:
            raise ConfigError(f"{self.path} holds no search results of agentrl: give the path of a new file.")
        if kind != wanted and self.mode is not StoreMode.REPLAY:
            modes = "record or replay" if kind == "recording" else "read_write or replay"
            raise ConfigError(f"{self.path} is a {kind}: use it with mode {modes}, or give another path.")

    def _open(self) -> sqlite3.Connection:
        how = "mode=rwc"
        if self.mode is StoreMode.REPLAY:
            # Where nothing may be written, nobody writes: then SQLite needs no files for locks beside this one.
            changeable = os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
            how = "mode=rw" if changeable else "immutable=1"
        connection = sqlite3.connect(f"{self.path.as_uri()}?{how}", uri=True, timeout=_BUSY_S, isolation_level=None)
        connection.execute(f"PRAGMA query_only = {self.mode is StoreMode.REPLAY}")
        connection.execute("PRAGMA synchronous = NORMAL")  # survives kills; power cuts may take the last answers
        return connection

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(self._open()) as connection:
                connection.execute(f"BEGIN {kind}")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise InfrastructureError(f"The search results in {self.path} cannot be used: {error}.") from error


def _create(path: Path, kind: str) -> None:
    """Makes the file beside its place and puts it there whole; of several processes at a time, the first does it."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    (mark,) = (mark for mark, name in _KINDS.items() if name == kind)
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_TABLE)
            connection.execute("CREATE INDEX by_age ON results (stored_at)")
            connection.execute(f"PRAGMA application_id = {mark}")
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _decode(hits: str) -> list[Hit]:
    return [Hit(Document(*document), score) for *document, score in json.loads(hits)]
