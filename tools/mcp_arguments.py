"""The arguments of a call against the full JSON schema that a server has declared."""

from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.errors import ConfigError
from agentrl.messages import JsonDict
from agentrl.tools.arguments import MAX_SHOWN, InvalidArgumentsError, missing, shown_value, unknown

_MAX_MESSAGE = 200
_OPEN = {
    "$dynamicRef",
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "dependentSchemas",
    "if",
    "oneOf",
    "patternProperties",
    "unevaluatedProperties",
}
"""Keywords of a schema that leave it open, or say themselves, which names beside `properties` are accepted."""


class ArgumentSchema:
    """A compiled schema.

    Names that the schema does not list are refused, as everywhere in agentrl, unless it says something about them:
    most servers ignore them, and a model would not learn that it misspelt one.

    Args:
        tool: Name, for messages.
        schema: Of type "object".

    Raises:
        ConfigError: It is not a JSON schema.
    """

    def __init__(self, tool: str, schema: JsonDict) -> None:
        from jsonschema import SchemaError  # type: ignore[import-untyped]
        from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]
        from referencing import Registry

        validator = validator_for(schema, default=Draft202012Validator)
        try:
            validator.check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"The MCP tool {tool!r} has a schema that is none: {error.message}.") from error
        self._validator = validator(schema, registry=Registry())  # an empty one: nothing is fetched
        self._properties: JsonDict = schema.get("properties", {})
        self._closed = bool(self._properties) and _OPEN.isdisjoint(schema)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Checks the arguments of one call.

        Raises:
            InvalidArgumentsError: With one line per problem.
        """
        from referencing.exceptions import Unresolvable

        problems = [
            unknown(name, self._properties) for name in arguments if self._closed and name not in self._properties
        ]
        try:
            errors = sorted(self._validator.iter_errors(dict(arguments)), key=lambda error: _path(error.absolute_path))
            problems = [line for error in errors for line in _lines(error)] + problems
        except Unresolvable:
            return  # a reference that leaves the schema: the server has to check
        except RecursionError:
            problems = ["the arguments are nested too deeply"]
        if problems:
            raise InvalidArgumentsError(problems)


def _lines(error: Any) -> Iterator[str]:
    path = _path(error.absolute_path)
    prefix = f"{path}." if path else ""
    if error.validator == "required":
        yield from (missing(prefix + name) for name in error.validator_value if name not in error.instance)
    elif error.validator == "additionalProperties" and error.validator_value is False:
        known = error.schema.get("properties", {})
        yield from (unknown(prefix + name, known) for name in error.instance if name not in known)
    elif error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        yield f"{path or 'the arguments'}: should be of type {wanted}, got {shown_value(error.instance)}"
    elif error.validator == "enum":
        wanted = ", ".join(map(shown_value, error.validator_value))
        yield f"{path}: should be one of {wanted}, got {shown_value(error.instance)}"
    else:
        message = error.message.replace(repr(error.instance), shown_value(error.instance))
        yield f"{path or 'the arguments'}: {message[:_MAX_MESSAGE]}"


def _path(keys: Any) -> str:
    path = ""
    for key in keys:
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
    return path[:MAX_SHOWN]
