"""Dense search against brute force; indexes in folders; nothing stale is ever used."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_models import HashEmbedder

from agentrl.errors import ConfigError, DataError
from agentrl.tools import Document, dense_index, nearest
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.embedder import Vectors
from agentrl.tools.nearest import longest_row

DOCUMENTS = [Document(str(number), f"title {number}", f"text of number {number}") for number in range(50)]
EMBEDDER = HashEmbedder()


def cosines(query: str) -> list[tuple[float, str]]:
    """Every document by brute force, one product at a time: the cosine and the id, best first."""
    (asked,) = EMBEDDER.embed_queries([query]).tolist()
    found = []
    for document in DOCUMENTS:
        (vector,) = EMBEDDER.embed_documents([f"{document.title}\n{document.text}"]).tolist()
        found.append((sum(a * b for a, b in zip(asked, vector, strict=True)), document.id))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def small_blocks(monkeypatch: pytest.MonkeyPatch, num_rows: int, dimension: int = 16) -> None:
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 4 * dimension * num_rows)


@pytest.mark.parametrize("num_rows", [1, 7, 50, 1000])
@pytest.mark.parametrize("top_k", [1, 5, 50, 60])
def test_hits_are_those_of_brute_force(num_rows: int, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, num_rows)
    for query in ("first", "second"):
        hits = DenseIndex(DOCUMENTS, EMBEDDER).retrieve(query, top_k)
        expected = cosines(query)[:top_k]
        assert [hit.document.id for hit in hits] == [id for _, id in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected], abs=1e-12)


def test_batch_block_and_neighbours_do_not_change_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    index = DenseIndex(DOCUMENTS, EMBEDDER)
    queries = [f"query {number}" for number in range(600)]  # more than are asked in one go
    alone = [index.retrieve(query, 4) for query in queries]
    assert index.retrieve_many(queries, 4) == alone
    small_blocks(monkeypatch, 3)
    assert index.retrieve_many(queries, 4) == alone


@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_equal_vectors_are_ordered_by_id(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, num_rows)
    (vector,) = EMBEDDER.embed_queries(["all the same"])
    vectors = np.stack([vector] * 40 + [-vector] * 10)
    for order in (slice(None), slice(None, None, -1)):
        index = DenseIndex(DOCUMENTS[order], EMBEDDER, vectors=vectors[order])
        found = [hit.document.id for hit in index.retrieve("a query", 6)]
        equal = sorted(
            (str(number) for number in range(40)) if cosine(vector, "a query") > 0 else map(str, range(40, 50))
        )
        assert found == equal[:6]


def cosine(vector: Vectors, query: str) -> float:
    return float(vector @ EMBEDDER.embed_queries([query])[0])


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 6), st.sampled_from([1.0, 1e-20, 1e15]))
def test_the_nearest_rows_are_exact_whatever_the_scale(seed: int, num_rows: int, top_k: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(-2, 3, size=(num_rows, 3))  # small integers: many ties, and products are exact
    vectors = (few * scale).astype(np.float32)
    query = rng.integers(-2, 3, size=(1, 3)).astype(np.float32)
    (found,) = nearest.nearest(vectors, query, top_k, longest=longest_row(vectors))
    products = [sum(int(a) * int(b) for a, b in zip(row, query[0], strict=True)) for row in few]
    expected = sorted(range(num_rows), key=lambda row: (-products[row], row))[:top_k]
    assert [row for _, row in found] == expected


def test_ready_made_vectors_go_with_their_documents() -> None:
    reverse = DOCUMENTS[::-1]
    vectors = EMBEDDER.embed_documents([f"{document.title}\n{document.text}" for document in reverse])
    index = DenseIndex(reverse, EMBEDDER, vectors=vectors)
    assert index.retrieve("first", 9) == DenseIndex(DOCUMENTS, EMBEDDER).retrieve("first", 9)


@pytest.mark.parametrize("query", ["", " \n", "\t"])
def test_a_query_without_text_finds_nothing(query: str) -> None:
    index = DenseIndex(DOCUMENTS, EMBEDDER)
    assert index.retrieve(query, 3) == []
    assert index.retrieve_many(["x", query, "y"], 1) == [index.retrieve("x", 1), [], index.retrieve("y", 1)]
    assert index.retrieve_many([], 3) == []
    assert index.retrieve("x", 0) == []


@given(st.text(max_size=50))
def test_any_text_is_a_query(query: str) -> None:
    assert len(DenseIndex(DOCUMENTS[:3], EMBEDDER).retrieve(query, 2)) in (0, 2)


# In folders -----------------------------------------------------------------------------------------------------------


def test_an_index_in_a_folder_gives_the_same_and_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_index, "_CHUNK", 7)
    expected = DenseIndex(DOCUMENTS, EMBEDDER).retrieve("first", 9)
    path = tmp_path / "an index"
    log = tmp_path / "log"
    assert DenseIndex(DOCUMENTS, HashEmbedder(log=log), path).retrieve("first", 9) == expected
    loaded = DenseIndex.load(path, EMBEDDER)
    assert loaded.retrieve("first", 9) == expected
    assert loaded.documents() == sorted(DOCUMENTS, key=lambda document: document.id)
    assert DenseIndex.load_or_build(path, HashEmbedder(log=log), DOCUMENTS).retrieve("first", 9) == expected
    assert len(log.read_text().splitlines()) == 100  # title and text of 50 documents, each embedded once
    assert not loaded._vectors.flags.writeable
    with pytest.raises(ConfigError, match="exists already: load it"):
        DenseIndex(DOCUMENTS, EMBEDDER, path)


def test_copies_are_the_index_and_pickles_are_equal_to_it(tmp_path: Path) -> None:
    for path in (None, tmp_path / "index"):
        index = DenseIndex(DOCUMENTS, EMBEDDER, path)
        assert copy.deepcopy(index) is copy.copy(index) is index
        again = pickle.loads(pickle.dumps(index))
        assert (again.path, len(again)) == (path, 50)
        assert again.retrieve("first", 5) == index.retrieve("first", 5)


def test_vectors_of_another_model_are_refused(tmp_path: Path) -> None:
    DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index")
    with pytest.raises(DataError, match=r"were made by the model 'hash' \(hash-16hash-\).*'hash' \(hash-17hash-\)"):
        DenseIndex.load(tmp_path / "index", HashEmbedder(17))


def test_a_changed_corpus_is_noticed(tmp_path: Path) -> None:
    DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index")
    DenseIndex.load(tmp_path / "index", EMBEDDER, DOCUMENTS[::-1])  # the order does not matter
    for changed in (DOCUMENTS[1:], [*DOCUMENTS[:-1], Document("49", "title 49", "another text")]):
        with pytest.raises(DataError, match="about other documents: the corpus has changed"):
            DenseIndex.load_or_build(tmp_path / "index", EMBEDDER, changed)


def damage(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vectors.npy", "vectors of the index .* cannot be read"),
        ("documents.jsonl", "are not whole"),
        ("documents.ends", "are not whole"),
        ("agentrl-index.json", "is not a search index"),
    ],
)
def test_a_damaged_folder_is_refused(name: str, message: str, tmp_path: Path) -> None:
    DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index")
    damage(tmp_path / "index", name)
    with pytest.raises(DataError, match=message):
        DenseIndex.load(tmp_path / "index", EMBEDDER)


def test_files_of_two_indexes_are_not_mixed(tmp_path: Path) -> None:
    DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index")
    np.save(tmp_path / "index" / "vectors.npy", np.zeros((49, 16), dtype=np.float32))
    with pytest.raises(DataError, match=r"has 50 documents and vectors of shape \(49, 16\)"):
        DenseIndex.load(tmp_path / "index", EMBEDDER)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((49, 16)), r"50 vectors were expected, one for each document, got shape \(49, 16\)"),
        (np.zeros(50), r"got shape \(50,\)"),
        (np.zeros((50, 0)), r"got shape \(50, 0\)"),
        (np.full((50, 16), np.nan), "not finite"),
        (np.full((50, 16), 1e300), "not finite"),  # as float32
    ],
)
def test_vectors_that_cannot_be_used_are_refused(vectors: Vectors, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index", vectors=vectors)
    assert list(tmp_path.iterdir()) == []


def test_query_vectors_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gave query vectors of shape \(1, 16\), and \(1, 3\)"):
        DenseIndex(DOCUMENTS, EMBEDDER, vectors=np.ones((50, 3), dtype=np.float32)).retrieve("x", 1)


def test_the_card_says_what_the_index_is(tmp_path: Path) -> None:
    DenseIndex(DOCUMENTS, EMBEDDER, tmp_path / "index")
    card = json.loads((tmp_path / "index" / "agentrl-index.json").read_text())
    assert (card["kind"], card["format"], card["num_documents"]) == ("dense", 1, 50)
    assert card["model"] == {"name": "hash", "fingerprint": EMBEDDER.fingerprint}
    assert card["longest_vector"] == pytest.approx(1.0)
    (tmp_path / "index" / "agentrl-index.json").write_text(json.dumps({**card, "format": 2}))
    with pytest.raises(DataError, match="has the format 2, and this version of agentrl reads 1"):
        DenseIndex.load(tmp_path / "index", EMBEDDER)
