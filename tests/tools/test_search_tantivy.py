"""Search with tantivy: the formula, the order of ties, and nothing in a query that is syntax."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_full_text import CITIES, ids

from agentrl.errors import DataError, MissingExtraError
from agentrl.tools import Document, tantivy_index
from agentrl.tools.tantivy_index import TantivyIndex

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


@given(st.lists(st.sampled_from(["+", "-", "*", "AND", "NOT", '"', "(", ")", ":", "~1", "^2", "spree", "zebra"])))
def test_operators_neither_require_nor_forbid(parts: list[str]) -> None:
    assert {"3", "5"} <= set(ids(_SHARED, " ".join([*parts, "spree"]), 5))


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=5))
def test_any_text_is_a_document(texts: list[str]) -> None:
    documents = [Document(str(number), text, text) for number, text in enumerate(texts)]
    assert TantivyIndex(documents).documents() == documents


def test_bad_folders_are_refused(tmp_path: Path) -> None:
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
