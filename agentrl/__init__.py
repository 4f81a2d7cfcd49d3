"""Define tool-use environments, train language-model agents in them, and measure their success rate.

Public names load on first use, so that `import agentrl` stays fast and needs no deep-learning stack.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Task": "agentrl.tasks",
    "Tool": "agentrl.tools",
    "ToolEnv": "agentrl.envs",
    "ToolError": "agentrl.errors",
    "Tree": "agentrl.trajectory",
    "evaluate": "agentrl.evaluation",
    "make": "agentrl.envs",
    "register": "agentrl.envs",
    "tool": "agentrl.tools",
    "train": "agentrl.trainers",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
