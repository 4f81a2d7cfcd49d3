"""Documents in a file, read one at a time: an index of many passages needs no memory for their text."""

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from agentrl.errors import DataError
from agentrl.tools.corpus import Document

_TEXT, _ENDS = "documents.jsonl", "documents.ends"


class DocumentFile(Sequence[Document]):
    """The documents that `write_documents` wrote. Any number of threads and processes may read them.

    Args:
        folder: That the files lie in.

    Raises:
        DataError: The files are absent or do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self._ends = array("Q")
        try:
            self._ends.frombytes((folder / _ENDS).read_bytes())
            with open(folder / _TEXT, "rb") as file:
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"The documents of the index {folder} cannot be read: {error}.") from error
        if not self._ends or self._ends[-1] != len(self._text):
            raise DataError(f"The documents of the index {folder} are not whole: remove it and build it anew.")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Document: ...

    @overload
    def __getitem__(self, number: slice) -> list[Document]: ...

    def __getitem__(self, number: int | slice) -> Document | list[Document]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        begin = self._ends[number - 1] if number else 0
        return Document(*json.loads(self._text[begin : self._ends[number]]))


def write_documents(folder: Path, documents: Iterable[Document]) -> None:
    """Writes the text as lines of JSON, and beside it where each line ends, in bytes."""
    ends, end = array("Q"), 0
    with open(folder / _TEXT, "wb") as file:
        for document in documents:
            end += file.write(_line(document))
            ends.append(end)
    (folder / _ENDS).write_bytes(ends.tobytes())


def hash_documents(documents: Iterable[Document]) -> str:
    """SHA-256 of all ids, titles and texts in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(_line(document))
    return digest.hexdigest()


def _line(document: Document) -> bytes:
    return json.dumps([document.id, document.title, document.text]).encode() + b"\n"
