"""Sandbox back ends by name."""

from collections.abc import Callable

from agentrl.registry import Registry
from agentrl.sandbox.core import Sandbox
from agentrl.sandbox.unsafe_subprocess import UnsafeSubprocess

SANDBOXES: Registry[Callable[[], Sandbox]] = Registry("sandbox")
SANDBOXES.add("unsafe_subprocess", UnsafeSubprocess)


def open_sandbox(name: str) -> Sandbox:
    """The back end of that name.

    There is no default: whoever runs model-written code says what protects the machine from it.

    Example:
        >>> open_sandbox("unsafe_subprocess").security_level.name
        'NONE'

    Raises:
        UnknownNameError: No back end has this name; the message suggests the nearest.
        SandboxUnavailableError: The back end cannot be used on this machine.
    """
    return SANDBOXES[name]()
