"""`@tool`: schema, strict validation, conversion of results, and errors when the tool is defined."""

import asyncio
import copy
import enum
import inspect
import pickle
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest

from agentrl.errors import ConfigError
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.function import FunctionTool, to_text, tool


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(pydantic.BaseModel):
    title: str
    price: float = 1.0


@tool
def count(text: str, letter: str = "a") -> int:
    """Count how often a letter occurs in a text.

    Args:
        text: Text to search.
        letter: One character.
    """
    return text.count(letter)


@tool(name="order-items", deadline_s=2.5, max_output_chars=100, idempotent=True, inline=True)
def order(
    items: list[Item],
    color: Color,
    copy: Literal["one", "two"],
    limit: Annotated[int, pydantic.Field(ge=1)] | None = None,
    extra: dict[str, Any] = {},  # noqa: B006 - never changed
) -> str:
    """Order.

    Args:
        items: What.
        color: In which color.
        copy: A name that a pydantic field could not have.
        limit: At most so many.
        extra: Anything.
    """
    return repr((items, color, copy, limit, extra))


def test_schema_in_the_openai_function_convention() -> None:
    assert count.schema == {
        "type": "function",
        "function": {
            "name": "count",
            "description": "Count how often a letter occurs in a text.",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "description": "Text to search."},
                    "letter": {"type": "string", "description": "One character.", "default": "a"},
                },
                "required": ["text"],
            },
        },
    }


def test_schema_of_nested_types() -> None:
    properties, definitions = order.parameters["properties"], order.parameters["$defs"]
    assert definitions["Color"] == {"type": "string", "enum": ["red", "blue"]}
    assert definitions["Item"]["properties"]["title"] == {"type": "string"}  # a property called title is kept
    assert properties["items"] == {"type": "array", "description": "What.", "items": {"$ref": "#/$defs/Item"}}
    assert properties["copy"]["enum"] == ["one", "two"]
    assert properties["limit"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"type": "null"}]
    assert order.parameters["required"] == ["items", "color", "copy"]


def test_the_decorated_function_is_still_a_function() -> None:
    assert count("banana", "a") == 3
    assert count(text="banana") == 3
    assert list(inspect.signature(count).parameters) == ["text", "letter"]
    assert count.__doc__ is not None
    assert count.__doc__.startswith("Count how")


def test_options() -> None:
    assert (order.name, order.deadline_s, order.max_output_chars) == ("order-items", 2.5, 100)
    assert order.inline
    assert order.idempotent
    assert (count.name, count.deadline_s, count.max_output_chars, count.inline) == ("count", 30.0, 8192, False)
    assert (count.idempotent, count.max_concurrency) == (False, None)


def test_values_are_converted_to_the_types_of_the_function() -> None:
    given = {"items": [{"title": "tea", "price": 2}], "color": "blue", "copy": "two"}
    bound = order.check(given)
    assert bound == {"items": [Item(title="tea", price=2.0)], "color": Color.BLUE, "copy": "two"}
    assert order.call(bound) == "([Item(title='tea', price=2.0)], <Color.BLUE: 'blue'>, 'two', None, {})"


@tool
def typed(a: int = 0, b: float = 0.0, c: bool = False, d: Optional[str] = None, e: int | str = 0) -> str:  # noqa: UP045
    """Take one of each.

    Args:
        a: A.
        b: B.
        c: C.
        d: D.
        e: E.
    """
    return "ran"


@pytest.mark.parametrize("arguments", [{}, {"a": 3}, {"b": 3}, {"b": 0.5}, {"c": True}, {"d": None}, {"e": "3"}])
def test_right_arguments(arguments: dict[str, Any]) -> None:
    assert typed.check(arguments) == arguments  # what is not given stays out: the function has its own defaults


def test_an_integer_is_a_number() -> None:
    assert type(typed.check({"b": 3})["b"]) is float


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"a": "3"}, ['a: should be a valid integer, got "3"']),
        ({"a": 3.5}, ["a: should be a valid integer, got 3.5"]),
        ({"a": True}, ["a: should be a valid integer, got true"]),
        ({"b": "0.5"}, ['b: should be a valid number, got "0.5"']),
        ({"c": 1}, ["c: should be a valid boolean, got 1"]),
        ({"d": 3}, ["d: should be a valid string, got 3"]),
        ({"a": None}, ["a: should be a valid integer, got null"]),
        ({"e": []}, ["e: should be a valid integer, got []", "e: should be a valid string, got []"]),
        ({"aa": 3}, ["aa: unknown argument. Did you mean 'a'?"]),
        ({"argument_0": 3}, ["argument_0: unknown argument. Known: a, b, c, d, e."]),
        ({"b": float("nan")}, ["the arguments are not plain JSON: Out of range float values are not JSON compliant"]),
        ({"d": object()}, ["the arguments are not plain JSON: Object of type object is not JSON serializable"]),
        ({"a": 10**5000}, ["the arguments are not plain JSON: Exceeds the limit"]),
        ({"d": "\ud800"}, ["the arguments are not plain JSON: Invalid JSON"]),
        ({"d": ["x" * 1000]}, ['d: should be a valid string, got ["' + "x" * 35 + "..."]),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        typed.check(arguments)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(expected)


def test_wrong_nested_arguments_name_their_place() -> None:
    items = [{"title": "tea"}, {"title": 3, "price": "1.5"}, {"price": 1}]
    with pytest.raises(InvalidArgumentsError) as caught:
        order.check({"items": items, "color": "green", "limit": 0})
    assert caught.value.problems == (
        "items[1].title: should be a valid string, got 3",
        'items[1].price: should be a valid number, got "1.5"',  # strict inside models as well
        "items[2].title: missing",
        "color: should be 'red' or 'blue', got \"green\"",
        "copy: missing",
        "limit: should be greater than or equal to 1, got 0",
    )
    assert str(caught.value).endswith("copy: missing\n... and 1 more")
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3", "3"),
        ("", ""),
        (3, "3"),
        (0.5, "0.5"),
        (True, "true"),
        (None, "null"),
        ({"a": [1, "\u00e9"]}, '{"a": [1, "\u00e9"]}'),
        ((1, 2), "[1, 2]"),
        (Item(title="tea"), '{"title": "tea", "price": 1.0}'),
        ([Item(title="tea")], '[{"title": "tea", "price": 1.0}]'),
        ({"when": 1 + 2j}, '{"when": "(1+2j)"}'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (1 + 2j, "(1+2j)"),
        (b"raw", "b'raw'"),
    ],
)
def test_results_become_text(value: object, text: str) -> None:
    assert to_text(value) == text


def test_a_result_that_contains_itself_becomes_text() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    assert to_text(loop) == "[1, [...]]"


def test_async_functions() -> None:
    @tool
    async def double(x: int) -> int:
        """Double.

        Args:
            x: A number.
        """
        await asyncio.sleep(0)
        return 2 * x

    result = double.call(double.check({"x": 21}))
    assert not isinstance(result, str)

    async def awaited() -> str:
        return await result

    assert asyncio.run(awaited()) == "42"


def untyped(x) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Do.

    Args:
        x: X.
    """
    return ""


def undescribed(x: int, y: int) -> str:
    """Do.

    Args:
        x: X.
    """
    return ""


def stale(x: int) -> str:
    """Do.

    Args:
        x: X.
        z: Was renamed.
    """
    return ""


def variadic(*xs: int) -> str:
    """Do.

    Args:
        xs: X.
    """
    return ""


def inexpressible(x: asyncio.Lock) -> str:
    """Do.

    Args:
        x: X.
    """
    return ""


def unresolved(x: "Missing") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Do.

    Args:
        x: X.
    """
    return ""


def undocumented() -> str:
    return ""


async def waiting() -> str:
    """Do."""
    return ""


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (untyped, {}, "Parameter 'x' of tool 'untyped' has no type"),
        (undescribed, {}, "Parameter 'y' of tool 'undescribed' has no description"),
        (stale, {}, "describes 'z', which is not a parameter"),
        (variadic, {}, r"Parameter '\*xs: int' of tool 'variadic' cannot be given by name"),
        (inexpressible, {}, "has a parameter whose type JSON cannot express"),
        (unresolved, {}, "name 'Missing' is not defined"),
        (undocumented, {}, "Tool 'undocumented' has no description"),
        (lambda: "", {}, "Tool name '<lambda>' is not usable"),
        (count.function, {"name": "two words"}, "Tool name 'two words' is not usable"),
        (count.function, {"deadline_s": 0}, "deadline_s of tool 'count' must be positive and finite, or None .*got 0"),
        (count.function, {"deadline_s": float("inf")}, "must be positive and finite, .*got inf"),
        (count.function, {"max_output_chars": 0}, "max_output_chars of tool 'count' must be positive"),
        (waiting, {"inline": True}, "is async, so it cannot be inline"),
        (Item, {}, "@tool takes a function"),
    ],
)
def test_errors_when_a_tool_is_defined(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tool(**options)(function)


def test_a_method_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'self' of tool 'look' has no type.*subclass StatefulTool"):

        class Room:
            @tool
            def look(self, where: str) -> str:
                """Look.

                Args:
                    where: Where.
                """
                return where


def test_pickling_is_by_reference_and_copies_are_the_tool_itself() -> None:
    assert pickle.loads(pickle.dumps(count)) is count
    assert copy.deepcopy(count) is count
    renamed = FunctionTool(len_of, name="length", deadline_s=1.0)
    twin = pickle.loads(pickle.dumps(renamed))
    assert (twin.name, twin.deadline_s, twin.schema) == ("length", 1.0, renamed.schema)


def len_of(text: str) -> int:
    """Measure.

    Args:
        text: A text.
    """
    return len(text)
