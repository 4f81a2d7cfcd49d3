"""What lies around a sandbox for attacks to find: an answer, services, a secret, a process; and whether they did."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

_VARIABLE = "AGENTRL_ATTACKED_API_KEY"
_IS_LINUX = sys.platform == "linux"
_LEFTOVER_S = 30.0
"""For as long a process that was killed may take to be gone from the list of processes, however busy the machine is."""


class Surroundings:
    """Things on the host that no program in a sandbox may reach, while the context is open.

    All are open to every user of the machine, so that it is the sandbox that keeps programs from them and not a
    permission.

    Example:
        >>> with Surroundings() as surroundings:
        ...     sorted(surroundings.values)
        ['ABSTRACT', 'BYSTANDER', 'CANARY', 'FOLDER', 'PORT', 'SOCKET', 'UDP_PORT', 'VARIABLE']
    """

    def __init__(self) -> None:
        token = secrets.token_hex(16)
        self.secret = f"agentrl-canary-{token}"
        """Content of the file, value of the environment variable; must never be in what a session gives back."""
        self._folder = Path(tempfile.gettempdir(), f"agentrl-answers-{token[:8]}")
        self._canary = self._folder / "answer.txt"
        self._abstract = f"agentrl-{token[:8]}"
        self._marker = f"agentrl-bystander-{token[:8]}"
        self._sockets: dict[str, socket.socket] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder.mkdir()
            self._folder.chmod(0o755)
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._write_canary()
            for name, family, kind, address in self._addresses():
                self._sockets[name] = stack.enter_context(_service(family, kind, address))
            (self._folder / "socket").chmod(0o666)
            stack.enter_context(_environment_variable(_VARIABLE, self.secret))
            self._bystander = self._start_bystander()
            stack.callback(self._end_bystander)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def values(self) -> Mapping[str, object]:
        """What the marks in attack programs stand for, but for MARK, which every run draws anew."""
        return {
            "CANARY": str(self._canary),
            "FOLDER": str(self._folder),
            "SOCKET": str(self._folder / "socket"),
            "PORT": self._sockets["tcp"].getsockname()[1],
            "UDP_PORT": self._sockets["udp"].getsockname()[1],
            "ABSTRACT": self._abstract,
            "VARIABLE": _VARIABLE,
            "BYSTANDER": self._marker,
        }

    def damage(self) -> str | None:
        """What was reached since the last call, or None. It is repaired, so that only one attack is blamed for it."""
        found = list(self._reached_services())
        strangers = {path.name for path in self._folder.iterdir()} - {"answer.txt", "socket"}
        if strangers:
            found.append(f"made {sorted(strangers)} beside the answer")
            for name in strangers:
                (self._folder / name).unlink()
        if not self._canary.exists() or self._canary.read_text() != self.secret:
            found.append("changed the answer")
            self._write_canary()
        if self._bystander.poll() is not None or "T" in _states(self._bystander.pid):
            found.append("signalled another process of the host")
            self._end_bystander()
            self._bystander = self._start_bystander()
        return "; ".join(found) or None

    def _addresses(self) -> list[tuple[str, int, int, tuple[str, int] | str]]:
        loopback = ("127.0.0.1", 0)
        addresses: list[tuple[str, int, int, tuple[str, int] | str]] = [
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, loopback),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, loopback),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(self._folder / "socket")),
        ]
        if _IS_LINUX:
            addresses.append(("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self._abstract))
        return addresses

    def _reached_services(self) -> Iterator[str]:
        for name, service in self._sockets.items():
            num_visits = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    if name == "udp":
                        service.recv(100)
                    else:
                        service.accept()[0].close()
                    num_visits += 1
            if num_visits:
                yield f"reached the host's {name} service"

    def _write_canary(self) -> None:
        self._canary.write_text(self.secret)
        self._canary.chmod(0o644)

    def _start_bystander(self) -> subprocess.Popen[bytes]:
        """A process with the secret in its environment; it ends when it hears from us, or no more.

        It is waited for: for a moment after it was started, a process shows no command line to look for.
        """
        code = "import sys; print(flush=True); sys.stdin.read()"
        command = [sys.executable, "-I", "-S", "-c", code, self._marker]
        bystander = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert bystander.stdout is not None
        bystander.stdout.readline()
        return bystander

    def _end_bystander(self) -> None:
        self._bystander.kill()
        self._bystander.communicate()


def leftovers(mark: str) -> list[int]:
    """Ids of living processes that have taken the name `mark` (see `programs.MARKED`); empty off Linux."""
    deadline = time.monotonic() + _LEFTOVER_S
    while True:
        found = [pid for pid in _processes() if _name(pid).startswith(mark) and set(_states(pid)) - {"Z", "X"}]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def _service(family: int, kind: int, address: tuple[str, int] | str) -> socket.socket:
    service = socket.socket(family, kind)
    try:
        service.bind(address)
        if kind == socket.SOCK_STREAM:
            service.listen(64)  # connections are made by the kernel; nobody needs to wait for them
        service.setblocking(False)
    except BaseException:
        service.close()
        raise
    return service


@contextlib.contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if _IS_LINUX else []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace")
    except OSError:
        return ""


def _states(pid: int) -> list[str]:
    """State letters of all threads: the first one of a process may be a zombie while others run."""
    states = []
    with contextlib.suppress(OSError):
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                states.append(stat.read_text(errors="replace").rpartition(")")[2].split()[0])
    return states
