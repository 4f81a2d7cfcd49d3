"""From a typed function with a docstring to a JSON schema, and from JSON arguments to typed values."""

import inspect
import json
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pydantic
from pydantic.errors import PydanticUserError
from pydantic.json_schema import PydanticJsonSchemaWarning

from agentrl.errors import ConfigError
from agentrl.messages import JsonDict
from agentrl.tools.arguments import InvalidArgumentsError, describe
from agentrl.tools.docstring import parse_docstring

_NO_EXTRA = pydantic.ConfigDict(extra="forbid")
_VALUES = frozenset({"const", "default", "enum", "examples"})
_NAMED_SCHEMAS = frozenset({"$defs", "properties"})


class Signature:
    """The parameters of a tool, read once from a function's annotations and docstring.

    Args:
        function: Every parameter has a type, a name to call it by, and an entry under `Args:`.
        tool: Name of the tool, for error messages.
        is_method: The first parameter is `self` and is left out.

    Raises:
        ConfigError: A parameter has no type, no description, or a type that JSON cannot express.
    """

    def __init__(self, function: Callable[..., Any], tool: str, *, is_method: bool = False) -> None:
        parameters = list(inspect.signature(function).parameters.values())[int(is_method) :]
        types = _resolved_types(function, tool)
        descriptions = parse_docstring(function.__doc__).arguments
        _check_documented(parameters, types, descriptions, tool)
        self._names = [parameter.name for parameter in parameters]
        # Numbered fields with aliases: a parameter may then be called `copy`, `schema` or `_x`, which a field may not.
        fields: dict[str, Any] = {
            f"argument_{index}": (types[name], _field(parameters[index], descriptions[name]))
            for index, name in enumerate(self._names)
        }
        try:
            self._model = pydantic.create_model(tool, __config__=_NO_EXTRA, **fields)
            self.schema = _json_schema(self._model)
        except PydanticUserError as error:
            raise ConfigError(
                f"Tool {tool!r} has a parameter whose type JSON cannot express: {error.message.split('. ')[0]}. "
                "Use str, int, float, bool, list, dict, Literal, an Enum or a pydantic model."
            ) from error

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Checks JSON arguments strictly and converts them to the types of the function.

        Arguments that are not given are left out, so that the function's own defaults apply.

        Raises:
            InvalidArgumentsError: With one line per problem.
        """
        try:
            # Through JSON text, because pydantic's strict mode would otherwise ask for Enum and tuple instances.
            text = json.dumps(dict(arguments), allow_nan=False)
            values = self._model.model_validate_json(text, strict=True)  # nested models too
        except pydantic.ValidationError as error:
            raise InvalidArgumentsError(describe(error, arguments, self._names)) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentsError([f"the arguments are not plain JSON: {error}"]) from None
        return {
            self._names[int(field.removeprefix("argument_"))]: getattr(values, field)
            for field in values.model_fields_set
        }


def _resolved_types(function: Callable[..., Any], tool: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"Tool {tool!r} has an annotation that cannot be resolved: {error}. Define that type at module level."
        ) from error


def _check_documented(
    parameters: list[inspect.Parameter], types: Mapping[str, Any], descriptions: Mapping[str, str], tool: str
) -> None:
    for parameter in parameters:
        name = parameter.name
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"Parameter {str(parameter)!r} of tool {tool!r} cannot be given by name; spell it out.")
        if name not in types:
            hint = " For a tool with state, subclass StatefulTool." if name == "self" else ""
            raise ConfigError(f"Parameter {name!r} of tool {tool!r} has no type: write `{name}: str` or another.{hint}")
        if not descriptions.get(name):
            raise ConfigError(
                f"Parameter {name!r} of tool {tool!r} has no description: add `{name}: ...` under `Args:` in the "
                "docstring; the model reads it."
            )
    surplus = sorted(set(descriptions) - {parameter.name for parameter in parameters})
    if surplus:
        raise ConfigError(f"The docstring of tool {tool!r} describes {surplus[0]!r}, which is not a parameter.")


def _field(parameter: inspect.Parameter, description: str) -> Any:
    default = ... if parameter.default is parameter.empty else parameter.default
    return pydantic.Field(default, alias=parameter.name, description=description)


def _json_schema(model: type[pydantic.BaseModel]) -> JsonDict:
    """The schema in the form that models are trained on: no titles, the type first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default that JSON cannot hold is left out
        schema = _tidied(model.model_json_schema())
    del schema["additionalProperties"]  # says what every caller expects, in every prompt
    return {"type": "object", **schema}


def _tidied(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_tidied(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {"type": schema["type"]} if "type" in schema else {}
    for key, value in schema.items():
        if key in _NAMED_SCHEMAS:  # here a key is a name of the user's: `title` may be one
            tidy[key] = {name: _tidied(item) for name, item in value.items()}
        elif key != "title":
            tidy[key] = value if key in _VALUES else _tidied(value)
    return tidy
