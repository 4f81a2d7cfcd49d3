"""The parts of the MCP client that need no server: settings, schemas, contents."""

from typing import Any

import mcp_types
import pytest

from agentrl.errors import ConfigError, ToolError
from agentrl.messages import JsonDict
from agentrl.tools import InvalidArgumentsError
from agentrl.tools.mcp_arguments import ArgumentSchema
from agentrl.tools.mcp_content import result_text
from agentrl.tools.mcp_spec import ServerSpec, make_spec


def spec(**options: Any) -> ServerSpec:
    nothing = {"command": None, "url": None, "env": None, "cwd": None, "api_key_env": None}
    return make_spec(**{**nothing, "start_s": 1.0, "per_episode": False, **options})


def test_a_command_is_words_or_a_line() -> None:
    assert spec(command="python 'my server.py'").command == ("python", "my server.py")
    assert spec(command=["python", "my server.py"]) == spec(command="python 'my server.py'")
    assert spec(command=["a", "b c"]).label == "a 'b c'"
    assert len(spec(command=["x" * 500]).label) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the two"),
        ({"command": "a", "url": "http://h"}, "one of the two"),
        ({"command": ""}, "a program and its arguments"),
        ({"command": "a 'b"}, "cannot be split"),
        ({"command": ["a\0"]}, "a program and its arguments"),
        ({"url": "h:80/mcp"}, "must look like"),
        ({"url": "http://h:x"}, "must look like"),
        ({"url": "http://me:secret@h/mcp"}, "must not hold a user name"),
        ({"url": "http://h", "env": {"A": "b"}}, "belong to an MCP server that is started"),
        ({"command": "a", "api_key_env": "KEY"}, "belongs to an MCP server with a url"),
        ({"command": "a", "start_s": float("nan")}, "start_s of an MCP server must be positive"),
    ],
)
def test_settings_that_cannot_be_used(options: JsonDict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec(**options)
    assert "secret" not in str(caught.value)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hush")
    program = spec(command="a", env={"MY_KEY": None, "LEVEL": 3})
    assert program.environment() == {"MY_KEY": "hush", "LEVEL": "3"}
    service = spec(url="http://h/mcp", api_key_env="MY_KEY")
    assert service.headers() == {"Authorization": "Bearer hush"}
    assert spec(url="http://h/mcp").headers() == {}
    assert "hush" not in repr((program, service))
    monkeypatch.delenv("MY_KEY")
    for needed in (program.environment, service.headers):
        with pytest.raises(ConfigError, match="the environment variable MY_KEY, which is not set"):
            needed()


def problems(schema: JsonDict, arguments: JsonDict) -> list[str]:
    try:
        ArgumentSchema("tool", {"type": "object", **schema}).check(arguments)
    except InvalidArgumentsError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("schema", "arguments", "expected"),
    [
        ({"properties": {"x": {"type": "number"}}}, {"x": 1}, []),
        ({"properties": {"x": {"type": "number"}}}, {"y": 1}, ["y: unknown argument. Known: x."]),
        ({"properties": {"x": {}}, "additionalProperties": True}, {"y": 1}, []),
        ({"properties": {"x": {}}, "patternProperties": {"^y": {}}}, {"y": 1}, []),
        ({"properties": {"x": {}}, "additionalProperties": False}, {"y": 1}, ["y: unknown argument. Known: x."]),
        ({}, {"anything": 1}, []),
        ({"additionalProperties": False}, {"x": 1}, ["x: unknown argument. The tool takes none."]),
        ({"properties": {"x": {"type": ["string", "null"]}}}, {"x": 1}, ["x: should be of type string or null, got 1"]),
        ({"properties": {"x": {"type": "integer"}}}, {"x": True}, ["x: should be of type integer, got true"]),
        ({"properties": {"x": {"maxItems": 1}}}, {"x": [1, 2]}, ["x: [1, 2] is too long"]),
        ({"properties": {"x": {"pattern": "^a"}}}, {"x": "b"}, ["x: \"b\" does not match '^a'"]),
        ({"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"minimum": 3}}}, {"x": 2},
         ["x: 2 is less than the minimum of 3"]),
        ({"properties": {"x": {"$ref": "http://elsewhere.invalid/schema"}}}, {"x": 2}, []),  # nothing is fetched
        ({"properties": {"x": {"required": ["a", "b"]}}}, {"x": {"a": 1}}, ["x.b: missing"]),
    ],
)  # fmt: skip
def test_arguments(schema: JsonDict, arguments: JsonDict, expected: list[str]) -> None:
    assert problems(schema, arguments) == expected


def test_a_schema_that_is_none() -> None:
    with pytest.raises(ConfigError, match="'tool' has a schema that is none"):
        ArgumentSchema("tool", {"type": "object", "properties": {"x": {"type": "strnig"}}})


def text(*content: mcp_types.ContentBlock, **fields: Any) -> str:
    return result_text(mcp_types.CallToolResult(content=list(content), **fields))


def test_structured_content_is_shown_where_there_is_no_text() -> None:
    words, image = mcp_types.TextContent(text="words"), mcp_types.ImageContent(data="AAAA", mime_type="image/gif")
    assert text(words, structured_content={"a": 1}) == "words"
    assert text(structured_content={"a": "é"}) == '{"a": "é"}'
    assert text(image, structured_content={"a": 1}) == '[image image/gif, 3 bytes, not shown]\n{"a": 1}'
    assert text() == ""


def test_an_error_has_its_text() -> None:
    with pytest.raises(ToolError, match=r"^no\nsuch row$"):
        text(mcp_types.TextContent(text="no"), mcp_types.TextContent(text="such row"), is_error=True)


def test_broken_base64_is_no_failure() -> None:
    audio = mcp_types.AudioContent(data="not base64!", mime_type="audio/wav")
    assert text(audio).startswith("[audio audio/wav, ")
