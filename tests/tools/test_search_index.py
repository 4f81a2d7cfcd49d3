"""BM25 in SQLite: the scores are the formula's, the order is fixed, and nothing in a query is syntax."""

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_full_text import CITIES, ids

from agentrl.errors import ConfigError, DataError
from agentrl.tools import Document, SearchIndex

_SHARED = SearchIndex(CITIES)
WORDS = [f"w{number}" for number in range(12)]  # the stemmer leaves them as they are


def reference_scores(documents: Sequence[Document], query: Sequence[str]) -> dict[str, float]:
    """Okapi BM25 as in Robertson and Zaragoza (2009), equation 3.15, with k1 = 1.2 and b = 0.75."""
    texts = {document.id: f"{document.title} {document.text}".split() for document in documents}
    mean_length = sum(map(len, texts.values())) / len(texts)
    scores: dict[str, float] = {}
    for word in set(query):
        num_with = sum(word in text for text in texts.values())
        weight = math.log((len(texts) - num_with + 0.5) / (num_with + 0.5))
        weight = weight if weight > 0 else 1e-6  # where SQLite departs from the equation
        for id, text in texts.items():
            if count := text.count(word):
                norm = 1.2 * (1 - 0.75 + 0.75 * len(text) / mean_length)
                scores[id] = scores.get(id, 0.0) + weight * count * 2.2 / (count + norm)
    return scores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8), min_size=1, max_size=8), st.lists(st.sampled_from(WORDS)))
def test_scores_are_those_of_the_formula(texts: list[list[str]], query: list[str]) -> None:
    documents = [Document(f"d{i}", " ".join(text[:2]), " ".join(text[2:])) for i, text in enumerate(texts)]
    expected = reference_scores(documents, query)
    hits = SearchIndex(documents).search(" ".join(query), 10)
    assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-9)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_common_words_are_looked_up_only_where_others_find_too_little() -> None:
    # "the" is in 3 of the 5 documents, "spree" in 2.
    asked: list[str] = []
    index = SearchIndex(CITIES)
    index._connection.set_trace_callback(lambda sql: asked.append(sql) if "bm25" in sql else None)
    assert ids(index, "the Spree", 2) == ["3", "5"]
    assert len(asked) == 1
    assert '"the"' not in asked[0]
    assert ids(index, "the Spree", 5)[:2] == ["3", "5"]
    assert sorted(ids(index, "the Spree", 5)) == ["1", "2", "3", "4", "5"]
    assert sorted(ids(index, "the", 5)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ('"', ""),
        ("(", ""),
        ("\ud800", ""),
        ("\N{SNOWMAN}", ""),
        ("NEAR(river city, 2)", "near river city 2"),
        ("text:spree", "text spree"),
        ("river AND spree", "river and spree"),
        ("NOT spree", "not spree"),
        ("spree OR", "spree or"),
        ("-spree", "spree"),
        ("spre*", "spre"),
        ("^spree {title} + river", "spree title river"),
        ("river\0spree", "river spree"),
        ("river_spree", "river spree"),
        ('"pink city"', "pink city"),
        ("'; DROP TABLE documents; --", "drop table documents"),
        ("spree " * 5000, "spree"),
    ],
)
def test_no_query_is_taken_for_syntax(query: str, plain: str) -> None:
    assert _SHARED.search(query, 5) == _SHARED.search(plain, 5)
    assert len(_SHARED) == 5


def test_searching_is_retrieving_for_one_query() -> None:
    assert _SHARED.search("river Spree", 3) == _SHARED.retrieve("river Spree", 3) != []


def test_a_loaded_index_is_read_only(tmp_path: Path) -> None:
    SearchIndex(CITIES, tmp_path / "index.db")
    loaded = SearchIndex.load(tmp_path / "index.db")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        loaded._connection.execute("DELETE FROM documents")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but a text of some length " * 10)
    with pytest.raises(DataError, match="is not a search index"):
        SearchIndex.load(tmp_path / "text")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(DataError, match="not a search index of agentrl"):
        SearchIndex.load(tmp_path / "other.db")
    with pytest.raises(DataError, match="cannot be written"):
        SearchIndex(CITIES, tmp_path / "no folder" / "index.db")


def test_a_sqlite_without_fts5_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutFts5(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("fts5(", "fts_absent("), *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=WithoutFts5, **kwargs))
    with pytest.raises(ConfigError, match=r"has no FTS5 \(no such module"):
        SearchIndex(CITIES)
