"""`agentrl new env`: a complete small environment to change, and the test that keeps its contract."""

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from agentrl.errors import ConfigError

ENVIRONMENT = '''\
from agentrl import Task, ToolEnv, register, tool


@tool
def reverse(text: str) -> str:
    """Write a text backwards.

    Args:
        text: What to turn around.
    """
    return text[::-1]


@register("{name}-v0")
class {name}(ToolEnv):
    tools = (reverse,)

    def tasks(self, split):
        return [Task(str(n), f"Reverse {{n}}.", str(n)[::-1]) for n in range(1000, 9999) if n % 2 == (split == "test")]

    def reward(self, task, episode):
        return float(episode.answer == task.answer)
'''
"""What every environment has: tools, tasks in splits that share none (odd numbers are the test), a reward, an id."""

TEST = '''\
"""{name} keeps the contract of an environment: pytest runs every check that EnvContract has."""

from agentrl import register
from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import EnvContract
from agentrl.messages import ToolCall

from {module} import {name}


@register("Solved{name}-v0")
class Solved{name}({name}):
    """The environment with an oracle, which proves that every task can be solved."""

    def oracle(self, task, episode):
        if not episode.calls:
            return format_tool_call(ToolCall("reverse", {{"text": task.id}}))
        return episode.results()[-1].text


class Test{name}(EnvContract):
    env_id = "agentrl/Solved{name}-v0"
'''


def write_environment(name: str, folder: Path) -> list[Path]:
    """Writes `<name>.py` and `test_<name>.py`, the name in snake case.

    Args:
        name: Of the class, in camel case.
        folder: Where to; an existing file is never overwritten.

    Returns:
        The two files.

    Raises:
        ConfigError: The name cannot be one of a class or module, or a file is there already.
    """
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name):
        raise ConfigError(f"An environment is a class; expected a name such as WordCount, got {name!r}.")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    texts = {
        folder / f"{module}.py": ENVIRONMENT.format(name=name),
        folder / f"test_{module}.py": TEST.format(name=name, module=module),
    }
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path.name} exists already; choose another name or move it away.")
    if keyword.iskeyword(module) or find_spec(module) is not None:
        raise ConfigError(f"{module}.py would hide the Python module of that name; choose another name than {name!r}.")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)
