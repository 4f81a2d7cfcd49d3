"""The built-in tools by name, for configs and the command line."""

from collections.abc import Callable

from agentrl.registry import Registry
from agentrl.tools.calculator import calculator
from agentrl.tools.core import Tool
from agentrl.tools.interpreter import InterpreterTool, python_interpreter
from agentrl.tools.search import SearchTool, http_search, local_search

TOOLS: Registry[Callable[..., Tool]] = Registry("tool")
"""Name to factory. A factory takes the tool's options as keyword arguments and returns a tool that is not open."""


@TOOLS.register(calculator.name)
def _calculator() -> Tool:
    return calculator


TOOLS.add(SearchTool.name, local_search)
TOOLS.add("http_search", http_search)
TOOLS.add(InterpreterTool.name, python_interpreter)
