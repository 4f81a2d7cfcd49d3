"""Reciprocal rank fusion: the arithmetic by hand, ties, and any kind of retriever."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_models import HashEmbedder

from agentrl.errors import ConfigError
from agentrl.tools import Document, Hit, Retriever, SearchIndex
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.hybrid import HybridRetriever, fuse

A, B, C, D = (Document(id, "", f"text {id}") for id in "abcd")
Ranking = list[Hit]


class Fixed:
    """Gives one ranking whatever is asked, and remembers how many hits were wanted. It knows no batches."""

    def __init__(self, *documents: Document) -> None:
        self.hits = [Hit(document, 1.0) for document in documents]
        self.asked: list[tuple[str, int]] = []

    def retrieve(self, query: str, top_k: int) -> Ranking:
        self.asked.append((query, top_k))
        return self.hits[:top_k]


def fused(*retrievers: Retriever, top_k: int = 10) -> list[tuple[str, float]]:
    return [(hit.document.id, hit.score) for hit in HybridRetriever(retrievers).retrieve("q", top_k)]


def test_the_arithmetic_by_hand() -> None:
    # a: 1/61 + 1/63 = 0.0322665..., b: 1/62 + 1/61 = 0.0325225..., c: 1/63, d: 1/62.
    found = fused(Fixed(A, B, C), Fixed(B, D, A))
    assert [id for id, _ in found] == ["b", "a", "d", "c"]
    expected = [0.0325224748810153, 0.0322664585, 0.0161290322580645, 0.0158730158730159]
    assert [score for _, score in found] == pytest.approx(expected, rel=1e-8)


def test_many_good_ranks_beat_one_first_rank() -> None:
    # a: 1/61 = 0.0164; b: 2/70 = 0.0286 at rank 10 of both.
    others = [Document(f"x{number}", "", "") for number in range(17)]
    found = fused(Fixed(A, *others[:8], B), Fixed(*others[8:], B), top_k=1)
    assert found == [("b", pytest.approx(2 / 70))]


def test_equal_scores_are_ordered_by_id() -> None:
    assert fused(Fixed(B, A), Fixed(A, B)) == [("a", 1 / 61 + 1 / 62), ("b", 1 / 61 + 1 / 62)]
    # Ranks 1, 2, 3 in three orders: the sums are equal only if they are exact.
    found = fused(Fixed(C, B, A), Fixed(A, C, B), Fixed(B, A, C))
    assert [id for id, _ in found] == ["a", "b", "c"]
    assert len({score for _, score in found}) == 1


def test_the_text_is_that_of_the_first_retriever() -> None:
    other = Document("a", "other", "text")
    (hit,) = HybridRetriever([Fixed(A), Fixed(other)]).retrieve("q", 3)
    assert hit.document is A


def test_a_hundred_hits_of_each_are_fused_or_as_many_as_asked_for() -> None:
    first, second = Fixed(A, B), Fixed()
    hybrid = HybridRetriever([first, second])
    assert len(hybrid.retrieve("x", 1)) == 1
    assert len(hybrid.retrieve("y", 250)) == 2
    assert first.asked == second.asked == [("x", 100), ("y", 250)]
    assert hybrid.retrieve("z", 0) == []
    assert HybridRetriever([Fixed(), Fixed()]).retrieve("x", 3) == []


@given(st.lists(st.lists(st.sampled_from([A, B, C, D]), unique=True), min_size=2, max_size=4), st.randoms())
def test_the_order_of_retrievers_does_not_matter(rankings: list[list[Document]], random: object) -> None:
    hits = [[Hit(document, 0.0) for document in ranking] for ranking in rankings]
    shuffled = hits.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fuse(shuffled) == fuse(hits)
    assert {hit.document for hit in fuse(hits)} == {document for ranking in rankings for document in ranking}


def test_real_retrievers_are_asked_in_one_go() -> None:
    documents = [Document(str(number), "", f"word{number % 7} number {number}") for number in range(30)]
    words, meaning = SearchIndex(documents), DenseIndex(documents, HashEmbedder())
    hybrid = HybridRetriever([words, meaning])
    assert len(hybrid) == 30
    queries = ["word3 number 10", "zebra", "word1"]
    for query, hits in zip(queries, hybrid.retrieve_many(queries, 5), strict=True):
        assert hits == fuse([words.retrieve(query, 100), meaning.retrieve(query, 100)])[:5]
    assert copy.deepcopy(hybrid) is hybrid
    assert pickle.loads(pickle.dumps(hybrid)).retrieve("word3", 5) == hybrid.retrieve("word3", 5)


def test_one_retriever_cannot_be_fused() -> None:
    with pytest.raises(ConfigError, match="two retrievers or more, got 1"):
        HybridRetriever([Fixed()])
    assert len(HybridRetriever([Fixed(), Fixed()])) == 0
