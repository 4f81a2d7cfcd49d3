"""Full-text search leaves documents out that cannot be among the best; nobody can tell by the result."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_index import reference_scores

from agentrl.tools import Document, SearchIndex, bm25

WORDS = [f"w{number}" for number in range(10)]


def zipf_documents(num_documents: int, seed: int) -> list[Document]:
    """Word number r is drawn in proportion to 1 / (r + 1), as in a language: w0 is common, w9 is rare."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    texts = [rng.choices(WORDS, weights, k=rng.randint(1, 5)) for _ in range(num_documents)]
    return [Document(f"{number:03}", "", " ".join(text)) for number, text in enumerate(texts)]


def matches(index: SearchIndex) -> list[str]:
    """The patterns whose rows are scored from now on."""
    seen: list[str] = []
    pattern = re.compile(r"SELECT bm25.* MATCH '(.*)' ORDER BY")
    index._connection.set_trace_callback(lambda sql: seen.extend(pattern.findall(sql)))
    return seen


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out wherever it is right, also where it would save nothing."""
    monkeypatch.setattr(bm25, "_FEW_ROWS", -1)
    monkeypatch.setattr(bm25, "_WORTH_IT", 0)


@settings(max_examples=150)
@given(st.integers(1, 60), st.integers(0, 10**6), st.lists(st.sampled_from(WORDS), min_size=1), st.integers(1, 8))
def test_hits_are_those_of_the_formula(num_documents: int, seed: int, query: list[str], top_k: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "_FEW_ROWS", -1)
        patch.setattr(bm25, "_WORTH_IT", 0)
        documents = zipf_documents(num_documents, seed)
        hits = SearchIndex(documents).search(" ".join(query), top_k)
    rarer = [word for word in set(query) if 2 * sum(word in d.text.split() for d in documents) < num_documents]
    expected = reference_scores(documents, rarer)
    if len(expected) < top_k:  # then words of half of the documents count too
        expected = reference_scores(documents, query)
    best = sorted((-round(score, 9), id) for id, score in expected.items())[:top_k]
    assert [(-round(hit.score, 9), hit.document.id) for hit in hits] == best


@pytest.mark.usefixtures("eager")
def test_documents_without_the_rare_word_are_not_scored() -> None:
    # 100 documents: "rare" in 2, "often" in 40. The weights are log(98.5 / 2.5) = 3.67 and log(60.5 / 40.5) = 0.40, so
    # "often" adds less than 0.40 * 2.2 = 0.88, however often it is used, and "rare" alone gives more than 3.
    texts = ["rare one", "rare often"] + ["often often often"] * 39 + ["other text"] * 59
    index = SearchIndex([Document(f"{number:02}", "", text) for number, text in enumerate(texts)])
    seen = matches(index)
    assert [hit.document.id for hit in index.search("often rare", 2)] == ["01", "00"]
    assert seen == ['"rare"', '"rare"', '("rare") AND ("often")']


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("rare", "best", "patterns"),
    [
        # "rare" once in 20 words: mean length (20 * 20 + 30 * 60 + 50) / 100 = 22.5, so its score is
        # 1.37 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 20 / 22.5)) = 1.43, and that of 60 times "often" is
        # 0.84 * 2.2 * 60 / (60 + 1.2 * (0.25 + 0.75 * 60 / 22.5)) = 1.76, near its bound of 0.84 * 2.2 = 1.84.
        ("rare" + " word" * 19, "often", 2),
        # 60 times "rare" give nearly 1.37 * 2.2 = 3.0: no document without it can be the best.
        (" ".join(["rare"] * 60), "rare", 3),
    ],
)
def test_the_bound_of_a_word_is_endless_repetition(rare: str, best: str, patterns: int) -> None:
    # 100 documents: "rare" in 20, of weight log(80.5 / 20.5) = 1.37, "often" in 30, of weight log(70.5 / 30.5) = 0.84.
    texts = [rare] * 20 + [" ".join(["often"] * 60)] * 30 + ["other"] * 50
    documents = [Document(f"{number:02}", "", text) for number, text in enumerate(texts)]
    index = SearchIndex(documents)
    seen = matches(index)
    (hit,) = index.search("rare often", 1)
    assert hit.document.text.split()[0] == best
    assert hit.score == pytest.approx(max(reference_scores(documents, ["rare", "often"]).values()))
    assert len(seen) == patterns


@pytest.mark.usefixtures("eager")
def test_common_words_count_together() -> None:
    # 100 documents of mean length (20 * 20 + 38 * 60 + 42) / 100 = 27.2. "rare" in 20 gives
    # 1.37 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 20 / 27.2)) = 1.54. "often" and "very" in 38, of weight
    # log(62.5 / 38.5) = 0.48, can give 1.07 each, and give together
    # 2 * 0.48 * 2.2 * 30 / (30 + 1.2 * (0.25 + 0.75 * 60 / 27.2)) = 1.98.
    texts = ["rare" + " word" * 19] * 20 + ["often very " * 30] * 38 + ["other"] * 42
    index = SearchIndex([Document(f"{number:02}", "", text) for number, text in enumerate(texts)])
    (hit,) = index.search("rare often very", 1)
    assert (hit.document.id, hit.score) == ("20", pytest.approx(1.98, abs=0.005))


def test_small_result_sets_are_scored_at_once() -> None:
    index = SearchIndex(zipf_documents(200, 3))
    seen = matches(index)
    index.search("w9 w5 w2", 2)
    assert len(seen) == 1


def test_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SearchIndex(zipf_documents(500, 3))
    monkeypatch.setattr(bm25, "_FEW_ROWS", 50)
    seen = matches(index)
    found = index.search("w9 w2 w1", 2)
    assert seen[-1] == '("w9") AND ("w2" OR "w1")'
    monkeypatch.setattr(bm25, "_FEW_ROWS", 10**9)
    assert index.search("w9 w2 w1", 2) == found
    assert len(seen) == 4
