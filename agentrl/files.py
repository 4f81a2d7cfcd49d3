"""Files and folders that appear whole or not at all, and one clear line when the disk refuses."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrl.errors import CheckpointError

_PARTIAL, _OLD = ".partial", ".old"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the failures of writing a file or folder into one clear line.

    Raises:
        CheckpointError: The disk is full, or the operating system refuses.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if _is_disk_full(error, path):
            raise CheckpointError(
                f"No space left on the disk while writing {path}. Free some and try again; a run goes on with --resume."
            ) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"Cannot write {path}: {error.strerror or error}.") from error
        raise


def discard(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, as far as possible; quiet if it is gone."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file that is there whole or, after a failure, as it was before.

    Args:
        path: The file; its folder must exist.
        lines: The text in pieces of any length; a single string is fine too.

    Raises:
        CheckpointError: The disk is full, or the operating system refuses.
    """
    partial = _sibling(path, _PARTIAL)
    try:
        with writing(path):
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A folder that appears whole when the `with` block ends, in place of an older one, or not at all.

    The block fills the folder that it is given, a hidden sibling of `path`. After an exception the sibling is gone
    and the older folder untouched. The older folder goes only when the new one is in its place; what a kill between
    those two steps leaves behind, `settle_directories` puts right.

    Raises:
        CheckpointError: The disk is full, or the operating system refuses.

    Example:
        with atomic_directory(run.checkpoints_path / "last") as folder:
            model.save_pretrained(folder)
    """
    partial, old = _sibling(path, _PARTIAL), _sibling(path, _OLD)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _settle(path)
        partial.mkdir()
        try:
            with writing(path):  # decides whether the disk is full while it still is
                yield partial
                _sync_tree(partial)
            if path.is_dir():
                path.rename(old)
            partial.rename(path)
            _sync(path.parent)
        finally:
            _settle(path)


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON Lines file with their text; a last line that a kill cut off is left out.

    Raises:
        CheckpointError: The file cannot be read, or another line is damaged; the message names it.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    if not line.endswith("\n"):
                        return
                    row = None
                if not isinstance(row, dict):
                    raise CheckpointError(f"{path}, line {number} is damaged: not a JSON object.")
                yield line.rstrip("\n") + "\n", row
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None


def cut_to_whole_lines(path: Path) -> None:
    """Removes what follows the last line break of a file, so that whole lines can be appended."""
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            end = start if place < 0 else start + place + 1
            if place >= 0:
                break
        if end < size:
            file.truncate(end)


def settle_directories(parent: Path) -> None:
    """Finishes or undoes every `atomic_directory` of a folder that a kill interrupted.

    Raises:
        CheckpointError: The operating system refuses.
    """
    with writing(parent):
        for suffix in (_OLD, _PARTIAL):
            for leftover in parent.glob(f".*{suffix}"):
                _settle(leftover.with_name(leftover.name[1 : -len(suffix)]))


def _settle(path: Path) -> None:
    partial, old = _sibling(path, _PARTIAL), _sibling(path, _OLD)
    if old.exists():
        if not path.exists():  # between the two renamings; the older folder moves only when the new one is complete
            (partial if partial.exists() else old).rename(path)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_full(error: Exception, path: Path) -> bool:
    """Whether writing failed for want of space, which not every library says with an error number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if os.strerror(errno.ENOSPC) in str(error):  # safetensors
        return True
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free < 4096  # torch.save says "unexpected pos 576 vs 534"
