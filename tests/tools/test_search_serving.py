"""`agentrl serve-search` as a user runs it: a process of its own, asked over a socket, and told to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from search_models import save_tiny_model
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.tools import Document, SearchIndex
from agentrl.tools.corpus import join_contents, load_corpus
from agentrl.tools.retrieval_server import RetrievalServer
from agentrl.tools.search_backends import open_retriever

DOCUMENTS = [Document(str(number), f"Title {number}", f"text number {number}") for number in range(20)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": d.id, "contents": join_contents(d)}) + "\n" for d in DOCUMENTS))
    assert load_corpus(path) == DOCUMENTS
    return path


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """The process, its port and the line that it printed."""
    command = [sys.executable, "-m", "agentrl.cli", "serve-search", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)/retrieve$", line.strip())
            assert address is not None, (line, process.stderr and process.stderr.read())
            yield process, int(address[1]), line
        finally:
            process.kill()


def ask(port: int, body: Any) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/retrieve", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200
    return json.loads(response.read())["result"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_several_threads_until_it_is_told_to_stop(number: signal.Signals, corpus: Path) -> None:
    queries = [document.text for document in DOCUMENTS]
    expected = [[hit.document.id for hit in hits] for hits in SearchIndex(DOCUMENTS).retrieve_many(queries, 3)]
    with serving(corpus, "--backend", "fts5") as (process, port, line):
        assert line == f"20 documents at http://127.0.0.1:{port}/retrieve\n"
        found: dict[int, Any] = {}

        def work(thread: int) -> None:
            answers = [ask(port, {"query": query})[0] for query in queries[thread::2]]
            answers += ask(port, {"queries": queries, "topk": 3})
            found[thread] = [[document["id"] for document in answer] for answer in answers]

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {thread: [*expected[thread::2], *expected] for thread in range(2)}
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_dense_and_hybrid_are_served(corpus: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny")
    expected = open_retriever(corpus, backend="hybrid", model=model).retrieve("text number 7", 3)
    with serving(corpus, "--backend", "hybrid", "--model", model) as (process, port, _):
        (found,) = ask(port, {"queries": ["text number 7"], "topk": 3, "return_scores": True})
        assert [(item["document"]["id"], item["score"]) for item in found] == [
            (hit.document.id, pytest.approx(hit.score)) for hit in expected
        ]
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "The corpus absent.jsonl cannot be read: No such file or directory."),
        (["CORPUS", "--backend", "tantify"], "Unknown search back end 'tantify'. Did you mean 'tantivy'?"),
        (["CORPUS", "--backend", "dense"], "Dense search needs model=FOLDER"),
        (["CORPUS", "--model", "m"], "The search back end 'fts5' uses no model"),
        (["CORPUS", "--host", "192.0.2.1", "--port", "0"], "The server cannot listen at 192.0.2.1, port 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, corpus: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test's own handlers stay
    result = CliRunner().invoke(app, ["serve-search", *(str(corpus) if a == "CORPUS" else a for a in arguments)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stdout == ""


def test_a_port_that_is_taken_is_one_line(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with RetrievalServer(SearchIndex(DOCUMENTS)) as server:
        port = server.url.split(":")[2].split("/")[0]
        result = CliRunner().invoke(app, ["serve-search", str(corpus), "--port", port])
    assert result.exit_code == 2
    assert "Address already in use" in result.stderr
