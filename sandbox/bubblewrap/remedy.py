"""Why bubblewrap does not work here, and what to do about it."""

import os
import sys
from pathlib import Path

_OTHERWISE = "Otherwise use the sandbox docker, or http for a remote service."
_NOT_LINUX = "Bubblewrap needs Linux. On macOS use the sandbox docker, with Docker Desktop or colima."
_NOT_INSTALLED = (
    "Bubblewrap is not installed (no program bwrap in PATH). Install it with `apt install bubblewrap`, "
    f"`dnf install bubblewrap` or `pacman -S bubblewrap`. {_OTHERWISE}"
)
_NAMESPACES_FAIL = ("namespace", "uid map", "Operation not permitted", "Permission denied", "No space left")
"""What bubblewrap complains of where namespaces are not allowed; ENOSPC stands for a maximum of zero."""
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")
_SYSCTLS = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "0",
        "AppArmor forbids it (Ubuntu 23.10 on)",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1", "the kernel forbids it to all but root"),
    ("/proc/sys/user/max_user_namespaces", "0", "15000", "the number of user namespaces is limited to zero"),
)


def remedy(failure: str | None) -> str:
    """One message for the user.

    Args:
        failure: What bubblewrap said, or None if there is none to ask.
    """
    if sys.platform != "linux":
        return _NOT_LINUX
    if failure is None:
        return _NOT_INSTALLED
    return f"Bubblewrap does not work here ({failure}). {_cause(failure)}{_OTHERWISE}"


def _cause(failure: str) -> str:
    if "Unknown option" in failure:
        return "This bubblewrap is too old: 0.7 or later is needed. "
    if "setpriv" in failure and "No such file" in failure:
        return "Root needs setpriv to give up its rights: `apt install util-linux`. "
    if not any(part in failure for part in _NAMESPACES_FAIL):
        return ""
    if os.geteuid() != 0:
        for path, bad, good, why in _SYSCTLS:
            if _read(path) == bad:
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                return f"It needs user namespaces, and {why}: allow them with `sudo sysctl -w {name}={good}`. "
    if any(os.path.exists(mark) for mark in _CONTAINER_MARKS) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return "Containers mostly forbid namespaces: start this one with `--privileged`, or run outside of it. "
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
