"""Reading documents: both row formats, and one clear line for everything else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import DataError
from agentrl.tools import Document, load_corpus
from agentrl.tools.corpus import parse_document


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_both_row_formats_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"id": "a", "title": "Rome", "text": "A city.", "extra": 1},
        {"id": 7, "contents": '"Paris"\nA city,\ntoo.'},
        "\n",
        {"id": "c", "contents": "No title line"},
    )
    assert load_corpus(path) == [
        Document("a", "Rome", "A city."),
        Document("7", "Paris", "A city,\ntoo."),
        Document("c", "", "No title line"),
    ]


def test_text_that_utf8_cannot_hold_is_cleaned() -> None:
    document = parse_document({"id": "a\ud800", "title": "\ud83d\ude00", "text": "a\0b"})
    assert document == Document("a\ufffd", "\U0001f600", "a\ufffdb")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json}\n", "row 2: Expecting property name"),
        ("[1]\n", "row 2: a JSON object was expected, got list"),
        ({"id": "b", "title": "t"}, '"text" is missing'),
        ({"id": "b", "text": "t"}, '"title" is missing'),
        ({"title": "t", "text": "t"}, '"id" is missing'),
        ({"id": "b", "title": "t", "text": 5}, '"text" must be text, got int'),
        ({"id": True, "title": "t", "text": "t"}, '"id" must be text, got bool'),
        ({"id": "b", "contents": ["x"]}, '"contents" must be text, got list'),
        ({"id": "a", "title": "t", "text": "t"}, "row 2: id 'a' is that of row 1 already"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = written(tmp_path, {"id": "a", "title": "t", "text": "t"}, row)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_corpus(path)
    assert str(path) in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.jsonl cannot be read: No such file"):
        load_corpus(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        load_corpus(tmp_path)
    (tmp_path / "latin").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 8\)"):
        load_corpus(tmp_path / "latin")
    with pytest.raises(DataError, match="holds no document"):
        load_corpus(written(tmp_path, "\n"))
