"""Calls are read in order, whatever is wrong is said, nothing is raised, and writing is the inverse of reading."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.chat.tool_calls import (
    MAX_CALL_CHARS,
    MAX_DEPTH,
    format_tool_call,
    parse_tool_calls,
    strip_tool_calls,
    visible_text,
)
from agentrl.errors import ConfigError
from agentrl.messages import MalformedCall, ToolCall

ADD = ToolCall("add", {"a": 1, "b": 2})
ADD_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def error_of(text: str) -> str:
    """The error of the one malformed call in a text."""
    (call,) = parse_tool_calls(text)
    assert isinstance(call, MalformedCall)
    assert call.text in text
    return call.error


def wrapped(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


class TestWellFormed:
    def test_the_convention_of_qwen(self) -> None:
        assert parse_tool_calls(ADD_TEXT) == [ADD]
        assert format_tool_call(ADD) == ADD_TEXT

    def test_calls_keep_their_order_and_the_text_between_them_is_no_call(self) -> None:
        text = f"First:{ADD_TEXT} then\n" + wrapped('{"name": "stop"}') + " done"
        assert parse_tool_calls(text) == [ADD, ToolCall("stop", {})]
        assert strip_tool_calls(text) == "First: then\n done"

    @pytest.mark.parametrize("text", ["", "The answer is 3.", '{"name": "add", "arguments": {}}', "<tool-call>"])
    def test_a_turn_without_markers_has_no_call(self, text: str) -> None:
        assert parse_tool_calls(text) == []
        assert strip_tool_calls(text) == text

    @pytest.mark.parametrize(
        "body",
        [
            '{"name":"add","arguments":{"a":1,"b":2}}',
            '\n\n  {"arguments": {"b": 2, "a": 1},\n "name": "add"}\t',
            '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}',  # arguments encoded twice
        ],
    )
    def test_accepted_variants(self, body: str) -> None:
        assert parse_tool_calls(f"<tool_call>{body}</tool_call>") == [ADD]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "The call is empty."),
        ("add(1, 2)", "Not valid JSON: Expecting value (line 1, column 1)."),
        ('{"name": "add", "arguments": {"a": 1}', "Not valid JSON: Expecting ',' delimiter"),
        ("{'name': 'add'}", "Not valid JSON: Expecting property name"),
        ('{"name": "add"} and more', "Not valid JSON: Extra data"),
        ('{"name": "add", "arguments": {"code": "a\nb"}}', "Write a line break in a string as \\n."),
        ('[{"name": "add", "arguments": {}}]', "The call is not a JSON object."),
        ("null", "The call is not a JSON object."),
        ('{"arguments": {}}', "The call has no name."),
        ('{"name": "", "arguments": {}}', "The call has no name."),
        ('{"name": 3, "arguments": {}}', "The call has no name."),
        ('{"name": "add", "parameters": {"a": 1}}', "The call has the unknown key 'parameters'."),
        ('{"name": "add", "arguments": [1, 2]}', "The value of arguments is not a JSON object."),
        ('{"name": "add", "arguments": null}', "The value of arguments is not a JSON object."),
        ('{"name": "add", "arguments": "a=1"}', "Not valid JSON"),
        ('{"name": "add", "arguments": "[1]"}', "The value of arguments is not a JSON object."),
        ('{"name": "add", "arguments": {"a": NaN}}', "NaN is not a JSON number."),
        ('{"name": "add", "arguments": {"a": -Infinity}}', "-Infinity is not a JSON number."),
        ('{"name": "add", "arguments": {"a": 1e999}}', "The number 1e999 is too large."),
        ('{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}", "A number has 5,000 digits"),
        ('{"name": "add", "name": "sub"}', "The key 'name' occurs twice"),
        ('{"name": "add", "arguments": {"a": {"x": 1, "x": 1}}}', "The key 'x' occurs twice"),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', "half of a surrogate pair"),
        ('{"name": "add", "arguments": {"a": "' + "x" * MAX_CALL_CHARS + '"}}', "at most 200,000 are read"),
        ('{"name": "add", "arguments": {"a": ' + "[" * 100_000, "nested more than 32 levels"),
    ],
)
def test_malformed_bodies(body: str, reason: str) -> None:
    error = error_of(wrapped(body))
    assert reason in error
    assert len(error) < 200
    assert "tool_call>" not in error, "markup in an error would be read as markup in the next prompt"


def test_the_depth_limit_is_exact() -> None:
    # The call and its arguments are the two outer levels.
    deepest = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    assert isinstance(parse_tool_calls(wrapped(f'{{"name": "f", "arguments": {{"x": {deepest}}}}}'))[0], ToolCall)
    assert "32 levels" in error_of(wrapped(f'{{"name": "f", "arguments": {{"x": [{deepest}]}}}}'))


class TestMarkers:
    @pytest.mark.parametrize("text", ["<tool_call>", '<tool_call>\n{"name": "add", "arguments": {"a"', ADD_TEXT[:-1]])
    def test_unterminated(self, text: str) -> None:
        assert error_of(text) == "The call is not closed: its end marker is missing."
        assert strip_tool_calls(f"before {text}") == "before "

    def test_closed_without_opening(self) -> None:
        assert error_of("text </tool_call> more") == "A call is closed that was never opened."
        assert strip_tool_calls("text </tool_call> more") == "text  more"

    @pytest.mark.parametrize("broken", ["<tool_call>", '<tool_call>\n{"name": "add"', wrapped("{"), "</tool_call>"])
    @pytest.mark.parametrize("good_first", [True, False])
    def test_a_good_call_counts_on_either_side_of_a_broken_one(self, broken: str, good_first: bool) -> None:
        calls = parse_tool_calls("\n".join([ADD_TEXT, broken] if good_first else [broken, ADD_TEXT]))
        assert calls.index(ADD) == (0 if good_first else 1)
        assert isinstance(calls[1 if good_first else 0], MalformedCall)
        assert len(calls) == 2

    def test_nested_markers_are_two_calls_of_which_the_inner_one_is_whole(self) -> None:
        outer, inner, closing = parse_tool_calls(f"<tool_call>\n{ADD_TEXT}\n</tool_call>")
        assert isinstance(outer, MalformedCall)
        assert inner == ADD
        assert isinstance(closing, MalformedCall)


class TestThinking:
    @pytest.mark.parametrize(
        ("text", "visible"),
        [
            (f"<think>Perhaps {ADD_TEXT}?</think>\nNo: 3.", "No: 3."),
            (f"Perhaps {ADD_TEXT}?</think>\nNo: 3.", "No: 3."),  # the template had opened <think> in the prompt
            (f"So <think>{ADD_TEXT}", "So"),  # cut off while thinking
        ],
    )
    def test_a_call_in_thinking_is_no_call(self, text: str, visible: str) -> None:
        assert parse_tool_calls(text) == []
        assert visible_text(text) == visible
        assert strip_tool_calls(text) == text

    def test_a_call_after_thinking_counts(self) -> None:
        text = f"<think>Add them.</think>\n{ADD_TEXT} ok"
        assert parse_tool_calls(text) == [ADD]
        assert strip_tool_calls(text) == "<think>Add them.</think>\n ok"
        assert visible_text(text) == "ok"

    def test_think_markers_in_an_argument_are_data(self) -> None:
        call = ToolCall("say", {"text": "<think>aloud</think>"})
        assert parse_tool_calls(format_tool_call(call)) == [call]

    def test_only_the_first_end_of_thinking_can_reach_back(self) -> None:
        assert parse_tool_calls(f"<think>a</think>{ADD_TEXT}</think>") == [ADD]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=12,
)
# Strings around the markers, where an inverse is most likely to break.
marker_text = st.lists(
    st.sampled_from(["<tool_call>", "</tool_call>", "<think>", "</think>", "\\", "<", '"', "{", "}", "\n", "a"]),
    max_size=12,
).map("".join)
tool_calls = st.builds(
    ToolCall,
    st.text(min_size=1) | marker_text.filter(bool),
    st.dictionaries(st.text() | marker_text, json_values | marker_text, max_size=4),
)


@given(st.lists(tool_calls, max_size=3), st.lists(st.text("ab \n"), min_size=4, max_size=4))
def test_writing_is_the_inverse_of_reading(calls: list[ToolCall], between: list[str]) -> None:
    text = between[0] + "".join(format_tool_call(call) + gap for call, gap in zip(calls, between[1:], strict=False))
    assert parse_tool_calls(text) == calls
    assert strip_tool_calls(text) == "".join(between[: len(calls) + 1])


@given(tool_calls)
def test_a_written_call_holds_its_end_marker_once(call: ToolCall) -> None:
    text = format_tool_call(call)
    assert text.count("</tool_call>") == text.count("<tool_call>") == 1, "generation would stop too early"
    json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))


@given(st.text(st.characters(exclude_categories=())) | marker_text)
def test_reading_never_raises(text: str) -> None:
    calls = parse_tool_calls(text)
    assert all(isinstance(call, ToolCall | MalformedCall) for call in calls)
    assert len(visible_text(text)) <= len(strip_tool_calls(text)) <= len(text)
    assert ("<tool_call>" in strip_tool_calls(text)) <= ("think>" in text), "outside of thinking every call goes"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (ToolCall("f", {"x": float("nan")}), "NaN is not a JSON number"),
        (ToolCall("f", {"x": {1, 2}}), "set is not JSON serializable"),
        (ToolCall("f", {"x": (1, 2)}), "tuples and keys other than strings get lost"),
        (ToolCall("f", {"x": {1: 2}}), "tuples and keys other than strings get lost"),
        (ToolCall("f", {"x": "\ud800"}), "half of a surrogate pair"),
        (ToolCall("", {}), "no name"),
    ],
)
def test_what_would_not_read_back_is_not_written(call: ToolCall, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        format_tool_call(call)
