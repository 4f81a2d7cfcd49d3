"""Environment ids: `register` puts a `ToolEnv` into Gymnasium's table, `make` builds one from it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import gymnasium
from gymnasium.envs.registration import EnvCreator

from agentrl.envs.tool_env import ToolEnv
from agentrl.errors import ConfigError, UnknownNameError
from agentrl.registry import nearest

NAMESPACE = "agentrl"
E = TypeVar("E", bound=type[ToolEnv])


def register(env_id: str, *, max_turns: int | None = None) -> Callable[[E], E]:
    """A class decorator that registers an environment with Gymnasium.

    Args:
        env_id: "Name-v0"; a name without a namespace is put into "agentrl/".
        max_turns: Turn limit; the class's own if None.

    Example:
        @register("Letters-v0", max_turns=4)
        class Letters(ToolEnv): ...
    """

    def enter(cls: E) -> E:
        if max_turns is not None:
            cls.max_turns = max_turns
        full = env_id if "/" in env_id else f"{NAMESPACE}/{env_id}"
        # Gymnasium's order and passive checkers would wrap every step; ToolEnv checks both itself.
        gymnasium.register(full, entry_point=cast(EnvCreator, cls), order_enforce=False, disable_env_checker=True)
        return cls

    return enter


def make(env_id: str, **arguments: Any) -> gymnasium.Env[str, str]:
    """`gymnasium.make` whose errors name the nearest environment id.

    Args:
        env_id: "agentrl/Arithmetic-v0", "Arithmetic-v0", or "module:Name-v0" to import a module of your own first.
        arguments: Passed to the environment, `split="test"` for example.

    Raises:
        UnknownNameError: No such environment.
        ConfigError: The environment refuses the arguments.
    """
    name = env_id if "/" in env_id else ":".join([*env_id.split(":")[:-1], f"{NAMESPACE}/{env_id.split(':')[-1]}"])
    try:
        return gymnasium.make(name, **arguments)
    except gymnasium.error.Error:  # unknown name, namespace or version, or not the form of an id
        known = [key for key in gymnasium.registry if key.startswith(f"{NAMESPACE}/")]
        raise UnknownNameError(f"Unknown environment {env_id!r}. {nearest(name, known)}") from None
    except ModuleNotFoundError as error:
        raise UnknownNameError(f"Environment {env_id!r} names a module that cannot be imported: {error}.") from error
    except TypeError as error:
        reason = str(error).partition(" was raised from the environment creator")[0]
        raise ConfigError(f"Environment {env_id!r} refuses its arguments {arguments}: {reason}.") from error
