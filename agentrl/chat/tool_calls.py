r"""Tool calls as text, in the Hermes convention that Qwen 2.5 and 3 speak.

A call is `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`; a turn holds any number of them, between
ordinary text. What stands in `<think> ... </think>` was thought, not said: a call in there is none.

Reading never fails. What is not a call becomes a `MalformedCall` that tells the model why, and the calls around it
still count. A marker counts even inside a JSON string, because generation stops at `</tool_call>` wherever it stands;
`format_tool_call` therefore escapes markers in strings.
"""

import enum
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from agentrl.errors import ConfigError
from agentrl.messages import JsonDict, MalformedCall, ToolCall

TOOL_CALL_START = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
THINK_START = "<think>"
THINK_END = "</think>"

MAX_CALL_CHARS = 200_000
MAX_DEPTH = 32
"""Levels of lists and objects in a call; what is deeper could overflow the stack of whoever handles it next."""

_MARKER = re.compile(r"</?(?:tool_call|think)>")
_TOO_DEEP = f"Lists and objects are nested more than {MAX_DEPTH} levels deep."
_EXPECTED = 'Expected {"name": "...", "arguments": {...}}.'


class _Kind(enum.Enum):
    TEXT = enum.auto()
    THINKING = enum.auto()
    CALL = enum.auto()


_OPENS = {THINK_START: _Kind.THINKING, TOOL_CALL_START: _Kind.CALL}
_CLOSES = {THINK_END: _Kind.THINKING, TOOL_CALL_END: _Kind.CALL}


class _Piece(NamedTuple):
    """A stretch of a turn, markers included; all pieces together are the turn."""

    kind: _Kind
    text: str


def parse_tool_calls(text: str) -> list[ToolCall | MalformedCall]:
    """All calls in an assistant turn, in order, the malformed ones included.

    >>> parse_tool_calls('Hm. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    [ToolCall(name='add', arguments={'a': 1})]
    """
    return [_parse(piece.text) for piece in _pieces(text) if piece.kind is _Kind.CALL]


def strip_tool_calls(text: str) -> str:
    """A turn without its calls, malformed ones included; everything else verbatim, thinking too."""
    return "".join(piece.text for piece in _pieces(text) if piece.kind is not _Kind.CALL)


def visible_text(text: str) -> str:
    """What a turn says to the person: no calls, no thinking, no white space around it."""
    return "".join(piece.text for piece in _pieces(text) if piece.kind is _Kind.TEXT).strip()


def format_tool_call(call: ToolCall) -> str:
    """A call as the model would write it; `parse_tool_calls` gives exactly it back.

    >>> print(format_tool_call(ToolCall("add", {"a": 1})))
    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>

    Args:
        call: Its arguments are plain JSON: string keys, lists instead of tuples, finite numbers.

    Raises:
        ConfigError: The call would not read back as it is.
    """
    plain = ToolCall(call.name, dict(call.arguments))
    try:
        body = json.dumps({"name": plain.name, "arguments": plain.arguments}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The arguments of a call to {call.name!r} are not plain JSON: {error}") from error
    for marker in (TOOL_CALL_START, TOOL_CALL_END):
        body = body.replace(marker, "\\u003c" + marker[1:])
    text = f"{TOOL_CALL_START}\n{body}\n{TOOL_CALL_END}"
    read = parse_tool_calls(text)
    if read != [plain]:
        reason = read[0].error if isinstance(read[0], MalformedCall) else "tuples and keys other than strings get lost"
        raise ConfigError(f"A call to {call.name!r} cannot be written as plain JSON: {reason}")
    return text


def _pieces(text: str) -> list[_Piece]:
    """Cuts a turn at its markers."""
    pieces: list[_Piece] = []
    kind, start = _Kind.TEXT, 0
    for marker in _MARKER.finditer(text):
        opened, closed = _OPENS.get(marker[0]), _CLOSES.get(marker[0])
        unclosed = kind is _Kind.CALL and opened is _Kind.CALL  # a call opens in a call
        if opened and (kind is _Kind.TEXT or unclosed):
            pieces.append(_Piece(kind, text[start : marker.start()]))
            kind, start = opened, marker.start()
        elif closed and kind is closed:
            pieces.append(_Piece(kind, text[start : marker.end()]))
            kind, start = _Kind.TEXT, marker.end()
        elif kind is _Kind.TEXT and closed is _Kind.CALL:
            pieces += [_Piece(kind, text[start : marker.start()]), _Piece(_Kind.CALL, marker[0])]
            start = marker.end()
        elif kind is _Kind.TEXT and closed and all(piece.kind is not _Kind.THINKING for piece in pieces):
            # The prompt ended with an open <think>, as some templates write it: all until here was thinking.
            pieces = [_Piece(_Kind.THINKING, text[: marker.end()])]
            start = marker.end()
    pieces.append(_Piece(kind, text[start:]))
    return pieces


def _parse(text: str) -> ToolCall | MalformedCall:
    """Reads one piece of kind CALL."""
    try:
        return _read(text)
    except (ValueError, RecursionError) as error:
        return MalformedCall(text, str(error))


def _read(text: str) -> ToolCall:
    if not text.startswith(TOOL_CALL_START):
        raise ValueError("A call is closed that was never opened.")
    if not text.endswith(TOOL_CALL_END):
        raise ValueError("The call is not closed: its end marker is missing.")
    body = text.removeprefix(TOOL_CALL_START).removesuffix(TOOL_CALL_END).strip()
    if len(body) > MAX_CALL_CHARS:
        raise ValueError(f"The call has {len(body):,} characters; at most {MAX_CALL_CHARS:,} are read.")
    if not body:
        raise ValueError(f"The call is empty. {_EXPECTED}")
    call = _object(_load(body), "The call")
    surplus = sorted(set(call) - {"name", "arguments"})
    if surplus:
        raise ValueError(f"The call has the unknown key {surplus[0][:40]!r}. {_EXPECTED}")
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"The call has no name. {_EXPECTED}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models encode the arguments twice
        arguments = _load(arguments)
    return ToolCall(name, _object(arguments, "The value of arguments"))


def _object(value: Any, what: str) -> JsonDict:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object. {_EXPECTED}")
    return value


def _load(text: str) -> Any:
    """Strict JSON: no NaN, no infinite number, no key twice, bounded depth, valid Unicode."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        hint = " Write a line break in a string as \\n." if error.msg.startswith("Invalid control character") else ""
        raise ValueError(f"Not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).{hint}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(_TOO_DEEP)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("Not valid JSON: a string holds half of a surrogate pair.") from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonDict:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"The key {twice[:40]!r} occurs twice in one object.")
    return keys


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number.")


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads at most 4300 digits
        raise ValueError(f"A number has {len(text):,} digits, which is too long.") from None


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"The number {text[:40]} is too large.")
    return value


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` levels; without recursion, for the same reason."""
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
    return any(isinstance(node, dict | list) for node in level)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
