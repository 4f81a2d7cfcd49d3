"""What a person types in `agentrl play`, turned into what a model would have to write.

calculator 12*34               a tool and its argument, verbatim, where it needs only one
search query="deep sea" top_k=3    arguments by name
python                         the argument on the lines that follow, up to a single dot
{"name": "calculator", "arguments": {"expression": "12*34"}}
408                            anything else is the answer; `= text` where it begins like a call
"""

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.chat.tool_calls import TOOL_CALL_END, TOOL_CALL_START, format_tool_call, parse_tool_calls
from agentrl.errors import ConfigError
from agentrl.messages import JsonDict, MalformedCall, ToolCall

HELP = "!"
END_OF_TEXT = "."


@dataclass(frozen=True, slots=True)
class Turn:
    """The text of an assistant turn."""

    text: str


@dataclass(frozen=True, slots=True)
class Hint:
    """Something to tell the person; nothing is played."""

    text: str


def read_move(line: str, tools: Sequence[JsonDict], read_line: Callable[[], str | None]) -> Turn | Hint:
    """What a line means.

    Args:
        line: As typed.
        tools: Schemas of the tools there are.
        read_line: Gives the next line, for an argument of several; None at the end of the input.
    """
    line = line.strip()
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    name, _, rest = line.partition(" ")
    if line in ("", HELP):
        return Hint("\n".join(help_lines(tools)))
    if line.startswith("="):
        return Turn(line[1:].strip())
    if line.startswith(TOOL_CALL_START):
        return Turn(line)
    if line.startswith("{") and functions:
        return _json_call(line)
    if name in functions:
        try:
            return Turn(format_tool_call(ToolCall(name, _arguments(functions[name], rest.strip(), read_line))))
        except ConfigError as error:
            return Hint(str(error))
    close = difflib.get_close_matches(name, functions, n=1, cutoff=0.75)
    if close and rest:
        return Hint(f"There is no tool {name!r}. Did you mean {close[0]!r}? If this is your answer, type: = {line}")
    return Turn(line)


def help_lines(tools: Sequence[JsonDict]) -> Iterator[str]:
    """What can be typed, with every tool and its parameters."""
    for tool in tools:
        function = tool["function"]
        yield f"{usage(function)}"
        yield f"    {' '.join(function['description'].split())}"
        properties, required = _parameters(function)
        for name, schema in properties.items():
            optional = "" if name in required else ", optional"
            yield f"    {name} ({_type_name(schema)}{optional}): {' '.join(str(schema.get('description', '')).split())}"
    if tools:
        yield 'Arguments may also be given by name (x=3), or the whole call as JSON: {"name": ..., "arguments": ...}'
        yield f"A tool's name alone: its text follows on further lines, up to a line with a single {END_OF_TEXT!r}."
    yield "Anything else is your answer and ends the episode; `= text` answers with a text that looks like a call."
    yield f"{HELP} shows this; Ctrl-D stops."


def usage(function: Mapping[str, Any]) -> str:
    """How a tool is called, such as `search QUERY [top_k=...]`."""
    properties, required = _parameters(function)
    optional = [f"[{name}=...]" for name in properties if name not in required]
    return " ".join([str(function["name"]), *(name.upper() for name in required), *optional])


def _json_call(line: str) -> Turn | Hint:
    text = f"{TOOL_CALL_START}\n{line}\n{TOOL_CALL_END}"
    (call, *_) = parse_tool_calls(text)
    if isinstance(call, MalformedCall):
        return Hint(f"{call.error} If this is your answer, type: = {line}")
    return Turn(text)


def _arguments(function: Mapping[str, Any], text: str, read_line: Callable[[], str | None]) -> JsonDict:
    """The arguments of a call.

    Raises:
        ConfigError: They cannot be told apart.
    """
    properties, required = _parameters(function)
    main = required[0] if len(required) == 1 else next(iter(properties)) if len(properties) == 1 else None
    if not text:
        if not required:
            return {}
        if main is None:
            raise ConfigError(f"Usage: {usage(function)}")
        text = _following_lines(read_line)
        return {main: _value(text, properties[main])}
    given = _json_object(text)
    if given is not None and set(given) <= set(properties):
        return given
    words = _words(text)
    named = [word.partition("=") for word in words]
    if named and all(equals and name in properties for name, equals, _ in named):
        return {name: _value(value, properties[name]) for name, _, value in named}
    if main is not None:
        text, last = _without_options(text, [name for name in properties if name != main])
        return {main: _value(text, properties[main])} | {n: _value(value, properties[n]) for n, value in last.items()}
    if not words or len(words) > len(properties):
        raise ConfigError(f"Usage: {usage(function)}")
    return {name: _value(word, properties[name]) for name, word in zip(properties, words, strict=False)}


def _without_options(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A text without the `name=value` at its end, and those.

    >>> _without_options("a = b top_k=3", ["top_k"])
    ('a = b', {'top_k': '3'})
    """
    name = "|".join(map(re.escape, names)) or "(?!)"
    found = re.fullmatch(rf"(.*?)((?:\s+(?:{name})=\S+)*)", text, re.DOTALL)
    assert found is not None, "both parts may be empty"
    return found[1], dict(word.split("=", 1) for word in found[2].split())


def _parameters(function: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Schemas by name, and the names that must be given."""
    parameters = function["parameters"]
    return dict(parameters.get("properties", {})), list(parameters.get("required", ()))


def _following_lines(read_line: Callable[[], str | None]) -> str:
    lines = []
    while (line := read_line()) is not None and line.strip() != END_OF_TEXT:
        lines.append(line)
    return "\n".join(lines)


def _json_object(text: str) -> JsonDict | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _words(text: str) -> list[str]:
    """Words as a shell reads them; none where a quote is not closed, as in "the crew's share"."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """The text itself where text is expected, and otherwise the JSON that it is."""
    if "string" in _types(schema):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the tool says what it expects


def _types(schema: Mapping[str, Any]) -> list[str]:
    choices = [schema, *schema.get("anyOf", ())]
    return [str(choice["type"]) for choice in choices if "type" in choice]


def _type_name(schema: Mapping[str, Any]) -> str:
    values = [json.dumps(value) for value in schema.get("enum", ())]
    return " or ".join(values or _types(schema)) or "anything"
