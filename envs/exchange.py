"""What goes into and comes out of an environment by Gymnasium's methods, checked and as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from agentrl import messages as msg
from agentrl.errors import ConfigError
from agentrl.messages import Message
from agentrl.text import clean_text


def task_option(options: Mapping[str, Any]) -> int | None:
    """The index in `options={"task": index}`.

    Raises:
        ConfigError: Another option, or an index that is no integer.
    """
    unknown = sorted(set(options) - {"task"})
    if unknown:
        raise ConfigError(f'reset() does not know the option {unknown[0]!r}; it takes options={{"task": index}}.')
    index = options.get("task")
    if index is None:
        return None
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise ConfigError(f"The option 'task' is the index of a task, got {index!r}.")
    return int(index)


def checked_text(action: object) -> str:
    """The text of an action, with what UTF-8 cannot hold replaced.

    Raises:
        gymnasium.error.InvalidAction: It is not a string.
    """
    if not isinstance(action, str):
        raise gymnasium.error.InvalidAction(f"An action is the text of one turn, got {type(action).__name__}.")
    return clean_text(action)


def as_text(messages: Sequence[Message], role: msg.Role) -> str:
    """The contents of the messages of one role, as an observation."""
    return "\n\n".join(message["content"] for message in messages if message["role"] == role)
