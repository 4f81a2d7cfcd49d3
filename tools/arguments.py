"""What is wrong with the arguments of a call, one short line per problem, in words a model can act on."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from agentrl.errors import ToolError
from agentrl.messages import JsonDict
from agentrl.registry import nearest

MAX_PROBLEMS = 5
MAX_SHOWN = 40
"""Characters of a wrong value that are repeated to the model."""

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


class InvalidArgumentsError(ToolError):
    """The arguments of a call do not fit the tool's schema; nothing ran.

    Args:
        problems: One line per problem.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown = self.problems[:MAX_PROBLEMS]
        num_hidden = len(self.problems) - len(shown)
        return "\n".join([*shown, f"... and {num_hidden} more"] if num_hidden else shown)


def check_top_level(parameters: JsonDict, arguments: Mapping[str, Any]) -> None:
    """Compares argument names and the JSON type of each value with a schema of type "object".

    Raises:
        InvalidArgumentsError: An argument is missing, unknown or of the wrong type.
    """
    properties: JsonDict = parameters.get("properties", {})
    problems = [missing(name) for name in parameters.get("required", []) if name not in arguments]
    for name, value in arguments.items():
        if name not in properties:
            problems.append(unknown(name, properties))
        elif not _fits(value, properties[name].get("type")):
            problems.append(f"{name}: should be of type {properties[name]['type']}, got {shown_value(value)}")
    if problems:
        raise InvalidArgumentsError(problems)


def _fits(value: Any, json_type: Any) -> bool:
    """Whether a value has a JSON type; what a schema does not say, or says in a list, is left to the tool."""
    if not isinstance(json_type, str):
        return True
    if isinstance(value, bool):
        return json_type == "boolean"
    return isinstance(value, _JSON_TYPES.get(json_type, (object,)))


def missing(name: str) -> str:
    """The problem of a required argument that is not there."""
    return f"{name}: missing"


def unknown(name: str, known: Iterable[str]) -> str:
    """The problem of an argument that the tool does not have."""
    names = list(known)
    return f"{name[:MAX_SHOWN]}: unknown argument. {nearest(name, names) if names else 'The tool takes none.'}"


def shown_value(value: Any) -> str:
    """A value as JSON, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return f"a Python {type(value).__name__} that JSON cannot hold"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def describe(error: pydantic.ValidationError, arguments: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """The problems that pydantic found, in the words of this module."""
    return [_line(detail, arguments, known) for detail in error.errors(include_url=False, include_context=False)]


def _line(detail: ErrorDetails, arguments: Mapping[str, Any], known: Iterable[str]) -> str:
    path = _path(detail, arguments)
    if not path:
        return f"the arguments are not plain JSON: {detail['msg']}"
    if detail["type"] == "missing":
        return missing(path)
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        return unknown(path, known)
    message = detail["msg"].removeprefix("Input ").rstrip(".")
    return f"{path}: {message[:1].lower()}{message[1:]}, got {shown_value(detail['input'])}"


def _path(detail: ErrorDetails, arguments: Mapping[str, Any]) -> str:
    """Where in the arguments the problem is, as in `items[2].price`.

    Pydantic's location also names the members of a union that it tried; those are not in the input and are left out.
    """
    path = ""
    value: Any = arguments
    for key in detail["loc"]:
        if isinstance(value, Mapping) and (key in value or detail["type"] == "missing"):
            path += f".{key}" if path else str(key)
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            path += f"[{key}]"
            value = value[key]
    return path[:MAX_SHOWN]
