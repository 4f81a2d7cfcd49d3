"""The back end `bubblewrap`: namespaces, a system-call filter and control groups, without an engine.

What a program in it finds: no network but an empty loopback of its own; no process but its own; a read-only file system
with the system's programs, Python and chosen packages; some memory to write files to; no capability, and no way to get
one; an empty environment. The kernel is shared: a bug in it is a way out.

**Who runs it.** A normal user's sandbox gets a user namespace, in which the user is called nobody. Root's does not:
mapped to root outside, such a nobody could read whatever root can and is shown to it. Instead bubblewrap runs as root,
which can show what only root may reach, for example a Python below /root, and then gives up root for good (`setpriv`)
for a user id that no other sandbox, user or service of the machine has; only then does Python start. The alternative,
giving up root before bubblewrap starts, would leave it unable to show what lies in folders that are closed to others,
and in need of user namespaces, which many systems refuse to all but root.

**Which Python.** The running one; if it does not start in there, the system's /usr/bin/python3; otherwise the back end
is unavailable, and the error says why. host_python.py says what of it is shown.

**Limits.** With control groups for memory and processes where the machine lets us have them (`limits_are_enforced`).
Without, they are best effort: the runner's, and per process those of `setrlimit`.
"""

import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrl.errors import InfrastructureError
from agentrl.sandbox.bubblewrap.command import BOX
from agentrl.sandbox.bubblewrap.link import BubblewrapLink
from agentrl.sandbox.bubblewrap.remedy import remedy
from agentrl.sandbox.core import Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.host_python import HostPython, describe, describe_other
from agentrl.sandbox.janitor import ensure_janitor
from agentrl.sandbox.launch import MIN_PYTHON, runner_command, runner_environment
from agentrl.sandbox.link import Started
from agentrl.sandbox.linux.cgroups import find_place
from agentrl.sandbox.session import RunnerSandbox

DEFAULT_PACKAGES = ("numpy", "sympy")
_SYSTEM_PYTHON = "/usr/bin/python3"
_PROBE_S = 60.0
_PROBE_PROGRAM = f"""
import json, os, resource, sys
if sys.version_info < {MIN_PYTHON}:
    sys.exit("Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or later is needed, this is " + sys.version.split()[0])
resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
try:
    if os.fork() == 0:
        os._exit(0)
    alone = True
except BlockingIOError:
    alone = False
print(json.dumps(alone))
"""
_SLEEPING_PROCESSES = 64
"""A sandbox's user id may have two cells' processes and, for forks that wait, so many more: a last resort, behind the
limit that the runner keeps, against bombs that breed faster than it can kill."""


class Bubblewrap(RunnerSandbox):
    """Opens sessions in bubblewrap sandboxes.

    Args:
        packages: Distributions that cells can import if the host's Python has them; what they require comes along.
    """

    name = "bubblewrap"
    security_level = SecurityLevel.CONTAINER

    def __init__(self, packages: Sequence[str] = DEFAULT_PACKAGES) -> None:
        self._packages = tuple(packages)

    @property
    def limits_are_enforced(self) -> bool:
        """Whether the kernel keeps the limits of a sandbox as a whole; otherwise they are best effort."""
        return find_place() is not None

    def start(self, limits: Limits) -> Started:
        """Starts a sandbox in which a runner waits for its code.

        Raises:
            SandboxUnavailableError: Bubblewrap cannot be used here; the message names the remedy.
            InfrastructureError: It failed this time.
        """
        setup = _find_setup(self._packages)
        ensure_janitor()
        command = runner_command(setup.python.executable)
        link = BubblewrapLink(setup.bwrap, setup.python, command, _environment(setup.python), limits)
        user_processes = 2 * int(limits.pids) + _SLEEPING_PROCESSES if setup.counts_processes_alone else None
        return Started(link=link, root=BOX, max_user_processes=user_processes)


@dataclass(frozen=True, slots=True)
class _Setup:
    """What works on this machine."""

    bwrap: str
    python: HostPython
    counts_processes_alone: bool
    """Whether RLIMIT_NPROC counts the processes of one sandbox only."""


@functools.cache
def _find_setup(packages: tuple[str, ...]) -> _Setup:
    """Tries out what a sandbox needs, once per process.

    Raises:
        SandboxUnavailableError: Nothing works.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None or sys.platform != "linux":
        raise SandboxUnavailableError(remedy(None))
    errors = []
    for python in _candidates(packages):
        try:
            return _Setup(bwrap, python, _probe(bwrap, python))
        except InfrastructureError as error:
            errors.append(f"{python.executable}: {error}")
    raise SandboxUnavailableError(remedy("; ".join(errors)))


def _candidates(packages: tuple[str, ...]) -> Iterator[HostPython]:
    running = describe(packages)
    yield running
    other = describe_other(_SYSTEM_PYTHON, packages)
    if other is not None and other.executable != running.executable:
        yield other


def _probe(bwrap: str, python: HostPython) -> bool:
    """Runs a small program in a sandbox; whether its RLIMIT_NPROC counts its own processes alone.

    Raises:
        InfrastructureError: It does not run.
    """
    command = [python.executable, "-s", "-c", _PROBE_PROGRAM]
    link = BubblewrapLink(bwrap, python, command, _environment(python), Limits())
    try:
        answer = b""
        while part := link.receive(4096, _PROBE_S):
            answer += part
        if not answer:
            raise InfrastructureError(link.last_words() or "Python ended without a word")
        return bool(json.loads(answer))
    except (OSError, ValueError) as error:
        raise InfrastructureError(f"the answer of a first program did not come: {error}") from error
    finally:
        link.close()


def _environment(python: HostPython) -> dict[str, str]:
    environment = runner_environment()
    if python.package_folders:
        environment["PYTHONPATH"] = os.pathsep.join(python.package_folders)
    return environment
