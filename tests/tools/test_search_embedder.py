"""Sentence-embedding models from a folder: a tiny random one, saved by sentence-transformers itself."""

import copy
import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_models import save_tiny_model

from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.tools import Document, local_search
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.embedder import SentenceEmbedder, hash_folder
from agentrl.tools.search_backends import open_retriever, vectors_path

TEXTS = ["the river", "a port city", "zzz", "the river"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(folder)


def test_vectors_are_those_of_the_model_with_length_one(folder: Path, embedder: SentenceEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    raw = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    for vectors in (embedder.embed_documents(TEXTS), embedder.embed_queries(TEXTS)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert embedder.name == "tiny"


def test_a_model_for_the_inner_product_keeps_its_lengths(tmp_path: Path) -> None:
    embedder = SentenceEmbedder(save_tiny_model(tmp_path / "dot", similarity="dot"))
    lengths = np.linalg.norm(embedder.embed_queries(["a", "bcd"]), axis=1)
    assert np.abs(lengths - 1).min() > 0.1


def test_prompts_of_the_model_are_used(folder: Path, tmp_path: Path) -> None:
    prompted = tmp_path / "prompted"
    shutil.copytree(folder, prompted)
    config = prompted / "config_sentence_transformers.json"
    assert '"query": ""' in config.read_text()
    config.write_text(
        config.read_text().replace('"query": ""', '"query": "ask "').replace('"document": ""', '"document": "say "')
    )
    embedder, plain = SentenceEmbedder(prompted), SentenceEmbedder(folder)
    np.testing.assert_allclose(embedder.embed_queries(["it"]), plain.embed_queries(["ask it"]), atol=1e-6)
    np.testing.assert_allclose(embedder.embed_documents(["it"]), plain.embed_documents(["say it"]), atol=1e-6)


def test_any_text_is_embedded(embedder: SentenceEmbedder) -> None:
    vectors = embedder.embed_queries(["", "x" * 10_000, "\N{REPLACEMENT CHARACTER}", "\N{SNOWMAN} 北京"])
    assert vectors.shape == (4, 16)
    assert np.isfinite(vectors).all()


def test_several_threads_embed(embedder: SentenceEmbedder) -> None:
    expected = embedder.embed_queries(TEXTS)
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = [embedder.embed_queries(TEXTS) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(vectors, expected, atol=1e-6) for number in range(4) for vectors in found[number])


def test_the_fingerprint_is_of_what_makes_the_vectors(folder: Path, tmp_path: Path) -> None:
    fingerprint = hash_folder(folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("another text")
    (moved / ".cache").mkdir()
    (moved / ".cache" / "lock").touch()
    assert hash_folder(moved) == fingerprint
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert hash_folder(moved) != fingerprint
    assert SentenceEmbedder(save_tiny_model(tmp_path / "tiny", seed=1)).fingerprint != fingerprint


def test_copies_are_the_model_and_pickles_load_it_again(embedder: SentenceEmbedder) -> None:
    assert copy.deepcopy(embedder) is copy.copy(embedder) is embedder
    again = pickle.loads(pickle.dumps(embedder))
    assert again.fingerprint == embedder.fingerprint
    np.testing.assert_array_equal(again.embed_queries(["x"]), embedder.embed_queries(["x"]))


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent is not a folder"):
        SentenceEmbedder(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be loaded as a sentence-embedding model"):
        SentenceEmbedder(tmp_path)


def test_without_the_package_the_command_to_type_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"Dense search .* pip install 'agentrl-framework\[dense\]'"):
        SentenceEmbedder(folder)


DOCUMENTS = [Document(str(number), "", text) for number, text in enumerate(["abc def", "xyz", "mno pqr", "aaa"])]


def test_a_text_finds_itself(embedder: SentenceEmbedder) -> None:
    index = DenseIndex(DOCUMENTS, embedder)
    for document in DOCUMENTS:
        (hit,) = index.retrieve(document.text, 1)
        assert (hit.document, hit.score) == (document, pytest.approx(1.0, abs=1e-5))


def test_a_corpus_file_gets_its_vectors_once_and_each_model_its_own(folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": 1, "title": "", "text": "abc"}\n{"id": 2, "title": "", "text": "xyz"}\n')
    hits = open_retriever(corpus, backend="dense", model=folder).retrieve("xyz", 2)
    assert [hit.document.id for hit in hits] == ["2", "1"]
    made = vectors_path(corpus, folder) / "vectors.npy"
    assert made == tmp_path / "corpus.jsonl.tiny.dense" / "vectors.npy"
    stamp = made.stat().st_mtime_ns
    assert open_retriever(corpus, backend="dense", model=folder).retrieve("xyz", 2) == hits
    assert open_retriever(made.parent, model=folder).retrieve("xyz", 2) == hits
    both = local_search(corpus, backend="hybrid", model=str(folder))
    assert both.call({"query": "xyz", "top_k": 1}) == "[1] xyz"
    assert made.stat().st_mtime_ns == stamp
    other = save_tiny_model(tmp_path / "other" / "tiny", seed=1)
    with pytest.raises(DataError, match="were made by the model 'tiny'"):
        open_retriever(corpus, backend="dense", model=other)
    open_retriever(corpus, backend="dense", model=other.rename(tmp_path / "small"))
    assert (tmp_path / "corpus.jsonl.small.dense").is_dir()
    corpus.write_text('{"id": 1, "title": "", "text": "abc"}\n')
    with pytest.raises(DataError, match="the corpus has changed"):
        open_retriever(corpus, backend="hybrid", model=folder)
