"""Search with tantivy: the formula, the order of ties, and nothing in a query that is syntax."""

import copy
import math
import pickle
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.tools import Document, tantivy_index
from agentrl.tools.tantivy_index import MAX_WORDS, TantivyIndex

CITIES = [
    Document("1", "Bordeaux", "Bordeaux is a port city on the river Garonne."),
    Document("2", "Garonne", "The Garonne flows through Toulouse and Bordeaux."),
    Document("3", "Berlin", "Berlin lies on the Spree."),
    Document("4", "Toulouse", "Toulouse is called the pink city."),
    Document("5", "Spree", "A river of four hundred kilometres."),
]
WORDS = [f"w{number}" for number in range(12)]  # the stemmer leaves them as they are
_SHARED = TantivyIndex(CITIES)


def reference_scores(documents: Sequence[Document], query: Sequence[str]) -> dict[str, float]:
    """Okapi BM25, k1 = 1.2 and b = 0.75, with the weight that is never negative (Robertson and Zaragoza, 2009, 3.1)."""
    texts = {document.id: f"{document.title} {document.text}".split() for document in documents}
    mean_length = sum(map(len, texts.values())) / len(texts)
    scores: dict[str, float] = {}
    for word in set(query):
        num_with = sum(word in text for text in texts.values())
        weight = math.log(1 + (len(texts) - num_with + 0.5) / (num_with + 0.5))
        for id, text in texts.items():
            if count := text.count(word):
                norm = 1.2 * (1 - 0.75 + 0.75 * len(text) / mean_length)
                scores[id] = scores.get(id, 0.0) + weight * count * 2.2 / (count + norm)
    return scores


def ids(index: TantivyIndex, query: str, top_k: int = 3) -> list[str]:
    return [hit.document.id for hit in index.retrieve(query, top_k)]


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=40), min_size=1, max_size=8), st.lists(st.sampled_from(WORDS))
)
def test_scores_are_those_of_the_formula(texts: list[list[str]], query: list[str]) -> None:
    documents = [Document(f"d{i}", " ".join(text[:2]), " ".join(text[2:])) for i, text in enumerate(texts)]
    hits = TantivyIndex(documents).retrieve(" ".join(query), 10)
    expected = reference_scores(documents, query)
    assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)  # it counts in float32
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_best_documents_come_first() -> None:
    assert ids(_SHARED, "Bordeaux: which port?", 2) == ["1", "2"]
    assert _SHARED.retrieve("Toulouse pink", 1)[0].document == CITIES[3]
    assert len(_SHARED) == 5
    assert _SHARED.retrieve_many(["Spree", "zebra", "pink"], 1) == [
        _SHARED.retrieve("Spree", 1),
        [],
        _SHARED.retrieve("pink", 1),
    ]


def test_words_match_by_their_stem_and_without_case_or_accents() -> None:
    index = TantivyIndex([Document("1", "", "Flowing rivers"), Document("2", "", "Café"), Document("3", "", "x")])
    assert ids(index, "RIVER flows") == ["1"]
    assert ids(index, "cafe") == ["2"]


@pytest.mark.parametrize("top_k", [1, 3, 7, 40])
def test_equal_scores_are_ordered_by_id_whatever_the_order_of_building(top_k: int) -> None:
    documents = [Document(str(number), "same", "words here") for number in range(30)]
    documents += [Document("best", "", "words words"), Document("other", "", "text")]
    expected = ["best", *sorted(str(number) for number in range(30))]
    for order in (documents, documents[::-1]):
        assert ids(TantivyIndex(order), "words", top_k) == expected[:top_k]


@pytest.mark.parametrize("top_k", [1, 3, 7, 40])
def test_equal_scores_are_ordered_by_id_however_the_rows_lie(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Large indexes have several segments, in any order; here the rows lie in the opposite order of ids.
    monkeypatch.setattr(tantivy_index, "in_order", lambda documents: sorted(documents, key=lambda d: d.id)[::-1])
    index = TantivyIndex([Document(str(number), "same", "words here") for number in range(30)])
    assert ids(index, "words", top_k) == sorted(str(number) for number in range(30))[:top_k]


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ('"', ""),
        ("(", ""),
        ("\ud800", ""),
        ("text:spree", "text spree"),
        ("document:3", "document 3"),
        ("river AND spree", "river and spree"),
        ("NOT spree", "not spree"),
        ("-spree +river", "spree river"),
        ("spre*", "spre"),
        ("spree^100 river", "spree 100 river"),
        ("spre~2", "spre 2"),
        ("/.*/", ""),
        ("*", ""),
        ("[a TO z]", "a to z"),
        ("IN [spree]", "in spree"),
        ("river\0spree", "river spree"),
        ('"pink city"~3', "pink city 3"),
        ("spree " * 5000, "spree"),
        ("x" * 100_000, ""),
    ],
)
def test_no_query_is_taken_for_syntax(query: str, plain: str) -> None:
    assert _SHARED.retrieve(query, 5) == _SHARED.retrieve(plain, 5)


@given(st.text(max_size=100), st.integers(0, 5))
def test_any_text_is_a_query(query: str, top_k: int) -> None:
    assert len(_SHARED.retrieve(query, top_k)) <= top_k


@given(st.lists(st.sampled_from(["+", "-", "*", "AND", "NOT", '"', "(", ")", ":", "~1", "^2", "spree", "zebra"])))
def test_operators_neither_require_nor_forbid(parts: list[str]) -> None:
    assert {"3", "5"} <= set(ids(_SHARED, " ".join([*parts, "spree"]), 5))


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=5))
def test_any_text_is_a_document(texts: list[str]) -> None:
    documents = [Document(str(number), text, text) for number, text in enumerate(texts)]
    assert TantivyIndex(documents).documents() == documents


def test_only_the_first_words_are_looked_up() -> None:
    padding = " ".join(f"x{i}" for i in range(MAX_WORDS - 1))
    assert ids(_SHARED, f"{padding} spree") == ["3", "5"]  # of 6 and 7 words
    assert ids(_SHARED, f"{padding} y spree") == []
    assert ids(_SHARED, "spree", 0) == []


def test_an_index_in_a_folder_gives_the_same_and_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "an index"
    built = TantivyIndex(CITIES, path)
    loaded = TantivyIndex.load(path)
    for query in ("river", "pink city Toulouse"):
        assert built.retrieve(query, 5) == loaded.retrieve(query, 5) == _SHARED.retrieve(query, 5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match="exists already: load it"):
        TantivyIndex(CITIES, path)


def test_copies_are_the_index_and_pickles_are_equal_to_it(tmp_path: Path) -> None:
    for index in (_SHARED, TantivyIndex(CITIES, tmp_path / "index")):
        assert copy.deepcopy(index) is copy.copy(index) is index
        again = pickle.loads(pickle.dumps(index))
        assert again.path == index.path
        assert again.retrieve("river city", 5) == index.retrieve("river city", 5)
        assert again.documents() == index.documents() == CITIES


def test_several_threads_search_at_once() -> None:
    queries = ["river", "city", "Toulouse Bordeaux", "Spree"] * 5
    expected = [_SHARED.retrieve(query, 5) for query in queries]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = [_SHARED.retrieve(query, 5) for query in queries]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: expected for number in range(6)}


def test_bad_documents_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one document"):
        TantivyIndex([])
    with pytest.raises(DataError, match="Two documents have the id '1'"):
        TantivyIndex([CITIES[0], CITIES[1], CITIES[0]])
    with pytest.raises(DataError, match="does not exist"):
        TantivyIndex.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not a search index"):
        TantivyIndex.load(tmp_path / "empty")
    TantivyIndex(CITIES, tmp_path / "damaged")
    (tmp_path / "damaged" / "meta.json").unlink()
    with pytest.raises(DataError, match="damaged cannot be opened"):
        TantivyIndex.load(tmp_path / "damaged")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        TantivyIndex(CITIES, tmp_path / "file" / "index")


def test_without_the_package_the_command_to_type_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tantivy", None)
    with pytest.raises(MissingExtraError, match=r"'tantivy'.* pip install 'agentrl-framework\[tantivy\]'"):
        TantivyIndex(CITIES)
