"""`@tool`: a typed function with a docstring becomes a tool."""

import functools
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, overload

import pydantic

from agentrl.errors import ConfigError
from agentrl.tools.core import Tool, check_definition
from agentrl.tools.docstring import parse_docstring
from agentrl.tools.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")


class FunctionTool(Tool, Generic[P, R]):
    """A tool without state, made from a function by `@tool`. It can still be called like the function.

    Args:
        function: Sync or async; typed parameters, each described in a Google docstring.
        name: How the model calls it; the function's name if not given.
        deadline_s: Wall-clock limit of one call in seconds; None if the function keeps limits of its own.
        max_output_chars: A longer result is cut to its head and tail.
        max_concurrency: Calls that may run at a time in this process; None for any number.
        idempotent: Running a call a second time changes nothing that the first time has not changed, see `Tool`.
        inline: The function returns at once by construction, see `Tool`.

    Raises:
        ConfigError: The function lacks a type, a description or a docstring, or a setting is out of range.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        deadline_s: float | None = Tool.deadline_s,
        max_output_chars: int = Tool.max_output_chars,
        max_concurrency: int | None = Tool.max_concurrency,
        idempotent: bool = Tool.idempotent,
        inline: bool = Tool.inline,
    ) -> None:
        self.function: Callable[P, R] = function
        if not inspect.isroutine(function):
            raise ConfigError(f"@tool takes a function, got {function!r}; for a tool with state subclass StatefulTool.")
        functools.update_wrapper(self, function)
        self.name = function.__name__ if name is None else name
        self.description = parse_docstring(function.__doc__).description
        self.deadline_s = deadline_s
        self.max_output_chars = max_output_chars
        self.max_concurrency = max_concurrency
        self.idempotent = idempotent
        self.inline = inline
        check_definition(self)
        if inline and inspect.iscoroutinefunction(function):
            raise ConfigError(f"Tool {self.name!r} is async, so it cannot be inline: drop one of the two.")
        self._signature = Signature(function, self.name)
        self.parameters = self._signature.schema

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function itself, without schema, deadline or conversion of the result."""
        return self.function(*args, **kwargs)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Checks every value strictly and converts it to the parameter's type (see `Signature.bind`)."""
        return self._signature.bind(arguments)

    def call(self, arguments: Mapping[str, Any]) -> str | Awaitable[str]:
        """Runs the function and turns its result into text (see `to_text`)."""
        return text_of(self.function(**arguments))  # type: ignore[call-arg]

    @property
    def kind(self) -> Hashable:
        """The function, by where it is defined."""
        return (self.function.__module__, self.function.__qualname__, self.name)

    def __repr__(self) -> str:
        return f"FunctionTool({self.name!r})"

    def __deepcopy__(self, memo: dict[int, object]) -> "FunctionTool[P, R]":
        return self  # like the function it stands for

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickles by reference like a function, or from its parts where the module does not hold the tool itself."""
        name = self.function.__qualname__
        if getattr(sys.modules.get(self.function.__module__), name, None) is self:
            return name
        options = ("name", "deadline_s", "max_output_chars", "max_concurrency", "idempotent", "inline")
        return functools.partial(FunctionTool, **{name: getattr(self, name) for name in options}), (self.function,)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    deadline_s: float | None = Tool.deadline_s,
    max_output_chars: int = Tool.max_output_chars,
    max_concurrency: int | None = Tool.max_concurrency,
    idempotent: bool = Tool.idempotent,
    inline: bool = Tool.inline,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    deadline_s: float | None = Tool.deadline_s,
    max_output_chars: int = Tool.max_output_chars,
    max_concurrency: int | None = Tool.max_concurrency,
    idempotent: bool = Tool.idempotent,
    inline: bool = Tool.inline,
) -> Any:
    """Makes a tool of a typed function; the docstring becomes the schema. Options are those of `FunctionTool`.

    Example:
        >>> @tool
        ... def count(text: str, letter: str) -> int:
        ...     '''Count how often a letter occurs in a text.
        ...
        ...     Args:
        ...         text: Text to search.
        ...         letter: One character.
        ...     '''
        ...     return text.count(letter)
        >>> count("strawberry", "r")
        3
        >>> count.parameters["properties"]["letter"]
        {'type': 'string', 'description': 'One character.'}

    Raises:
        ConfigError: See `FunctionTool`.
    """
    make = functools.partial(
        FunctionTool,
        name=name,
        deadline_s=deadline_s,
        max_output_chars=max_output_chars,
        max_concurrency=max_concurrency,
        idempotent=idempotent,
        inline=inline,
    )
    return make if function is None else make(function)


def text_of(result: Any) -> str | Awaitable[str]:
    """`to_text` of a result, or of what awaiting it gives."""
    if inspect.isawaitable(result):
        return _awaited_text(result)
    return to_text(result)


async def _awaited_text(result: Awaitable[Any]) -> str:
    return to_text(await result)


def to_text(value: Any) -> str:
    """What a model reads of a tool's return value.

    A string stays as it is; JSON-like values and pydantic models become JSON text; anything else its `str()`.

    >>> to_text("3"), to_text([1, None]), to_text(1 + 2j)
    ('3', '[1, null]', '(1+2j)')
    """
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float | list | tuple | dict | pydantic.BaseModel):
        try:
            return json.dumps(value, ensure_ascii=False, default=_json_value)
        except (TypeError, ValueError, RecursionError):  # keys that are no strings, a cycle: nothing JSON can hold
            return str(value)
    return str(value)


def _json_value(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else str(value)
