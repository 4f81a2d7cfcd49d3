"""BM25 in SQLite: the scores are the formula's, the order is fixed, and nothing in a query is syntax."""

import copy
import math
import pickle
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError, DataError
from agentrl.tools import Document, SearchIndex, bm25

CITIES = [
    Document("1", "Bordeaux", "Bordeaux is a port city on the river Garonne."),
    Document("2", "Garonne", "The Garonne flows through Toulouse and Bordeaux."),
    Document("3", "Berlin", "Berlin lies on the Spree."),
    Document("4", "Toulouse", "Toulouse is called the pink city."),
    Document("5", "Spree", "A river of four hundred kilometres."),
]
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


def ids(index: SearchIndex, query: str, top_k: int = 3) -> list[str]:
    return [hit.document.id for hit in index.search(query, top_k)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8), min_size=1, max_size=8), st.lists(st.sampled_from(WORDS)))
def test_scores_are_those_of_the_formula(texts: list[list[str]], query: list[str]) -> None:
    documents = [Document(f"d{i}", " ".join(text[:2]), " ".join(text[2:])) for i, text in enumerate(texts)]
    expected = reference_scores(documents, query)
    hits = SearchIndex(documents).search(" ".join(query), 10)
    assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-9)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_best_documents_come_first() -> None:
    index = SearchIndex(CITIES)
    assert ids(index, "Bordeaux: which port?", 2) == ["1", "2"]
    assert ids(index, "spree") == ["3", "5"]  # once in each, and with 6 words document 3 is the shorter one
    assert index.search("Spree", 1)[0].document == CITIES[2]
    assert len(index) == 5


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


def test_words_match_by_their_stem_and_without_case_or_accents() -> None:
    index = SearchIndex([Document("1", "", "Flowing rivers"), Document("2", "", "Café"), Document("3", "", "x")])
    assert ids(index, "RIVER flows") == ["1"]
    assert ids(index, "cafe") == ["2"]


def test_equal_scores_are_ordered_by_id_whatever_the_order_of_building() -> None:
    documents = [Document(id, "same", "words here") for id in ("b", "a", "10", "9", "c")]
    for order in (documents, documents[::-1]):
        assert ids(SearchIndex(order), "words", 4) == ["10", "9", "a", "b"]


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


@given(st.text(max_size=100), st.integers(0, 5))
def test_any_text_is_a_query(query: str, top_k: int) -> None:
    assert len(_SHARED.search(query, top_k)) <= top_k


def test_a_query_without_matches_finds_nothing() -> None:
    assert _SHARED.search("zebra", 3) == []
    assert _SHARED.search("", 3) == []
    assert _SHARED.search("spree", 0) == []


def test_only_the_first_words_are_looked_up() -> None:
    padding = " ".join(f"x{i}" for i in range(bm25.MAX_WORDS - 1))
    assert ids(_SHARED, f"{padding} spree") == ["3", "5"]
    assert ids(_SHARED, f"{padding} y spree") == []


def test_an_index_in_a_file_gives_the_same_and_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "index ?#%.db"
    built = SearchIndex(CITIES, path)
    loaded = SearchIndex.load(path)
    for query in ("river", "pink city Toulouse"):
        assert built.search(query, 5) == loaded.search(query, 5) == _SHARED.search(query, 5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match="exists already"):
        SearchIndex(CITIES, path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        loaded._connection.execute("DELETE FROM documents")


def test_copies_are_the_index_and_pickles_are_equal_to_it(tmp_path: Path) -> None:
    for index in (_SHARED, SearchIndex(CITIES, tmp_path / "index.db")):
        assert copy.deepcopy(index) is index
        assert copy.copy(index) is index
        again = pickle.loads(pickle.dumps(index))
        assert again.path == index.path
        assert again.search("river city", 5) == index.search("river city", 5)
        assert again.documents() == index.documents() == CITIES


def test_several_threads_search_at_once() -> None:
    queries = ["river", "city", "Toulouse Bordeaux", "Spree"] * 5
    expected = [_SHARED.search(query, 5) for query in queries]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = [_SHARED.search(query, 5) for query in queries]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: expected for number in range(6)}


def test_bad_documents_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one document"):
        SearchIndex([])
    with pytest.raises(DataError, match="Two documents have the id '1'"):
        SearchIndex([CITIES[0], CITIES[1], CITIES[0]])
    with pytest.raises(DataError, match="does not exist"):
        SearchIndex.load(tmp_path / "absent")
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
