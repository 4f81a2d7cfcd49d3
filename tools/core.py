"""What a tool is: a name, a JSON schema, and a call that turns arguments into text.

State lives per episode: an environment calls `open()` once for every episode and `close()` at its end, and a
branching rollout calls `fork()` in the middle of it.
"""

import enum
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from agentrl.errors import ConfigError, ForkError
from agentrl.messages import JsonDict
from agentrl.tools.arguments import check_top_level

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ToolStatus(enum.StrEnum):
    """How a call ended. Everything but OK is still a text that the model sees."""

    OK = "ok"
    ERROR = "error"
    """The tool ran and refused or failed."""
    TIMEOUT = "timeout"
    """The deadline passed; the tool was abandoned or killed."""
    INVALID_CALL = "invalid_call"
    """Malformed call, unknown tool or wrong arguments: nothing ran."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The typed outcome of one call.

    Example:
        ToolResult(tool="calculator", text="42", status=ToolStatus.OK, duration_s=0.0001, num_chars=2)
    """

    tool: str
    text: str
    """What the model sees, already cut to the output limit."""
    status: ToolStatus
    duration_s: float = 0.0
    num_chars: int = 0
    """Length of the whole result, before it was cut."""
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the call ran and succeeded."""
        return self.status is ToolStatus.OK


class Tool(ABC):
    """A tool the model may call. Most tools are made from a function with `@tool`; subclass this for state.

    Attributes:
        name: How the model calls it.
        description: What it does, for the model.
        parameters: JSON schema of the arguments (type "object").
        deadline_s: Wall-clock limit of one call in seconds. None: the tool keeps limits of its own and always returns.
        max_output_chars: A longer result is cut to its head and tail.
        max_concurrency: Calls that may run at a time in this process, over all episodes; None for any number. Waiting
            for a turn does not count against the deadline. Tools of one class and one name count together.
        idempotent: Running a call a second time, in a fresh instance, changes nothing outside of the episode that the
            first time has not changed. Only such calls are ever repeated: to fork an episode by repeating it, to go
            back to the middle of one, in a run that was interrupted, by `agentrl replay`.
        inline: The tool returns at once by construction (microseconds, no I/O). It is then called in the calling
            thread without a deadline, which also keeps the schedule of a rollout deterministic.
    """

    name: str
    description: str
    parameters: JsonDict
    deadline_s: float | None = 30.0
    max_output_chars: int = 8192
    max_concurrency: int | None = None
    idempotent: bool = False
    inline: bool = False

    def check(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks what the model gave and returns what `call` gets.

        Here names and JSON types are compared with the top level of `parameters`; tools made from a typed function
        check and convert everything.

        Raises:
            InvalidArgumentsError: With one line per problem; nothing ran.
        """
        check_top_level(self.parameters, arguments)
        return arguments

    @abstractmethod
    def call(self, arguments: Mapping[str, Any]) -> str | Awaitable[str]:
        """Runs one call with what `check` returned.

        Raises:
            ToolError: With the text that the model sees.
            InfrastructureError: The episode cannot go on through no fault of the model.
        """

    def open(self) -> Self:
        """The instance that serves one episode. A tool without state returns itself."""
        return self

    def fork(self) -> Self:
        """An independent copy in the present state. A tool without state returns itself.

        Raises:
            ForkError: The state cannot be copied.
        """
        if type(self).open is not Tool.open:
            raise ForkError(f"Tool {self.name!r} keeps state but does not define fork().")
        return self

    def close(self) -> None:  # noqa: B027 - doing nothing is right for a tool without state
        """Frees what `open()` or `fork()` took; called once per instance."""

    @property
    def kind(self) -> Hashable:
        """Instances of one kind are the same tool: `max_concurrency` counts their calls together."""
        return (type(self).__module__, type(self).__qualname__, self.name)

    @property
    def schema(self) -> JsonDict:
        """The tool in the OpenAI function convention, as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def check_definition(tool: Tool | type[Tool]) -> None:
    """Checks what every tool must have, before a model calls it.

    Raises:
        ConfigError: The name, the description or a limit is unusable.
    """
    if not _NAME.fullmatch(tool.name):
        raise ConfigError(
            f"Tool name {tool.name!r} is not usable: give name= with at most 64 letters, digits, '_' or '-'."
        )
    if not tool.description:
        raise ConfigError(f"Tool {tool.name!r} has no description: write a docstring; the model reads it.")
    if tool.deadline_s is not None and not (tool.deadline_s > 0 and math.isfinite(tool.deadline_s)):
        raise ConfigError(
            f"deadline_s of tool {tool.name!r} must be positive and finite, or None for a tool that keeps its own "
            f"limits; got {tool.deadline_s!r}."
        )
    if tool.max_output_chars < 1:
        raise ConfigError(f"max_output_chars of tool {tool.name!r} must be positive, got {tool.max_output_chars!r}.")
    if tool.max_concurrency is not None and tool.max_concurrency < 1:
        raise ConfigError(f"max_concurrency of tool {tool.name!r} must be at least 1, got {tool.max_concurrency!r}.")
    if tool.inline and tool.max_concurrency is not None:
        raise ConfigError(
            f"Tool {tool.name!r} is inline, so its calls return at once and nothing waits for a turn: drop inline or "
            "max_concurrency."
        )
