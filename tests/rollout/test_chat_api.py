"""The wire format: what a server sends becomes a turn, and what it is sent stays a valid conversation."""

import contextlib
import json
from typing import Any

import pytest
from chat_server import says
from hypothesis import given
from hypothesis import strategies as st

from agentrl import messages as msg
from agentrl.chat.tool_calls import parse_tool_calls
from agentrl.errors import ConfigError
from agentrl.messages import MalformedCall, ToolCall
from agentrl.rollout.chat_api import ChatReply, ChatServer, Conversation, read_reply

ADD = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"amount": 3}'}}


def test_a_plain_answer() -> None:
    assert read_reply(says("total 3", tokens=7)) == ChatReply(
        text="total 3", content="total 3", sampled_tokens=7, total_tokens=107
    )


def test_a_structured_call_becomes_markup() -> None:
    reply = read_reply(says("I count.", ("add", '{"amount": 3}')))
    assert reply.text == 'I count.\n<tool_call>\n{"name": "add", "arguments": {"amount": 3}}\n</tool_call>'
    assert (reply.content, [call["id"] for call in reply.calls]) == ("I count.", ["id-0"])
    assert parse_tool_calls(reply.text) == [ToolCall("add", {"amount": 3})]


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("", ToolCall("add", {})),
        ('{"text": "</tool_call>"}', ToolCall("add", {"text": "</tool_call>"})),
        ('{"text": "<tool_call>{}</tool_call>"}', ToolCall("add", {"text": "<tool_call>{}</tool_call>"})),
    ],
)
def test_arguments_survive(arguments: str, call: ToolCall) -> None:
    assert parse_tool_calls(read_reply(says(None, ("add", arguments))).text) == [call]


@pytest.mark.parametrize("arguments", ["{", "3", "[1]", '{"a": NaN}', '{"a": 1}, "b": 2'])
def test_arguments_that_are_no_object_stay_one_malformed_call_that_is_not_repeated(arguments: str) -> None:
    reply = read_reply(says(None, ("add", arguments), ("add", "{}")))
    bad, good = parse_tool_calls(reply.text)
    assert isinstance(bad, MalformedCall)
    assert good == ToolCall("add", {})
    assert reply.calls == ()  # vLLM answers 400 to a conversation with such arguments


@given(st.text(), st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=3))
def test_there_are_as_many_calls_in_the_text_as_came_structured(content: str, calls: list[tuple[str, str]]) -> None:
    reply = read_reply(says(content, *calls))
    assert len(parse_tool_calls(reply.text)) == len(calls)


@pytest.mark.parametrize(
    "content", ["<think>hm", "<tool_call>", "a<tool_<tool_call>{}</tool_call>call>", "x</think>y", "</tool_call>"]
)
def test_markup_beside_structured_calls_does_not_add_or_hide_any(content: str) -> None:
    assert parse_tool_calls(read_reply(says(content, ("add", "{}"))).text) == [ToolCall("add", {})]


def test_half_characters_do_not_break_the_next_request() -> None:
    reply = read_reply(says("a\ud800", ("add\ud800", '{"a": "\ud800"}')))
    assert reply.text.encode()
    assert json.dumps(reply.calls, ensure_ascii=False).encode()


def test_thinking_beside_a_call_is_left_out() -> None:
    assert read_reply(says("<think>add!</think>So:", ("add", "{}"))).text.startswith("So:\n<tool_call>")


def test_a_turn_that_was_cut_holds_no_structured_call() -> None:
    reply = read_reply(says("I co", ("add", '{"am'), finish="length"))
    assert (reply.text, reply.calls, reply.cut) == ("I co", (), True)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ('x <tool_call>\n{"name": "add"}\n', 'x <tool_call>\n{"name": "add"}\n</tool_call>'),
        ('<tool_call>{"name": "add"}</tool_call>', '<tool_call>{"name": "add"}</tool_call>'),
        ("<think>a <tool_call> is next</think>3", "<think>a <tool_call> is next</think>3"),
        ("total 3", "total 3"),
    ],
)
def test_the_end_marker_at_which_the_server_stopped_comes_back(sent: str, text: str) -> None:
    assert read_reply(says(sent), stops_at_call=True).text == text
    assert read_reply(says(sent)).text == sent


def test_a_server_without_counts() -> None:
    assert read_reply(says("a", tokens=None)).sampled_tokens is None
    assert read_reply({**says("a"), "usage": {"completion_tokens": "7", "total_tokens": -1}}).total_tokens is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], '"choices" was expected, got list'),
        ({}, '"choices" must be of type list, got NoneType'),
        ({"choices": []}, '"choices" is empty'),
        ({"choices": [1]}, '"message" was expected, got int'),
        ({"choices": [{"message": {"content": 5}}]}, '"content" must be of type str, got int'),
        ({"choices": [{"message": {"tool_calls": [{"id": "1"}]}}]}, '"function" must be of type dict'),
        ({"choices": [{"message": {"tool_calls": [{"function": {"name": 1}}]}}]}, '"name" must be of type str'),
    ],
)
def test_junk_is_named(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_reply(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "tool_calls", "function", "name", "arguments", "usage"]),
            inner,
        )
    ),
)


@given(JSON)
def test_reading_junk_raises_nothing_else(answer: Any) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(read_reply(answer).text, str)


# Conversations


def test_results_go_back_under_the_ids_of_their_calls() -> None:
    conversation = Conversation([msg.user("Count.")], [])
    reply = read_reply(says("So:", ("add", '{"amount": 3}'), ("add", '{"amount": 4}')))
    conversation.record(reply, [msg.tool_result("add", "total 3"), msg.tool_result("add", "total 7")])
    assert conversation.structured == [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": "So:", "tool_calls": list(reply.calls)},
        {"role": "tool", "tool_call_id": "id-0", "content": "total 3"},
        {"role": "tool", "tool_call_id": "id-1", "content": "total 7"},
    ]
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "tool"]
    assert conversation.messages[1]["content"] == reply.text


def test_calls_in_the_text_get_their_results_as_text() -> None:
    conversation = Conversation([msg.system("Be brief."), msg.user("Count.")], [])
    text = '<tool_call>{"name": "add"}</tool_call>'
    conversation.record(read_reply(says(text)), [msg.tool_result("add", "total 3")])
    assert conversation.structured[2:] == [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "<tool_response>\ntotal 3\n</tool_response>"},
    ]


def test_an_environment_without_tools_answers_a_structured_call_as_a_user() -> None:
    conversation = Conversation([msg.user("Guess.")], [])
    conversation.record(ChatReply(text="7", content="7", calls=(ADD,)), [msg.user("Lower.")])
    assert [message["role"] for message in conversation.structured] == ["user", "assistant", "user"]


def test_a_length_for_servers_that_do_not_count() -> None:
    conversation = Conversation([msg.user("x" * 40)], [])
    assert conversation.estimated_tokens == 14  # 4 for the message and 40 / 4 for its text
    conversation.record(ChatReply(text="", content=""), [msg.user("")])
    assert conversation.estimated_tokens == 22  # grows even if nothing is said, so that an episode ends


@pytest.mark.parametrize(
    ("given_url", "base_url"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/api/v3", "https://host/api/v3"),
        ("https://host/v1/chat/completions", "https://host/v1"),
    ],
)
def test_the_base_url_as_people_write_it(given_url: str, base_url: str) -> None:
    assert ChatServer(given_url, "m").base_url == base_url


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://host", "http://", "http://host:port", "http://me:secret@host/v1"]
)
def test_a_wrong_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL") as caught:
        ChatServer(url, "m")
    assert "secret" not in str(caught.value)


def test_calls_are_repeated_as_json_text() -> None:
    call = says(None, ("add", "{}"))
    call["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = {"amount": 3}  # Ollama sends objects
    del call["choices"][0]["message"]["tool_calls"][0]["id"]
    (repeated,) = read_reply(call).calls
    assert repeated["id"] == "call0"
    assert json.loads(repeated["function"]["arguments"]) == {"amount": 3}
