"""Tools that a model can call."""

from agentrl.errors import ToolError
from agentrl.tools.arguments import InvalidArgumentsError
from agentrl.tools.bm25 import SearchIndex
from agentrl.tools.calculator import calculate, calculator, evaluate
from agentrl.tools.calculator_bounds import CalculatorError
from agentrl.tools.catalog import TOOLS, make_tools
from agentrl.tools.core import Tool, ToolResult, ToolStatus
from agentrl.tools.corpus import Document, Hit, load_corpus
from agentrl.tools.function import FunctionTool, tool
from agentrl.tools.interpreter import InterpreterTool
from agentrl.tools.mcp_client import McpTool, mcp_tools
from agentrl.tools.mcp_servers import close_mcp_servers
from agentrl.tools.search import Retriever, SearchTool, local_search
from agentrl.tools.stateful import StatefulTool
from agentrl.tools.toolbox import Toolbox
from agentrl.tools.web_search import http_search, web_search

__all__ = [
    "TOOLS",
    "CalculatorError",
    "Document",
    "FunctionTool",
    "Hit",
    "InterpreterTool",
    "InvalidArgumentsError",
    "McpTool",
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
    "close_mcp_servers",
    "evaluate",
    "http_search",
    "load_corpus",
    "local_search",
    "make_tools",
    "mcp_tools",
    "tool",
    "web_search",
]
