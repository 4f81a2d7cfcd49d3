"""Chat messages and tool calls in the OpenAI convention, as plain JSON-clean dictionaries.

A message is what environments exchange with `agentrl.chat`; token ids never appear here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
JsonDict: TypeAlias = dict[str, Any]


class Message(TypedDict):
    """One chat message.

    Example:
        {"role": "tool", "name": "calculator", "content": "42"}
    """

    role: Role
    content: str
    name: NotRequired[str]
    """Of a tool message: the tool whose result this is."""


def system(content: str) -> Message:
    """Instructions that come before everything else."""
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    """What a person, or the environment speaking as one, says."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """What the model said, verbatim, tool-call markup included."""
    return {"role": "assistant", "content": content}


def tool_result(name: str, content: str) -> Message:
    """The result of one tool call."""
    return {"role": "tool", "name": name, "content": content}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for and that parsed: `calculator(expression="6*7")`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A call that did not parse; `error` tells the model why."""

    text: str
    error: str
