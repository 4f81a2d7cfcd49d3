"""What of the host's file system a Python needs in order to run in a sandbox, and nothing else.

The interpreter is shown where it lies on the host, so that every path that is built into a program holds. Of
third-party packages only chosen ones and what they require are shown, never a whole `site-packages`: agentrl, the
user's project and its reward code may lie there. Those of a virtual environment, which often lies in the user's
project, get a place of their own.

Standard library only: another Python than the running one is asked by running this file with it.
"""

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
"""Where the system's programs and libraries are; on most systems all but the first are links into it."""
_PACKAGES = "/opt/packages"
_SITE_PATTERNS = ("python3*/site-packages", "python3*/dist-packages")
_LIBRARY_FOLDERS = ("lib", "lib64")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """A Python interpreter of this machine and the files that it needs."""

    executable: str
    paths: tuple[str, ...]
    """Files and folders outside the system's, among them the standard library."""
    hidden: tuple[str, ...]
    """Folders inside what is shown that must appear empty: third-party packages, what was installed by hand."""
    packages: Mapping[str, str]
    """Files and folders of the chosen packages: where each is shown to where it lies."""

    @property
    def package_folders(self) -> list[str]:
        """What `sys.path` must hold for the packages to be found."""
        return sorted({os.path.dirname(place) for place in self.packages})


def describe(packages: Iterable[str]) -> HostPython:
    """The running Python.

    Args:
        packages: Names of distributions; those that are not installed are left out.
    """
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    shown = [executable, *_library_folders(), *_linked_libraries(executable)]
    hidden = [folder for folder in ("/usr/local", "/usr/src") if os.path.isdir(folder)]
    for root in sorted({sys.base_prefix, "/usr"}):
        for library in _LIBRARY_FOLDERS:
            for pattern in ("python3/dist-packages", *_SITE_PATTERNS):
                hidden += [str(folder) for folder in Path(root, library).glob(pattern) if not folder.is_symlink()]
    return HostPython(
        executable=executable,
        paths=tuple(_without_contained(path for path in shown if not _is_system(path))),
        hidden=tuple(dict.fromkeys(hidden)),
        packages={_place(path): path for path in _package_entries(packages)},
    )


@functools.cache
def describe_other(python: str, packages: tuple[str, ...]) -> HostPython | None:
    """Another Python of this machine; None if there is none at this path, or it is broken.

    Args:
        python: Path of the interpreter.
        packages: See `describe`.
    """
    try:
        command = [python, "-I", os.path.abspath(__file__), *packages]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    fields = json.loads(answer.stdout)
    return HostPython(
        executable=fields["executable"],
        paths=tuple(fields["paths"]),
        hidden=tuple(fields["hidden"]),
        packages=fields["packages"],
    )


def _is_system(path: str) -> bool:
    """Whether a path is shown anyhow, as a part of the system."""
    real = os.path.realpath(path)
    return real.startswith("/usr/") and not real.startswith("/usr/local/")


def _without_contained(paths: Iterable[str]) -> list[str]:
    """Leaves out what lies in another of the folders."""
    kept: list[str] = []
    for path in sorted(set(paths)):  # a folder comes before what is in it
        if not any(path.startswith(f"{folder}/") for folder in kept):
            kept.append(path)
    return kept


def _library_folders() -> list[str]:
    """The standard library and, beside it, the shared libraries that the interpreter was installed with."""
    own = [os.path.join(sys.base_prefix, name) for name in _LIBRARY_FOLDERS]
    base = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    base |= {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # not those of a virtual environment
    standard = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    return [path for path in (*own, *standard) if os.path.isdir(path) and not os.path.islink(path)]


def _linked_libraries(program: str) -> list[str]:
    """Shared libraries that a program is linked to, as the system's own tool finds them."""
    try:
        answer = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", answer.stdout, flags=re.MULTILINE)


def _place(package: str) -> str:
    """Where a package is shown: where it is, if libraries beside the interpreter belong to it, as those of conda do."""
    if package.startswith(f"{sys.base_prefix}/"):
        return package
    return f"{_PACKAGES}/{os.path.basename(package)}"


def _package_entries(names: Iterable[str]) -> list[str]:
    """Files and folders at the top of the packages and of those that they require."""
    entries: set[str] = set()
    pending, seen = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}  # ".." leads to programs
        paths = (str(distribution.locate_file(top)) for top in tops)
        entries.update(path for path in paths if os.path.exists(path))
        needed = [text for text in distribution.requires or () if "extra ==" not in text]
        pending += [match[0] for text in needed if (match := re.match(r"[A-Za-z0-9._-]+", text))]
    return sorted(entries)


def main(packages: list[str]) -> None:
    """Prints what this Python needs."""
    print(json.dumps(asdict(describe(packages))))


if __name__ == "__main__":
    main(sys.argv[1:])
