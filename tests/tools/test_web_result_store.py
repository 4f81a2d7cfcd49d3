"""The file of results: several processes, kills, expiry with a clock that only tests move, and a bounded size."""

import contextlib
import json
import multiprocessing as mp
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.tools import Document, Hit
from agentrl.tools.result_store import ResultStore, StoreMode

DAY_S = 86_400.0
WRITES_FOR_EVER = """
import sys
from agentrl.tools import Document, Hit
from agentrl.tools.result_store import ResultStore

store = ResultStore(sys.argv[1])
for number in range(10**9):
    store.put(f"k{number}", "q", [Hit(Document(str(number), "title", "text " * 500), 1.0)])
    print(number, flush=True)
"""


def hits(text: str, num_chars: int = 0) -> list[Hit]:
    return [Hit(Document("1", "Zürich \u2028", text + "x" * num_chars), 0.1 + 0.2), Hit(Document("2", "", ""), -1e300)]


class Clock:
    def __init__(self, now: float = 1000 * DAY_S) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_what_is_stored_comes_back_to_the_bit(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "new" / "folder" / "a.db")
    assert store.get("k") is None
    assert store.put("k", "question", hits("a")) == hits("a")
    assert store.put("none", "question", []) == []
    for again in (store, ResultStore(store.path), pickle.loads(pickle.dumps(store))):
        assert again.get("k") == hits("a")
        assert again.get("none") == []
        assert len(again) == 2


def test_the_first_answer_stays(tmp_path: Path) -> None:
    for mode in (StoreMode.READ_WRITE, StoreMode.RECORD):
        store = ResultStore(tmp_path / mode, mode)
        store.put("k", "q", hits("first"))
        assert store.put("k", "q", hits("second")) == hits("first")
        assert store.get("k") == hits("first")


def test_a_cache_forgets_what_is_too_old(tmp_path: Path) -> None:
    clock = Clock()
    store = ResultStore(tmp_path / "a.db", expires_days=2.0, clock=clock)
    store.put("k", "q", hits("old"))
    clock.now += 2 * DAY_S - 1
    assert store.get("k") == hits("old")
    clock.now += 1
    assert store.get("k") is None
    assert store.put("k", "q", hits("new")) == hits("new")
    assert store.get("k") == hits("new")
    assert len(store) == 1


def test_a_recording_forgets_nothing(tmp_path: Path) -> None:
    clock = Clock()
    store = ResultStore(tmp_path / "a.db", StoreMode.RECORD, expires_days=1e-3, max_bytes=1, clock=clock)
    for number in range(20):
        store.put(f"k{number}", "q", hits(str(number), 1000))
        clock.now += DAY_S
    again = ResultStore(tmp_path / "a.db", StoreMode.REPLAY, clock=clock)
    assert [again.get(f"k{number}") for number in range(20)] == [hits(str(number), 1000) for number in range(20)]


def test_a_full_cache_drops_the_oldest(tmp_path: Path) -> None:
    clock = Clock()
    store = ResultStore(tmp_path / "a.db", max_bytes=200_000, clock=clock)
    for number in range(60):  # of 10 kB each
        store.put(f"k{number}", "q", hits("", 10_000))
        clock.now += 1
    kept = [number for number in range(60) if store.get(f"k{number}") is not None]
    assert kept == list(range(kept[0], 60))
    assert 10 <= len(kept) <= 20  # no more than 200 kB, and at least half of it is used
    assert (tmp_path / "a.db").stat().st_size < 400_000


def test_a_cache_keeps_the_last_answer_however_long(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "a.db", max_bytes=1)
    store.put("a", "q", hits("a"))
    store.put("b", "q", hits("b"))
    assert store.get("b") == hits("b")
    assert len(store) == 1


def _write_together(path: Path, mode: StoreMode, writer: int, start: Any, answers: Any) -> None:
    start.wait(60)
    store = ResultStore(path, mode)
    answers.put([store.put(f"k{n}", "q", hits(str(writer)))[0].document.text for n in range(10)])


@pytest.mark.parametrize("mode", [StoreMode.READ_WRITE, StoreMode.RECORD])
def test_processes_that_make_and_fill_a_file_together_agree(tmp_path: Path, mode: StoreMode) -> None:
    context = mp.get_context("fork")
    start, answers = context.Barrier(6), context.Queue()
    path = tmp_path / "a.db"
    writers = [context.Process(target=_write_together, args=(path, mode, n, start, answers)) for n in range(6)]
    for writer in writers:
        writer.start()
    seen = [answers.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()
    stored = [found[0].document.text for n in range(10) if (found := ResultStore(path, mode).get(f"k{n}"))]
    assert seen == [stored] * 6
    assert len(stored) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


def test_a_killed_writer_leaves_all_that_it_had_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(30)][-1]
        writer.send_signal(signal.SIGKILL)
        last = max([last, *map(int, writer.stdout.read().split())])
    store = ResultStore(path)
    found = [store.get(f"k{number}") for number in range(last + 1)]
    assert [hit[0].document.id for hit in found if hit] == [str(number) for number in range(last + 1)]
    assert store.put("after", "q", hits("a")) == hits("a")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("writable", [True, False])
def test_a_replay_changes_nothing_and_needs_no_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    path = tmp_path / "a.db"
    ResultStore(path, StoreMode.RECORD).put("k", "q", hits("a"))
    before = path.read_bytes()
    uris: list[str] = []
    connect = sqlite3.connect

    def watched(database: str, **options: Any) -> Any:
        uris.append(database)
        return connect(database, **options)

    monkeypatch.setattr(sqlite3, "connect", watched)
    monkeypatch.setattr(os, "access", lambda *_: writable)  # root may always write
    store = ResultStore(path, StoreMode.REPLAY)
    assert store.get("k") == hits("a")
    with contextlib.closing(store._open()) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM results")
    assert {uri.partition("?")[2] for uri in uris} == {"mode=rw" if writable else "immutable=1"}
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


def test_a_replay_takes_a_cache_too_whatever_its_age(tmp_path: Path) -> None:
    clock = Clock()
    ResultStore(tmp_path / "a.db", clock=clock).put("k", "q", hits("a"))
    clock.now += 1000 * DAY_S
    assert ResultStore(tmp_path / "a.db", StoreMode.REPLAY, clock=clock).get("k") == hits("a")


@pytest.mark.parametrize(
    ("made_as", "opened_as", "message"),
    [
        (StoreMode.RECORD, StoreMode.READ_WRITE, "is a recording: use it with mode record or replay"),
        (StoreMode.READ_WRITE, StoreMode.RECORD, "is a cache: use it with mode read_write or replay"),
    ],
)
def test_a_cache_and_a_recording_do_not_mix(
    tmp_path: Path, made_as: StoreMode, opened_as: StoreMode, message: str
) -> None:
    ResultStore(tmp_path / "a.db", made_as)
    with pytest.raises(ConfigError, match=message):
        ResultStore(tmp_path / "a.db", opened_as)


def test_a_recording_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recording .*a.db to replay: run once with mode: record"):
        ResultStore(tmp_path / "a.db", StoreMode.REPLAY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", list(StoreMode))
def test_another_file_is_refused_and_not_changed(tmp_path: Path, mode: StoreMode) -> None:
    text, database, folder = tmp_path / "notes.txt", tmp_path / "other.db", tmp_path / "folder"
    text.write_text(json.dumps({"a": 1}) * 100)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE mine (x)")
    folder.mkdir()
    before = [file.read_bytes() for file in (text, database)]
    for file in (text, database, folder):
        with pytest.raises(ConfigError, match=f"{file.name}|recording"):
            ResultStore(file, mode)
    assert [file.read_bytes() for file in (text, database)] == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "notes.txt", "other.db"]


def test_a_file_that_breaks_later_is_an_infrastructure_failure(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "a.db")
    store.path.write_bytes(b"junk" * 5000)
    accesses: list[Callable[[], Any]] = [lambda: store.get("k"), lambda: store.put("k", "q", [])]
    for access in accesses:
        with pytest.raises(InfrastructureError, match=r"results in .*a.db cannot be used"):
            access()


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan")])
def test_a_senseless_age_is_refused(tmp_path: Path, days: float) -> None:
    with pytest.raises(ConfigError, match="expires_days must be positive"):
        ResultStore(tmp_path / "a.db", expires_days=days)
