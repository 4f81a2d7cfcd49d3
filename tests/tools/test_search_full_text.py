"""What both full-text back ends promise: order, words, any text as a query, copies, threads, indexes on disk."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError, DataError
from agentrl.tools import Document, SearchIndex, bm25, tantivy_index
from agentrl.tools.tantivy_index import TantivyIndex

CITIES = [
    Document("1", "Bordeaux", "Bordeaux is a port city on the river Garonne."),
    Document("2", "Garonne", "The Garonne flows through Toulouse and Bordeaux."),
    Document("3", "Berlin", "Berlin lies on the Spree."),
    Document("4", "Toulouse", "Toulouse is called the pink city."),
    Document("5", "Spree", "A river of four hundred kilometres."),
]
Index = SearchIndex | TantivyIndex
Kind = type[SearchIndex] | type[TantivyIndex]
MAX_WORDS = {SearchIndex: bm25.MAX_WORDS, TantivyIndex: tantivy_index.MAX_WORDS}
_of_cities: dict[Kind, Index] = {kind: kind(CITIES) for kind in (SearchIndex, TantivyIndex)}

pytestmark = pytest.mark.parametrize("kind", [SearchIndex, TantivyIndex])


def ids(index: Index, query: str, top_k: int = 3) -> list[str]:
    return [hit.document.id for hit in index.retrieve(query, top_k)]


def test_the_best_documents_come_first(kind: Kind) -> None:
    index = _of_cities[kind]
    assert ids(index, "Bordeaux: which port?", 2) == ["1", "2"]
    assert ids(index, "spree") == ["3", "5"]  # once in each, and with 6 words document 3 is the shorter one
    assert index.retrieve("Spree", 1)[0].document == CITIES[2]
    assert index.retrieve("Toulouse pink", 1)[0].document == CITIES[3]
    assert len(index) == 5


def test_many_queries_are_answered_in_their_order(kind: Kind) -> None:
    index = _of_cities[kind]
    queries = ["Spree", "zebra", "pink"]
    assert index.retrieve_many(queries, 1) == [index.retrieve("Spree", 1), [], index.retrieve("pink", 1)]


def test_words_match_by_their_stem_and_without_case_or_accents(kind: Kind) -> None:
    index = kind([Document("1", "", "Flowing rivers"), Document("2", "", "Café"), Document("3", "", "x")])
    assert ids(index, "RIVER flows") == ["1"]
    assert ids(index, "cafe") == ["2"]


@pytest.mark.parametrize("top_k", [1, 3, 7, 40])
def test_equal_scores_are_ordered_by_id_whatever_the_order_of_building(kind: Kind, top_k: int) -> None:
    tied = ["b", "a", "c", *map(str, range(30))]
    documents = [Document(id, "same", "words here") for id in tied]
    documents += [Document("best", "", "words words"), Document("other", "", "text")]
    expected = ["best", *sorted(tied)]
    for order in (documents, documents[::-1]):
        assert ids(kind(order), "words", top_k) == expected[:top_k]


@given(st.text(max_size=100), st.integers(0, 5))
def test_any_text_is_a_query(kind: Kind, query: str, top_k: int) -> None:
    assert len(_of_cities[kind].retrieve(query, top_k)) <= top_k


def test_a_query_without_matches_finds_nothing(kind: Kind) -> None:
    for query, top_k in (("zebra", 3), ("", 3), ("spree", 0)):
        assert _of_cities[kind].retrieve(query, top_k) == []


def test_only_the_first_words_are_looked_up(kind: Kind) -> None:
    padding = " ".join(f"x{i}" for i in range(MAX_WORDS[kind] - 1))
    assert ids(_of_cities[kind], f"{padding} spree") == ["3", "5"]  # of 6 and 7 words
    assert ids(_of_cities[kind], f"{padding} y spree") == []


@pytest.mark.parametrize("name", ["an index", "index ?#%.db"])
def test_an_index_on_disk_gives_the_same_and_is_loaded_again(kind: Kind, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    built = kind(CITIES, path)
    loaded = kind.load(path)
    for query in ("river", "pink city Toulouse"):
        assert built.retrieve(query, 5) == loaded.retrieve(query, 5) == _of_cities[kind].retrieve(query, 5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match="exists already: load it"):
        kind(CITIES, path)


def test_copies_are_the_index_and_pickles_are_equal_to_it(kind: Kind, tmp_path: Path) -> None:
    for index in (_of_cities[kind], kind(CITIES, tmp_path / "index")):
        assert copy.deepcopy(index) is copy.copy(index) is index
        again = pickle.loads(pickle.dumps(index))
        assert again.path == index.path
        assert again.retrieve("river city", 5) == index.retrieve("river city", 5)
        assert again.documents() == index.documents() == CITIES


def test_several_threads_search_at_once(kind: Kind) -> None:
    index = _of_cities[kind]
    queries = ["river", "city", "Toulouse Bordeaux", "Spree"] * 5
    expected = [index.retrieve(query, 5) for query in queries]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = [index.retrieve(query, 5) for query in queries]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: expected for number in range(6)}


def test_bad_documents_and_paths_are_refused(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one document"):
        kind([])
    with pytest.raises(DataError, match="Two documents have the id '1'"):
        kind([CITIES[0], CITIES[1], CITIES[0]])
    with pytest.raises(DataError, match="does not exist"):
        kind.load(tmp_path / "absent")
