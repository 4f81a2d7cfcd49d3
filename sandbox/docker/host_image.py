"""A root file system for containers made of the running Python: no registry, no network, no compiler needed.

In it are the interpreter, its standard library, chosen packages, a few common programs, and the shared libraries that
all these are linked to. They are laid out anew, so that no path of this machine shows in a sandbox: an interpreter
finds its library from where it lies itself, and the loader looks for libraries beside the C library.
"""

import io
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from agentrl.errors import ConfigError
from agentrl.sandbox.host_python import describe

_PROGRAMS = (
    *("sh", "basename", "cat", "chmod", "cp", "cut", "date", "diff", "dirname", "du", "echo", "env", "expr", "false"),
    *(
        "find",
        "grep",
        "gzip",
        "head",
        "id",
        "ln",
        "ls",
        "mkdir",
        "mktemp",
        "mv",
        "pwd",
        "readlink",
        "rm",
        "rmdir",
        "sed",
    ),
    *(
        "seq",
        "sleep",
        "sort",
        "stat",
        "tail",
        "tar",
        "tee",
        "test",
        "touch",
        "tr",
        "true",
        "uname",
        "uniq",
        "wc",
        "xargs",
    ),
)
"""What shell commands of an agent are made of; those that this machine lacks are left out."""
_LEFT_OUT = {"site-packages", "dist-packages", "test", "idlelib", "turtledemo", "ensurepip", "lib2to3", "tkinter"}
"""Of the standard library: other people's packages, and what makes no sense in a sandbox."""
_PREFIX = Path("/usr/local")
_LINKED_FOLDERS = ("bin", "lib", "lib32", "lib64", "sbin")
"""At the root of most systems links into /usr."""
_TIME_ZONES = Path("/usr/share/zoneinfo")
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/box/work:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def write_root(file: IO[bytes], packages: Iterable[str]) -> None:
    """Writes the root file system as a tar archive.

    Args:
        file: To write to.
        packages: Names of distributions; those that are not installed are left out.

    Raises:
        ConfigError: This machine's Python cannot run in a Linux container.
    """
    if sys.platform != "linux":
        raise ConfigError(f"An image can be made of this machine's Python on Linux only, this is {sys.platform}.")
    python = describe(packages)
    executable, library = Path(python.executable), _standard_library()
    library_place = _PREFIX / library.relative_to(sys.base_prefix)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        root = _Root(tar)
        root.add_frame()
        root.add_tree(library, library_place, left_out=_LEFT_OUT)
        for source in map(Path, python.packages.values()):
            root.add_tree(source, library_place / "site-packages" / source.name)
        root.add_link(library_place / "dist-packages", "site-packages")  # how Debian's Python calls it
        root.add_tree(_TIME_ZONES, _TIME_ZONES, left_out=("posix", "right"))
        for name in _PROGRAMS:
            if program := shutil.which(name):
                root.add_file(Path(program), Path("/usr/bin", name))
        root.add_file(executable, _PREFIX / "bin" / executable.name)
        root.add_link(_PREFIX / "bin/python3", executable.name)
        own = [os.path.realpath(source) for source in python.packages.values()]
        for source, place in _linked_libraries(root.programs):
            if not any(os.path.realpath(source).startswith(f"{folder}/") for folder in own):
                root.add_file(source, place)


class _Root:
    """Adds files to an archive as root's, readable by everybody, without special bits; each once."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._names: set[str] = set()
        self.programs: list[Path] = []
        """Files that may be linked to shared libraries, where they lie on this machine."""

    def add_frame(self) -> None:
        """Adds what every container needs beside programs."""
        for folder in ("dev", "etc", "proc", "sys", "usr/bin", "usr/lib"):
            self._add_folder(folder)
        for name in _LINKED_FOLDERS:
            if os.path.islink(f"/{name}"):
                self._add_folder(f"usr/{name}")
                self.add_link(Path("/", name), f"usr/{name}")
        for name, text in _ACCOUNTS.items():
            self._add(_entry(name, size=len(text)), io.BytesIO(text.encode()))
        self._add(_entry("box", kind=tarfile.DIRTYPE, mode=0o1777))
        self.add_link(Path("/work"), "box/work")
        self.add_link(Path("/tmp"), "box/tmp")

    def add_link(self, place: Path, target: str) -> None:
        """Adds a symbolic link."""
        self._add(_entry(str(place).lstrip("/"), kind=tarfile.SYMTYPE, target=target))

    def add_tree(self, source: Path, place: Path, left_out: Iterable[str] = ()) -> None:
        """Adds a file or folder; links in it are replaced by what they lead to.

        Args:
            source: On this machine.
            place: In the archive.
            left_out: Names right below `source`.
        """
        for path in _files_below(source, set(left_out)):
            self.add_file(path, place / path.relative_to(source))

    def add_file(self, source: Path, place: Path) -> None:
        """Adds a file, following links. A place that is taken already keeps what it has."""
        name = str(place).lstrip("/")
        if name in self._names:
            return
        with source.open("rb") as content:
            status = os.fstat(content.fileno())
            mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            # compiled modules are valid for the time of their source
            self._add(_entry(name, size=status.st_size, mode=mode, mtime=int(status.st_mtime)), content)
        if mode == 0o755 or ".so" in source.suffixes:
            self.programs.append(source)

    def _add_folder(self, name: str) -> None:
        if name and name not in self._names:
            self._add(_entry(name, kind=tarfile.DIRTYPE, mode=0o755))

    def _add(self, entry: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        self._add_folder(os.path.dirname(entry.name))
        self._names.add(entry.name)
        self._tar.addfile(entry, content)


def _entry(
    name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, mode: int = 0o644, mtime: int = 0, target: str = ""
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mode, entry.mtime, entry.linkname = kind, size, mode, mtime, target
    return entry


def _files_below(source: Path, left_out: set[str]) -> Iterator[Path]:
    if source.is_file():
        yield source
    for folder, names, files in os.walk(source, followlinks=True):
        if Path(folder) == source:
            names[:] = [name for name in names if name not in left_out and not name.startswith("config-")]
        for name in files:
            if not name.endswith((".opt-1.pyc", ".opt-2.pyc", ".a")) and os.path.isfile(os.path.join(folder, name)):
                yield Path(folder, name)


def _standard_library() -> Path:
    base = {"installed_base": sys.base_prefix, "base": sys.base_prefix}  # not a virtual environment's
    return Path(sysconfig.get_path("stdlib", vars=base))


def _linked_libraries(programs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Shared libraries that programs are linked to, and the loader: where each lies and where it belongs."""
    answer = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    found = [
        Path(path) for path in sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", answer.stdout, flags=re.MULTILINE)))
    ]
    folder = next((_through_links(path.parent) for path in found if path.name.startswith("libc.")), Path("/lib"))
    return [
        (path, _through_links(path.parent) / path.name if path.name.startswith("ld-") else folder / path.name)
        for path in found
    ]


def _through_links(folder: Path) -> Path:
    """The folder with the links at its root followed, such as /lib; they are in the archive too."""
    return Path(os.path.realpath(folder)) if folder.parts[1] in _LINKED_FOLDERS else folder
