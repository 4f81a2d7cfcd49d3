"""Rows of preference and demonstration data, in TRL's column conventions, as conversations.

    prompt, chosen, rejected          a pair
    chosen, rejected                  a pair; what both begin with is the prompt
    prompt, completion, label         a trajectory that was good or not
    prompt, completion                a demonstration
    messages                          a demonstration; all that the assistant says is learned

A cell holds chat messages, or a text, which stands for one message: of the user in a prompt, of the assistant
elsewhere. (TRL glues plain texts together without a chat template; an agent is always asked through one.) An
assistant's `tool_calls` become the text that the model would have had to write. A column `tools` holds JSON schemas.
Other columns, and cells that are null, are passed over.
"""

import enum
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

from agentrl import messages as msg
from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs.dataset_rows import read_rows
from agentrl.errors import ConfigError, DataError
from agentrl.messages import JsonDict, Message, Role, ToolCall
from agentrl.registry import nearest

Conversation: TypeAlias = tuple[Message, ...]

_ROLES = get_args(Role)


class RowKind(enum.StrEnum):
    """What a row says; the value is how it is called in a message to a person."""

    PAIR = "chosen and rejected"
    LABELLED = "prompt, completion and label"
    DEMONSTRATION = "prompt and completion, or messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an assistant said after a prompt, tool results included, and whether that was good."""

    messages: Conversation
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row.

    Example:
        Example(name="pairs.jsonl, row 3", kind=RowKind.PAIR, prompt=(user("6 * 7?"),),
                completions=(Completion(messages=(assistant("42"),), good=True),
                             Completion(messages=(assistant("41"),), good=False)))
    """

    name: str
    """File and number of the row."""
    kind: RowKind
    prompt: Conversation
    completions: tuple[Completion, ...]
    tools: tuple[JsonDict, ...] | None = None
    """Schemas; None where the row does not say."""


def read_examples(path: Path, split: str, kinds: Collection[RowKind]) -> list[Example]:
    """All rows of a file or folder.

    Args:
        path: As `dataset_rows.read_rows`.
        split: Which one, where the data has splits of its own.
        kinds: What is of use.

    Raises:
        DataError: A row is wrong or of no use; the message names file, row and column. Or there is none.
        ConfigError: There is no such split.
        MissingExtraError: An optional package is needed to read it.
    """
    parts = read_rows(path)
    name = None if None in parts else split
    if name not in parts:
        raise ConfigError(f"{path} has no split {split!r}. {nearest(split, [str(part) for part in parts])}")
    examples = [read_example(row, f"{path}, row {number}") for number, row in parts[name]]
    if not examples:
        raise DataError(f"{path} holds no row.")
    for example in examples:
        if example.kind not in kinds:
            wanted = " or ".join(f"{kind.value}" for kind in RowKind if kind in kinds)
            raise DataError(f"{example.name} holds {example.kind.value}; this recipe learns from {wanted}.")
    return examples


def read_example(row: Any, name: str) -> Example:
    """One row.

    Args:
        row: Columns by name.
        name: File and number, for messages.

    Raises:
        DataError: What is wrong in which column.

    >>> read_example({"prompt": "6 * 7?", "completion": "42", "label": True}, "row 1").kind
    <RowKind.LABELLED: 'prompt, completion and label'>
    """
    try:
        if not isinstance(row, Mapping):
            raise DataError(f"a JSON object was expected, got {type(row).__name__}")
        columns = {str(key): value for key, value in row.items() if value is not None}
        tools = _tools(columns["tools"]) if "tools" in columns else None
        kind, prompt, completions = _conversations(columns)
    except DataError as error:
        raise DataError(f"{name}: {error}.") from error
    return Example(name=name, kind=kind, prompt=prompt, completions=completions, tools=tools)


def _conversations(columns: Mapping[str, Any]) -> tuple[RowKind, Conversation, tuple[Completion, ...]]:
    match columns:
        case {"chosen": chosen, "rejected": rejected}:
            texts = [_messages(chosen, "chosen", msg.assistant), _messages(rejected, "rejected", msg.assistant)]
            prompt = _prompt(columns["prompt"]) if "prompt" in columns else _shared_opening(*texts)
            good, bad = (
                _after(prompt, text, column) for text, column in zip(texts, ("chosen", "rejected"), strict=True)
            )
            return RowKind.PAIR, prompt, (Completion(messages=good, good=True), Completion(messages=bad, good=False))
        case {"prompt": opening, "completion": said}:
            prompt = _prompt(opening)
            answer = _after(prompt, _messages(said, "completion", msg.assistant), "completion")
            kind = RowKind.LABELLED if "label" in columns else RowKind.DEMONSTRATION
            label = columns.get("label", True)
            if not isinstance(label, bool) and label not in (0, 1):
                raise DataError(f"column 'label' must be true or false, got {_short(label)}")
            return kind, prompt, (Completion(messages=answer, good=bool(label)),)
        case {"messages": said}:
            whole = _messages(said, "messages", None)
            turns = [i for i, message in enumerate(whole) if message["role"] == "assistant"]
            if not turns or not turns[0]:
                raise DataError("column 'messages' must hold a request and then something that the assistant says")
            demonstrated = Completion(messages=whole[turns[0] :], good=True)
            return RowKind.DEMONSTRATION, whole[: turns[0]], (demonstrated,)
    found = ", ".join(map(repr, columns)) or "none"
    expected = "'prompt', 'chosen' and 'rejected', 'prompt', 'completion' and perhaps 'label', or 'messages'"
    raise DataError(f"expected the columns {expected}; those with a value are {found}")


def _prompt(value: Any) -> Conversation:
    prompt = _messages(value, "prompt", msg.user)
    if prompt[-1]["role"] not in ("user", "tool"):
        raise DataError(
            f"column 'prompt' must end where the assistant is to speak, got a last message of the role "
            f"{prompt[-1]['role']!r}"
        )
    return prompt


def _after(prompt: Conversation, said: Conversation, column: str) -> Conversation:
    """What comes after the prompt, which many data sets repeat in the completion."""
    if said[0]["role"] != "assistant" and said[: len(prompt)] == prompt:
        said = said[len(prompt) :]
    if not said or said[0]["role"] != "assistant":
        role = said[0]["role"] if said else None
        raise DataError(
            f"column {column!r} must begin with what the assistant says after the prompt, got the role {role!r}"
        )
    return said


def _shared_opening(chosen: Conversation, rejected: Conversation) -> Conversation:
    """The longest opening that both have, and after which the assistant speaks in both."""
    for length in range(min(len(chosen), len(rejected)) - 1, 0, -1):
        follows = chosen[length]["role"] == rejected[length]["role"] == "assistant"
        if follows and chosen[:length] == rejected[:length]:
            return chosen[:length]
    raise DataError(
        "columns 'chosen' and 'rejected' do not begin with the same request; give it in a column 'prompt', or as the "
        "same first messages of both"
    )


# Messages ------------------------------------------------------------------------------------------------------------


def _messages(value: Any, column: str, speaker: Any) -> Conversation:
    """A cell as messages.

    Args:
        value: Text or list.
        column: Its name.
        speaker: Makes a message of a text; None where a text will not do.
    """
    if isinstance(value, str) and speaker is not None:
        if not value.strip():
            raise DataError(f"column {column!r} is an empty text")
        return (speaker(value),)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        kinds = "a list of chat messages" if speaker is None else "a text or a list of chat messages"
        raise DataError(f"column {column!r} must hold {kinds}, got {_short(value)}")
    return tuple(_message(item, f"column {column!r}, message {number}") for number, item in enumerate(value, 1))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be an object, got {_short(item)}")
    role, content, calls = item.get("role"), item.get("content"), item.get("tool_calls") or ()
    if role not in _ROLES:
        raise DataError(f"{where} has the role {role!r}; known are {', '.join(_ROLES)}")
    if calls and role != "assistant":
        raise DataError(f"{where} of the role {role!r} has tool_calls, which only the assistant can make")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{where} needs a text as content, got {_short(content)}")
    parts = [*([content] if content else []), *(_call_text(call, where) for call in calls)]
    message: Message = {"role": cast(Role, role), "content": "\n".join(parts)}
    if role == "tool" and isinstance(item.get("name"), str):
        message["name"] = item["name"]
    return message


def _call_text(call: Any, where: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f'{where} has a tool call without {{"name": ..., "arguments": ...}}: {_short(call)}')
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return format_tool_call(ToolCall(function["name"], arguments))
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} has a tool call whose arguments are no JSON object: {error}") from error


def _tools(value: Any) -> tuple[JsonDict, ...]:
    try:
        schemas = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"column 'tools' is not JSON: {error}") from error
    if not isinstance(schemas, Sequence) or not all(isinstance(schema, Mapping) for schema in schemas):
        raise DataError(f"column 'tools' must hold a list of JSON schemas, got {_short(value)}")
    return tuple(dict(schema) for schema in schemas)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
