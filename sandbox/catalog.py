"""Sandbox back ends by name."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias

from agentrl.errors import ConfigError
from agentrl.registry import Registry, nearest
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap
from agentrl.sandbox.core import Sandbox, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.http_service import HttpSandbox
from agentrl.sandbox.pool import WarmPool
from agentrl.sandbox.session import RunnerSandbox
from agentrl.sandbox.stateless import StatelessSandbox
from agentrl.sandbox.unsafe_subprocess import UnsafeSubprocess

Share: TypeAlias = Literal["nothing", "stateless"]
AUTO = "auto"


class _Isolating(Protocol):
    """A back end that `auto` may pick."""

    def __call__(self) -> RunnerSandbox: ...


_BY_PREFERENCE: dict[str, _Isolating] = {"docker": DockerSandbox, "bubblewrap": Bubblewrap}

SANDBOXES: Registry[Callable[..., Sandbox]] = Registry("sandbox")


@SANDBOXES.register(AUTO)
def _auto() -> RunnerSandbox:
    """Docker, else bubblewrap; never anything without isolation.

    Raises:
        SandboxUnavailableError: Neither can be used here; the message says why and what to do.
    """
    sandbox, passed_over = _first_usable()
    reason = f" ({passed_over})" if passed_over else ""
    print(f"sandbox auto: {sandbox.name}, {describe_level(sandbox.security_level)}{reason}", file=sys.stderr)
    return sandbox


for _name, _back_end in _BY_PREFERENCE.items():
    SANDBOXES.add(_name, _back_end)
SANDBOXES.add("http", HttpSandbox)
SANDBOXES.add("unsafe_subprocess", UnsafeSubprocess)


def open_sandbox(name: str, *, ready: int = 0, share: Share = "nothing", **options: Any) -> Sandbox:
    """The back end of that name.

    There is no default: whoever runs model-written code says what protects the machine from it.

    Args:
        name: A key of `SANDBOXES`. "auto" takes docker, else bubblewrap, else raises.
        ready: How many sandboxes are kept ready (see `WarmPool`); 0 starts each when it is needed.
        share: "nothing" gives every session a sandbox of its own; "stateless" runs every cell as a program of its own
            in sandboxes that all sessions share: faster and weaker (see `StatelessSandbox`).
        options: Of the back end.

    Example:
        >>> open_sandbox("unsafe_subprocess").security_level.name
        'NONE'

    Raises:
        UnknownNameError: No back end has this name; the message suggests the nearest.
        ConfigError: The back end does not have these options.
        SandboxUnavailableError: The back end cannot be used on this machine.
    """
    factory = SANDBOXES[name]
    _check_options(name, factory, options)
    sandbox = factory(**options)
    if share not in ("nothing", "stateless"):
        raise ConfigError(f"share must be 'nothing' or 'stateless', got {share!r}.")
    if not ready and share == "nothing":
        return sandbox
    if not isinstance(sandbox, RunnerSandbox):
        raise ConfigError(
            f"The sandbox {name!r} shares and keeps its processes as it likes: leave out ready and share."
        )
    if share == "stateless":
        if ready:
            raise ConfigError("share='stateless' keeps its sandboxes anyway: leave out ready.")
        return StatelessSandbox(sandbox)
    return WarmPool(sandbox, num_ready=ready)


def _check_options(name: str, factory: Callable[..., Sandbox], options: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a back end does not have an option, or lacks one that it needs."""
    parameters = inspect.signature(factory).parameters.values()
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in named and not takes_any:
            raise ConfigError(
                f"The sandbox {name!r} has no option {option!r}. {nearest(option, [*named, 'ready', 'share'])}"
            )
    needed = [p.name for p in named.values() if p.default is p.empty and p.name not in options]
    if needed:
        raise ConfigError(
            f"The sandbox {name!r} needs the option {needed[0]!r}: open_sandbox({name!r}, {needed[0]}=...)."
        )


def describe_level(level: SecurityLevel) -> str:
    """One line about what a level holds against."""
    return f"level {level.value} ({level.name.lower()}): {_LEVELS[level]}"


@cache
def _first_usable() -> tuple[RunnerSandbox, str]:
    """The first back end that can be used here, and why those before it cannot."""
    reasons = []
    for name, make in _BY_PREFERENCE.items():
        sandbox = make()
        try:
            sandbox.check()
        except SandboxUnavailableError as error:
            reasons.append(f"{name}: {error}")
        else:
            return sandbox, "; ".join(reasons)
    listed = "\n".join(f"- {reason}" for reason in reasons)
    raise SandboxUnavailableError(
        f"No sandbox that isolates can be used here:\n{listed}\n"
        "Do one of these things, or name a remote service with sandbox='http', or run the code with your own rights, "
        "without any isolation, with sandbox='unsafe_subprocess'."
    )


_LEVELS = {
    SecurityLevel.NONE: "accidents only, no isolation",
    SecurityLevel.CONTAINER: "hostile programs, but not holes in the kernel that they share with this machine",
    SecurityLevel.USER_KERNEL: "hostile programs and most holes in the kernel",
    SecurityLevel.MICRO_VM: "hostile programs and holes in their kernel",
}
