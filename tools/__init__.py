"""Tools that a model can call."""

from agentrl.errors import ToolError
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.arithmetic import CalculatorError
from agentrl.tools.bm25 import SearchIndex
from agentrl.tools.calculator import calculate, calculator, evaluate
from agentrl.tools.catalog import TOOLS
from agentrl.tools.core import Tool, ToolResult, ToolStatus
from agentrl.tools.corpus import Document, Hit, load_corpus
from agentrl.tools.function import FunctionTool, tool
from agentrl.tools.interpreter import InterpreterTool
from agentrl.tools.search import Retriever, SearchTool, http_search, local_search
from agentrl.tools.stateful import StatefulTool
from agentrl.tools.toolbox import Toolbox

__all__ = [
    "TOOLS",
    "CalculatorError",
    "Document",
    "FunctionTool",
    "Hit",
    "InterpreterTool",
    "InvalidArgumentsError",
    "Retriever",
    "SearchIndex",
    "SearchTool",
    "StatefulTool",
    "Tool",
    "ToolError",
    "ToolResult",
    "ToolStatus",
    "Toolbox",
    "calculate",
    "calculator",
    "evaluate",
    "http_search",
    "load_corpus",
    "local_search",
    "tool",
]
