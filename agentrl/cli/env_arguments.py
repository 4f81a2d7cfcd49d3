"""`--env-arg key=value`: arguments of an environment, typed as the overrides of a config are."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from agentrl.config import Config, load_config
from agentrl.errors import ConfigError


class _Arguments(Config):
    env: dict[str, Any] = Field(default_factory=dict)


def parse_env_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments by name; the values are YAML.

    Raises:
        ConfigError: One is not of the form key=value.

    >>> parse_env_arguments(["level=[1, 2]", "path=tasks.jsonl"])
    {'level': [1, 2], 'path': 'tasks.jsonl'}
    """
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--env-arg looks like key=value, got {pair!r}.")
    return load_config(_Arguments, overrides=[f"env.{pair}" for pair in pairs]).env
