"""`agentrl serve-policy`: a vLLM server that trainers sample from."""

import signal
import time
from types import FrameType

import typer

from agentrl.errors import InfrastructureError
from agentrl.policies.vllm.launch import LocalServer
from agentrl.policies.vllm.settings import EngineSettings

_POLL_SECONDS = 0.5


class _Stopped(BaseException):
    """A signal asked for the end; no `except Exception` on the way stops it."""


def serve_policy(settings: EngineSettings, *, host: str, port: int, trusted_network: bool) -> None:
    """Serves until SIGINT or SIGTERM, and returns then.

    Args:
        settings: Of the engine.
        host: Address to listen at.
        port: 0 takes a free one.
        trusted_network: See `LocalServer`.

    Raises:
        ConfigError: The address cannot be used.
        MissingExtraError: vLLM is not installed.
        InfrastructureError: The server does not start, or ended by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with LocalServer(settings, host=host, port=port, trusted_network=trusted_network) as server:
            typer.echo(f"policy at {server.url}")
            while server.is_running():
                time.sleep(_POLL_SECONDS)
            raise InfrastructureError("The vLLM server ended by itself. What it printed stands above.")
    except _Stopped:
        return


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second one must not break off the clearing away
    raise _Stopped
