"""Arguments against a hand-written schema: names and JSON types of the top level."""

from typing import Any

import pytest

from agentrl.messages import JsonDict
from agentrl.tools.arguments import MAX_PROBLEMS, InvalidArgumentsError, check_top_level, shown_value

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# Every JSON value with the types it has: an integer is a number, a truth value is neither.
VALUES: list[tuple[Any, set[str]]] = [
    ([], {"array"}),
    (True, {"boolean"}),
    (3, {"integer", "number"}),
    (0.5, {"number"}),
    (None, {"null"}),
    ({}, {"object"}),
    ("3", {"string"}),
]


@pytest.mark.parametrize(("value", "types"), VALUES)
@pytest.mark.parametrize("json_type", TYPES)
def test_types(value: Any, types: set[str], json_type: str) -> None:
    schema: JsonDict = {"type": "object", "properties": {"x": {"type": json_type}}}
    if json_type in types:
        check_top_level(schema, {"x": value})
        return
    with pytest.raises(InvalidArgumentsError, match=f"^x: should be of type {json_type}, got "):
        check_top_level(schema, {"x": value})


@pytest.mark.parametrize("schema", [{}, {"type": ["string", "null"]}, {"anyOf": [{"type": "string"}]}, {"type": "odd"}])
def test_what_a_schema_says_otherwise_is_left_to_the_tool(schema: JsonDict) -> None:
    check_top_level({"type": "object", "properties": {"x": schema}}, {"x": 3})


def test_problems_come_in_order_and_are_cut() -> None:
    schema: JsonDict = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
    with pytest.raises(InvalidArgumentsError) as caught:
        check_top_level(schema, {name: 1 for name in "abcdefg"})
    assert caught.value.problems[:2] == ("x: missing", "a: unknown argument. Known: x.")
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "... and 3 more"  # one missing and seven unknown: 8 - 5


def test_a_tool_without_parameters_says_so() -> None:
    with pytest.raises(InvalidArgumentsError, match=r"^x: unknown argument\. The tool takes none\.$"):
        check_top_level({"type": "object"}, {"x": 1})


def test_values_are_shown_short() -> None:
    assert shown_value({"a": "\u00e9"}) == '{"a": "\u00e9"}'
    assert shown_value("x" * 100) == '"' + "x" * 36 + "..."
    assert shown_value({1, 2}) == "a Python set that JSON cannot hold"
