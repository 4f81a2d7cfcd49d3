"""Documents to search in, read from JSON lines."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import DataError
from agentrl.text import clean_text


@dataclass(frozen=True, slots=True)
class Document:
    """One passage of a corpus.

    Example:
        Document(id="42", title="Bordeaux", text="Bordeaux is a port city on the river Garonne.")
    """

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found.

    Example:
        Hit(Document("42", "Bordeaux", "Bordeaux is a port city ..."), score=3.7)
    """

    document: Document
    score: float
    """Higher is better; comparable within one result only."""


def load_corpus(path: str | Path) -> list[Document]:
    r"""Reads a corpus of JSON lines.

    Each line is an object with "id" (text or integer) and either "title" and "text", or "contents" in the form of
    the common Wikipedia dumps, `"Title"\ntext`. Other keys and empty lines are skipped.

    Raises:
        DataError: The file cannot be read, holds no document, or a row is wrong; the message names file and row.
    """
    documents: list[Document] = []
    rows: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, document in _documents(file, path):
                if document.id in rows:
                    raise DataError(
                        f"{path}, row {number}: id {document.id!r} is that of row {rows[document.id]} already; "
                        "ids must be unique."
                    )
                rows[document.id] = number
                documents.append(document)
    except OSError as error:
        raise DataError(f"The corpus {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The corpus {path} is not UTF-8 text (byte {error.start}).") from error
    if not documents:
        raise DataError(f"The corpus {path} holds no document; one JSON object per line was expected.")
    return documents


def in_order(documents: Iterable[Document]) -> list[Document]:
    """The documents of an index, ordered by id: then a document's number breaks ties without a look at the text.

    Raises:
        DataError: There is no document, or two have the same id.
    """
    ordered = sorted(documents, key=lambda document: document.id)
    if not ordered:
        raise DataError("An index needs at least one document, got none.")
    for before, after in itertools.pairwise(ordered):
        if before.id == after.id:
            raise DataError(f"Two documents have the id {before.id!r}; ids must be unique.")
    return ordered


def parse_document(row: Any) -> Document:
    """A document from one row of a corpus or of a search server's answer.

    Raises:
        ValueError: Saying what the row lacks.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object was expected, got {type(row).__name__}")
    contents = row.get("contents", row.get("content"))
    if contents is not None:
        title, text = split_contents(_text(contents, "contents"))
    else:
        title, text = (_text(row.get(key), key) for key in ("title", "text"))
    return Document(clean_text(_id(row.get("id"))), clean_text(title), clean_text(text))


def split_contents(contents: str) -> tuple[str, str]:
    r"""Title and text of a passage in the one-string form; a single line is all text.

    >>> split_contents('"Bordeaux"\nA port city.'), split_contents("A port city.")
    (('Bordeaux', 'A port city.'), ('', 'A port city.'))
    """
    title, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    title = title.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text


def join_contents(document: Document) -> str:
    r"""Title and text as one string, which `split_contents` takes apart again.

    >>> join_contents(Document("7", "Bordeaux", "A port city."))
    '"Bordeaux"\nA port city.'
    """
    return f'"{" ".join(document.title.split())}"\n{document.text}'


def _documents(lines: Iterator[str], path: str | Path) -> Iterator[tuple[int, Document]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parse_document(json.loads(line))
            except (ValueError, RecursionError) as error:  # JSON errors are ValueErrors
                raise DataError(f"{path}, row {number}: {error}.") from error


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    problem = "is missing" if value is None else f"must be text, got {type(value).__name__}"
    raise ValueError(f'"{key}" {problem}; a document has "id", "title" and "text" (or "id" and "contents")')


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id")
