"""Indexes on disk: several processes build and load them at once, and a killed build leaves nothing to load."""

import multiprocessing
import os
import signal
import sqlite3
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from search_models import HashEmbedder

from agentrl.errors import DataError
from agentrl.tools import Document, SearchIndex, bm25
from agentrl.tools.dense_index import DenseIndex
from agentrl.tools.index_folder import create_folder, kind_of_folder, read_card
from agentrl.tools.search_backends import open_retriever
from agentrl.tools.tantivy_index import TantivyIndex

SPAWN = multiprocessing.get_context("spawn")
DOCUMENTS = [Document(str(number), "", f"text number {number} of {number % 3}") for number in range(40)]
QUERY = "text number 7"


def build_and_search(folder: Path) -> list[Any]:
    """What each process does at the same time as the others."""
    log = folder.with_name("log")
    dense = DenseIndex.load_or_build(folder, HashEmbedder(log=log), DOCUMENTS)
    return dense.retrieve(QUERY, 5)


def load_and_search(paths: list[Path]) -> list[Any]:
    fts5, tantivy, dense = paths
    indexes = (SearchIndex.load(fts5), TantivyIndex.load(tantivy), DenseIndex.load(dense, HashEmbedder()))
    return [index.retrieve(QUERY, 5) for index in indexes]


def test_of_several_processes_one_builds_and_all_load(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "index"
    with SPAWN.Pool(4) as pool:
        found = pool.map(build_and_search, [folder] * 4, chunksize=1)
    assert found == [DenseIndex(DOCUMENTS, HashEmbedder()).retrieve(QUERY, 5)] * 4
    assert len((tmp_path / "new" / "log").read_text().splitlines()) == len(DOCUMENTS)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index", "log"]


def test_several_processes_load_every_kind_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / kind for kind in ("fts5", "tantivy", "dense")]
    built = [
        SearchIndex(DOCUMENTS, paths[0]),
        TantivyIndex(DOCUMENTS, paths[1]),
        DenseIndex(DOCUMENTS, HashEmbedder(), paths[2]),
    ]
    with SPAWN.Pool(3) as pool:
        found = pool.map(load_and_search, [paths] * 9, chunksize=1)
    assert found == [[index.retrieve(QUERY, 5) for index in built]] * 9


def hang(pipe: Connection) -> None:
    pipe.send("half-way")
    time.sleep(600)


def build_half(kind: str, path: Path, pipe: Connection) -> None:
    """Builds until about the middle, says so and hangs."""
    if kind == "fts5":
        bm25.os.replace = lambda *_: hang(pipe)  # type: ignore[attr-defined]
        SearchIndex(DOCUMENTS, path)
        return

    class Hanging(HashEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            (next(path.parent.glob(".*")) / "vectors.npy").write_bytes(b"half")
            hang(pipe)

    if kind == "dense":
        DenseIndex(DOCUMENTS, Hanging(), path)
    else:
        from agentrl.tools import tantivy_index

        fill = tantivy_index._fill
        tantivy_index._fill = lambda index, documents: (fill(index, documents), hang(pipe))  # type: ignore
        TantivyIndex(DOCUMENTS, path)


@pytest.mark.parametrize("kind", ["fts5", "tantivy", "dense"])
def test_a_killed_build_leaves_nothing_to_load_and_does_not_hinder_the_next(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "index"
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=build_half, args=(kind, path, there))
    process.start()
    there.close()  # so that a process that fails is noticed
    assert here.recv() == "half-way"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    (left,) = tmp_path.iterdir()
    assert left.name != path.name
    loads = {
        "fts5": lambda: SearchIndex.load(path),
        "tantivy": lambda: TantivyIndex.load(path),
        "dense": lambda: DenseIndex.load(path, HashEmbedder()),
    }
    with pytest.raises(DataError, match="does not exist"):
        loads[kind]()
    if left.is_dir():
        with pytest.raises(DataError, match="not a search index"):
            open_retriever(left)
    builds = {
        "fts5": lambda: SearchIndex(DOCUMENTS, path),
        "tantivy": lambda: TantivyIndex(DOCUMENTS, path),
        "dense": lambda: DenseIndex(DOCUMENTS, HashEmbedder(), path),
    }
    assert len(builds[kind]()) == len(loads[kind]()) == 40


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data").write_text("half")
        raise sqlite3.OperationalError("broken")

    with pytest.raises(sqlite3.OperationalError):
        create_folder(tmp_path / "index", "test", fill)
    assert list(tmp_path.iterdir()) == []
    assert create_folder(tmp_path / "index", "test", lambda folder: {"more": 1})
    assert not create_folder(tmp_path / "index", "test", fill)
    assert read_card(tmp_path / "index", "test") == {"kind": "test", "format": 1, "more": 1}
    assert kind_of_folder(tmp_path / "index") == "test"
    assert kind_of_folder(tmp_path) is None


def test_an_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    TantivyIndex(DOCUMENTS, tmp_path / "index")
    with pytest.raises(DataError, match="index is a tantivy index, not a dense index"):
        DenseIndex.load(tmp_path / "index", HashEmbedder())
