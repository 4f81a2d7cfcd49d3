"""What is said about an MCP server: how it is reached, and how long it is waited for."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from agentrl.errors import ConfigError

MAX_LABEL_CHARS = 100


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """How a server is reached. Equal specs share a connection, unless every episode has its own.

    Example:
        ServerSpec(command=("python", "server.py"), url=None, env=(("TOKEN", None),), cwd=None, api_key_env=None,
                   start_s=30.0, per_episode=False)
    """

    command: tuple[str, ...] | None
    """Program and arguments of a server that talks over its standard streams."""
    url: str | None
    """End point of a server that talks streamable HTTP."""
    env: tuple[tuple[str, str | None], ...]
    """Environment variables of the program; None takes the value that this process has."""
    cwd: str | None
    api_key_env: str | None
    """Environment variable whose value is sent to the URL as a bearer token."""
    start_s: float
    """Longest time that starting, connecting and listing the tools may take together."""
    per_episode: bool

    @property
    def label(self) -> str:
        """What the server is called in messages; never holds a secret from the environment."""
        text = self.url if self.command is None else shlex.join(self.command)
        return text if len(text := text or "") <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 3] + "..."

    def environment(self) -> dict[str, str]:
        """The variables that are set for the program.

        Raises:
            ConfigError: One is to be taken from this process, which does not have it.
        """
        return {name: _own(name, self.label) if value is None else value for name, value in self.env}

    def headers(self) -> dict[str, str]:
        """The HTTP headers that every request carries.

        Raises:
            ConfigError: The variable with the key is not set.
        """
        if self.api_key_env is None:
            return {}
        return {"Authorization": f"Bearer {_own(self.api_key_env, self.label)}"}


def make_spec(
    *,
    command: str | Sequence[str] | None,
    url: str | None,
    env: Mapping[str, str | None] | None,
    cwd: str | None,
    api_key_env: str | None,
    start_s: float,
    per_episode: bool,
) -> ServerSpec:
    """A checked spec; the arguments are those of `mcp_tools`.

    Raises:
        ConfigError: Not exactly one of command and URL, an option of the other kind, or a value that cannot be used.
    """
    if (command is None) == (url is None):
        raise ConfigError("An MCP server is given by command=[program, argument, ...] or by url=, one of the two.")
    if url is not None and (env or cwd):
        raise ConfigError("env and cwd belong to an MCP server that is started by command=, not to one with a url.")
    if url is None and api_key_env:
        raise ConfigError(
            "api_key_env belongs to an MCP server with a url; give a program its key by env={NAME: null}."
        )
    if not (start_s > 0 and math.isfinite(start_s)):
        raise ConfigError(f"start_s of an MCP server must be positive and finite, got {start_s!r}.")
    return ServerSpec(
        command=None if command is None else _checked_command(command),
        url=None if url is None else _checked_url(url),
        env=tuple(sorted((name, None if value is None else str(value)) for name, value in (env or {}).items())),
        cwd=None if cwd is None else str(cwd),
        api_key_env=api_key_env,
        start_s=float(start_s),
        per_episode=per_episode,
    )


def _checked_command(command: str | Sequence[str]) -> tuple[str, ...]:
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as error:
        raise ConfigError(f"The command {command!r} of an MCP server cannot be split into words: {error}.") from error
    if not words or not words[0] or any("\0" in word for word in words):
        raise ConfigError(f"The command of an MCP server is a program and its arguments, got {command!r}.")
    return tuple(words)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"The URL of an MCP server must look like http://host:port/mcp, got {url!r}.")
    if "@" in parts.netloc:
        raise ConfigError("The URL of an MCP server must not hold a user name or password: it is shown in messages.")
    return url


def _own(name: str, label: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(f"The MCP server `{label}` needs the environment variable {name}, which is not set.")
    return value
