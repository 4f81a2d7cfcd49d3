"""What search services are sent, and how their answers are read."""

from collections.abc import Callable
from typing import Any

import pytest
from search_server import ROME

from agentrl.tools import Document, Hit
from agentrl.tools.web_providers import PROVIDERS, read_jina, read_search_r1, read_searxng, read_serper


@pytest.mark.parametrize(
    "answer",
    [
        {"result": [[{"document": ROME, "score": 1.0}]]},
        {"result": [[ROME]]},
        {"result": [ROME]},
        {"result": [{"document": ROME}]},
        {"result": [[{"id": 1, "content": ROME["contents"]}]]},
        {"result": [[{"document": {"id": "1", "title": "Rome", "text": "The capital of Italy."}, "score": None}]]},
    ],
)
def test_all_shapes_of_answers_are_read(answer: Any) -> None:
    assert [hit.document for hit in read_search_r1(answer)] == [Document("1", "Rome", "The capital of Italy.")]


def test_a_document_without_id_gets_its_rank_and_no_hits_are_fine() -> None:
    assert [hit.document.id for hit in read_search_r1({"result": [[{"contents": "a"}, {"contents": "b"}]]})] == [
        "0",
        "1",
    ]
    assert read_search_r1({"result": [[]]}) == read_search_r1({"result": []}) == []


def shown(hits: list[Hit]) -> list[tuple[str, str, str, float]]:
    return [(hit.document.id, hit.document.title, hit.document.text, hit.score) for hit in hits]


def test_searxng() -> None:
    rome = {"url": "http://a/rome", "title": "Rome", "content": "A capital.", "engine": "x", "score": 2.5}
    bare = {"url": "http://a/b", "title": "Oslo", "content": None}
    assert shown(read_searxng({"results": [rome, bare], "unresponsive_engines": [["bing", "timeout"]]})) == [
        ("http://a/rome", "Rome", "A capital.", 2.5),
        ("http://a/b", "Oslo", "", 0.0),
    ]
    assert read_searxng({"results": [], "unresponsive_engines": []}) == []
    assert PROVIDERS["searxng"].fields("q", 3) == {"q": "q", "format": "json"}


def test_no_result_because_the_engines_failed_is_a_failure() -> None:
    with pytest.raises(ValueError, match=r"no result, and these engines did not answer: .*CAPTCHA"):
        read_searxng({"results": [], "unresponsive_engines": [["google", "Suspended: CAPTCHA"]]})


def test_serper_gives_direct_answers_first() -> None:
    answer = {
        "searchParameters": {"q": "capital of italy"},
        "answerBox": {"title": "Italy / Capital", "answer": "Rome", "snippet": "Since 1871."},
        "knowledgeGraph": {"title": "Rome", "type": "City", "attributes": {"Area": "1,285 km2", "Odd": 3}},
        "organic": [{"title": "Rome - Wikipedia", "link": "https://w/Rome", "snippet": "Rome is", "position": 1}],
    }
    assert shown(read_serper(answer)) == [
        ("answerBox", "Italy / Capital", "Rome; Since 1871.", 0.0),
        ("knowledgeGraph", "Rome", "City; Area: 1,285 km2", 0.0),
        ("https://w/Rome", "Rome - Wikipedia", "Rome is", 0.0),
    ]
    pages_only = {"organic": [{"title": "T", "link": "l"}], "answerBox": {"title": "no words"}, "knowledgeGraph": 3}
    assert shown(read_serper(pages_only)) == [("l", "T", "", 0.0)]
    assert PROVIDERS["serper"].fields("q", 3) == {"q": "q", "num": 3}


def test_jina_gives_the_text_or_else_the_description() -> None:
    items = [
        {"url": "u1", "title": "A", "content": "whole text", "description": "short"},
        {"url": "u2", "title": "B", "content": "", "description": "short"},
    ]
    assert shown(read_jina({"code": 200, "data": items})) == [("u1", "A", "whole text", 0.0), ("u2", "B", "short", 0.0)]


@pytest.mark.parametrize(
    ("read", "answer", "message"),
    [
        (read_searxng, {"result": []}, 'list "results"'),
        (read_searxng, {"results": [{"title": "no url"}]}, 'address of a page under "url"'),
        (read_serper, {"message": "Unauthorized."}, 'list "organic"'),
        (read_serper, {"organic": {"0": {}}}, 'list "organic"'),
        (read_serper, {"organic": ["x"]}, 'address of a page under "link"'),
        (read_serper, {"organic": [{"link": 3}]}, 'address of a page under "link"'),
        (read_jina, [], 'list "data"'),
        (read_jina, None, 'list "data"'),
    ],
)
def test_a_wrong_shape_is_named(read: Callable[[Any], list[Hit]], answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(answer)


def test_text_that_cannot_be_stored_is_cleaned() -> None:
    hit = {"url": "u\ud800", "title": "a\0", "content": "b\ud83d\ude00"}
    assert shown(read_searxng({"results": [hit]})) == [("u\ufffd", "a\ufffd", "b\U0001f600", 0.0)]
