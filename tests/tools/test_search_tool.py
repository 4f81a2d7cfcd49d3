"""The search tool as a model meets it."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError, DataError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools import TOOLS, Document, Hit, SearchIndex, SearchTool, Toolbox, ToolStatus, local_search
from agentrl.tools.search import MAX_PASSAGE_CHARS, format_passages

DOCUMENTS = [
    Document("1", "Rome", "The capital of Italy, on the Tiber."),
    Document("2", "Tiber", "A river\nin   Italy."),
    Document("3", "", "The Po is the longest river of Italy."),
    Document("4", "Oslo", "The capital of Norway."),
]


class FixedRetriever:
    """Finds the same whatever is asked, and remembers what was asked."""

    def __init__(self, hits: list[Hit] | None = None, error: Exception | None = None) -> None:
        self.hits = hits or []
        self.error = error
        self.asked: list[tuple[str, int]] = []

    def retrieve(self, query: str, top_k: int) -> list[Hit]:
        self.asked.append((query, top_k))
        if self.error is not None:
            raise self.error
        return self.hits


def call(tool: SearchTool, **arguments: Any) -> tuple[str, ToolStatus]:
    with Toolbox([tool]) as toolbox:
        result = toolbox.call(ToolCall("search", arguments))
    return result.text, result.status


def test_passages_are_numbered_one_a_line() -> None:
    text, status = call(local_search(DOCUMENTS), query="longest river Italy")
    assert status is ToolStatus.OK
    assert text.splitlines()[0] == "[1] The Po is the longest river of Italy."
    assert "[2] Tiber: A river in Italy." in text.splitlines()
    assert len(text.splitlines()) == 3


def test_the_model_may_choose_how_many() -> None:
    retriever = FixedRetriever()
    tool = SearchTool(retriever, top_k=2)
    call(tool, query="a")
    call(tool, query="b", top_k=10)
    assert retriever.asked == [("a", 2), ("b", 10)]


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        ({}, ToolStatus.INVALID_CALL, "query"),
        ({"query": 5}, ToolStatus.INVALID_CALL, "query"),
        ({"query": "a", "top_k": 0}, ToolStatus.INVALID_CALL, "top_k must be from 1 to 10, got 0"),
        ({"query": "a", "top_k": 11}, ToolStatus.INVALID_CALL, "top_k must be from 1 to 10, got 11"),
        ({"query": "a", "top_k": "3"}, ToolStatus.INVALID_CALL, "top_k"),
        ({"query": "a", "topk": 3}, ToolStatus.INVALID_CALL, "topk"),
        ({"query": "a" * 1001}, ToolStatus.INVALID_CALL, "query has 1001 characters; at most 1000"),
        ({"query": "  "}, ToolStatus.ERROR, "The query is empty"),
        ({"query": "zebra"}, ToolStatus.OK, "No passage matches the query."),
    ],
)
def test_wrong_calls_are_answered(arguments: dict[str, Any], status: ToolStatus, what: str) -> None:
    text, found = call(local_search(DOCUMENTS), **arguments)
    assert found is status
    assert what in text


def test_long_passages_are_cut_at_a_word() -> None:
    text = format_passages([Hit(Document("1", "Title", "word " * 500), 1.0)])
    passage = text.removeprefix("[1] ")
    assert len(passage) <= MAX_PASSAGE_CHARS
    assert passage.endswith(" word ...")
    assert format_passages([Hit(Document("1", "", "x" * MAX_PASSAGE_CHARS), 1.0)]) == "[1] " + "x" * MAX_PASSAGE_CHARS


def test_control_characters_of_a_document_do_not_reach_the_model() -> None:
    text = format_passages([Hit(Document("1", "a\x1b[31m\tb", "c\r\nd\x00\x7f\x85e"), 1.0)])
    assert text == "[1] a[31m b: c d e"  # U+0085 is white space in Unicode


def test_the_local_tool_is_inline_shared_and_picklable() -> None:
    tool = local_search(DOCUMENTS)
    assert tool.inline
    assert tool.open() is tool
    assert tool.fork() is tool
    again = pickle.loads(pickle.dumps(tool))
    assert call(again, query="Oslo") == call(tool, query="Oslo") == ("[1] Oslo: The capital of Norway.", ToolStatus.OK)


def test_a_corpus_and_an_index_are_loaded_by_path(tmp_path: Path) -> None:
    corpus, index = tmp_path / "corpus.jsonl", tmp_path / "corpus.db"
    corpus.write_text("".join(json.dumps({"id": d.id, "title": d.title, "text": d.text}) + "\n" for d in DOCUMENTS))
    SearchIndex(DOCUMENTS, index)
    expected = call(local_search(DOCUMENTS), query="capital Tiber")
    for path in (corpus, str(corpus), index, str(index)):
        assert call(local_search(path), query="capital Tiber") == expected
    with pytest.raises(DataError, match="absent"):
        local_search(tmp_path / "absent")


def test_an_unreachable_retriever_ends_the_episode_and_is_no_observation() -> None:
    with pytest.raises(InfrastructureError, match="gone"):
        call(SearchTool(FixedRetriever(error=InfrastructureError("gone"))), query="a")


def test_a_retriever_that_waits_has_a_deadline() -> None:
    tool = SearchTool(FixedRetriever(), deadline_s=3.0)
    assert not tool.inline
    assert tool.deadline_s == 3.0


@pytest.mark.parametrize("top_k", [0, 11, -1])
def test_a_wrong_default_is_refused(top_k: int) -> None:
    with pytest.raises(ConfigError, match="top_k must be from 1 to 10"):
        local_search(DOCUMENTS, top_k=top_k)


def test_the_schema_says_what_the_default_is() -> None:
    schema = local_search(DOCUMENTS, top_k=5).schema["function"]
    assert schema["name"] == "search"
    assert schema["parameters"]["required"] == ["query"]
    assert "5 if not given" in schema["parameters"]["properties"]["top_k"]["description"]


def test_the_catalog_makes_search_tools() -> None:
    assert call(TOOLS["search"](corpus=DOCUMENTS), query="Oslo")[1] is ToolStatus.OK  # type: ignore[arg-type]
    assert not TOOLS["http_search"](url="http://127.0.0.1:9").inline
