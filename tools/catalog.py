"""The built-in tools by name, for configs and the command line."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.errors import ConfigError
from agentrl.registry import Registry
from agentrl.tools.calculator import calculator
from agentrl.tools.core import Tool
from agentrl.tools.interpreter import InterpreterTool, python_interpreter
from agentrl.tools.mcp_client import mcp_tools
from agentrl.tools.search import SearchTool, local_search
from agentrl.tools.web_search import http_search, search_with

TOOLS: Registry[Callable[..., Tool | Sequence[Tool]]] = Registry("tool")
"""Name to factory. A factory takes options as keyword arguments and returns a tool that is not open, or several."""


@TOOLS.register(calculator.name)
def _calculator() -> Tool:
    return calculator


TOOLS.add(SearchTool.name, local_search)
TOOLS.add("http_search", http_search)
TOOLS.add("searxng", search_with("searxng", "The search tool over a SearXNG server, a metasearch engine of your own."))
TOOLS.add("serper", search_with("serper", "The search tool over Google, by the paid service Serper or one like it."))
TOOLS.add("jina", search_with("jina", "The search tool over the paid service Jina."))
TOOLS.add(InterpreterTool.name, python_interpreter)
TOOLS.add("mcp", mcp_tools)


def make_tools(name: str, options: Mapping[str, Any] | None = None) -> tuple[Tool, ...]:
    """The tools that an entry of a config stands for: one, or those of a whole server.

    Args:
        name: A key of `TOOLS`, or "module:name" of a tool, or a sequence of them, in a module of one's own.
        options: Keyword arguments of the factory.

    Raises:
        UnknownNameError: No tool has this name.
        ConfigError: The options are not those of the factory, or the module has no such tool.
    """
    given = dict(options or {})
    if ":" in name:
        if given:
            raise ConfigError(f"The tool {name!r} is ready-made and takes no options, got {given}.")
        made = _imported(name)
    else:
        try:
            made = TOOLS[name](**given)
        except TypeError as error:
            raise ConfigError(f"The tool {name!r} refuses its options {given}: {error}.") from error
    return (made,) if isinstance(made, Tool) else tuple(made)


def _imported(path: str) -> Tool | Sequence[Tool]:
    module, _, name = path.partition(":")
    try:
        found = vars(importlib.import_module(module)).get(name)
    except ImportError as error:
        raise ConfigError(f"The tool {path!r} names a module that cannot be imported: {error}.") from error
    if isinstance(found, Tool) or (isinstance(found, list | tuple) and all(isinstance(tool, Tool) for tool in found)):
        return found
    raise ConfigError(f"The tool {path!r} does not exist: {module}.{name} is {found!r}, which is no tool.")
