"""Files and folders appear whole or not at all, whatever happens in between."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from agentrl.errors import CheckpointError
from agentrl.files import atomic_directory, settle_directories, write_atomically, writing

Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "weights").write_text(content)


def replace(path: Path, content: str, error: BaseException | None = None, target: str = "") -> None:
    """Replaces a folder by one with other weights, written to `target` if given; `error` strikes before the end."""
    with atomic_directory(path) as folder:
        if target:
            (folder / "weights").symlink_to(target)
        (folder / "weights").write_text(content)
        if error is not None:
            raise error


def test_write_atomically_replaces(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, ["new ", "text\n"])
        assert reader.read() == "old"  # the file that was being read is whole, not half overwritten
    assert path.read_text() == "new text\n"
    assert names(tmp_path) == ["status.json"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, (str(1 // (2 - i)) for i in range(9)))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["status.json"]


def test_a_new_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "deep" / "last") as folder:
        make(folder / "nested", "1")
        assert not (tmp_path / "deep" / "last").exists()
    assert (tmp_path / "deep" / "last" / "nested" / "weights").read_text() == "1"
    assert names(tmp_path / "deep") == ["last"]


def test_a_replaced_directory_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "last", "old")
    (tmp_path / "last" / "extra").write_text("old")
    with atomic_directory(tmp_path / "last") as folder:
        (folder / "weights").write_text("new")
        assert (tmp_path / "last" / "weights").read_text() == "old"
    assert names(tmp_path / "last") == ["weights"]
    assert (tmp_path / "last" / "weights").read_text() == "new"
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_keeps_the_old_directory(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "last", "old")
    with pytest.raises(type(error)):
        replace(tmp_path / "last", "half", error)
    assert (tmp_path / "last" / "weights").read_text() == "old"
    assert names(tmp_path) == ["last"]


def test_an_interrupt_between_the_renamings_still_leaves_one_whole_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "last", "old")
    renamings: list[str] = []
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamings.append(target.name)
        if len(renamings) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(tmp_path / "last", "new")
    assert renamings[:2] == [".last.old", "last"]
    assert (tmp_path / "last" / "weights").read_text() == "new"
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize(
    ("present", "content"),
    [
        ({"last": "old", ".last.partial": "half"}, "old"),  # killed while filling
        ({".last.old": "old", ".last.partial": "new"}, "new"),  # killed between the two renamings
        ({".last.old": "old", "last": "new"}, "new"),  # killed before the old one was removed
        ({".last.old": "old"}, "old"),  # someone removed the new one by hand
        ({"last": "only"}, "only"),
    ],
)
def test_settling_after_a_kill(tmp_path: Path, present: dict[str, str], content: str) -> None:
    for name, text in present.items():
        make(tmp_path / name, text)
    make(tmp_path / ".hidden", "of someone else")
    settle_directories(tmp_path)
    assert names(tmp_path) == [".hidden", "last"]
    assert (tmp_path / "last" / "weights").read_text() == content


def test_a_first_directory_that_was_killed_is_gone(tmp_path: Path) -> None:
    make(tmp_path / ".last.partial", "half")
    settle_directories(tmp_path)
    settle_directories(tmp_path / "missing")
    assert names(tmp_path) == []


CHILD = """
import sys
from pathlib import Path
from agentrl.files import atomic_directory
number = 0
while True:
    number += 1
    with atomic_directory(Path(sys.argv[1])) as folder:
        (folder / "a").write_text(str(number))
        (folder / "b").write_text(str(number))
"""


@pytest.mark.parametrize("delay_s", [0.01, 0.03, 0.07])
def test_kill_9_never_leaves_half_a_directory(tmp_path: Path, delay_s: float) -> None:
    path = tmp_path / "last"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
    try:
        while not path.exists():
            assert child.poll() is None
            time.sleep(0.001)
        time.sleep(delay_s)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    settle_directories(tmp_path)
    assert names(tmp_path) == ["last"]
    assert (path / "a").read_text() == (path / "b").read_text()


# Errors: one line that says what to do


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with (
        pytest.raises(CheckpointError, match=r"^No space left on the disk .*/log\. Free some"),
        writing(tmp_path / "log"),
    ):
        (tmp_path / "log").write_text("x")


def test_a_full_disk_while_filling_a_directory(tmp_path: Path) -> None:
    make(tmp_path / "last", "old")
    with pytest.raises(CheckpointError, match="No space left"):
        replace(tmp_path / "last", "x", target="/dev/full")
    assert (tmp_path / "last" / "weights").read_text() == "old"
    assert names(tmp_path) == ["last"]


def test_libraries_that_do_not_say_enospc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, of_torch = tmp_path / "last", RuntimeError("unexpected pos 576 vs 534")
    with pytest.raises(CheckpointError, match="No space left"):
        replace(path, "x", RuntimeError("I/O error: No space left on device (os error 28)"))  # safetensors
    with pytest.raises(RuntimeError, match="unexpected pos"):
        replace(path, "x", of_torch)  # the disk has room: something else is wrong
    # Full as long as the unfinished folder takes the space.
    free = {True: 0, False: 1 << 20}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, free[(tmp_path / ".last.partial").exists()]))
    with pytest.raises(CheckpointError, match="No space left"):
        replace(path, "x", of_torch)


def test_other_refusals_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=rf"^Cannot write {tmp_path}/file/last: (Not a directory|File exists)\.$"):
        replace(tmp_path / "file" / "last", "x")
    with pytest.raises(CheckpointError, match=rf"^Cannot write {tmp_path}/file: Not a directory\.$"):
        replace(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == ""
    assert names(tmp_path) == ["file"]
    with pytest.raises(CheckpointError, match=r"^Cannot write .*: Read-only file system\.$"), writing(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
