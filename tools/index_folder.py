"""Folders that hold an index: there whole or not at all, whoever builds, reads or is killed at the same time."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import CheckpointError, DataError
from agentrl.files import atomic_directory

CARD = "agentrl-index.json"
"""What the index is. Written last, into a folder that gets its name only then."""
_FORMAT = 1


def create_folder(path: Path, kind: str, fill: Callable[[Path], Mapping[str, Any]]) -> bool:
    """Builds an index folder, unless it is there.

    Of several processes that build the same one, one does; the others wait for it. A process that is killed leaves
    nothing that could be loaded, and holds up nobody.

    Args:
        path: The folder.
        kind: Of index, such as "dense".
        fill: Writes the files into the folder that it is given, and returns what else the card should say.

    Returns:
        Whether this call built it.

    Raises:
        DataError: The folder cannot be written.
    """
    try:
        with _only_builder_in(path.parent):
            if path.exists():
                return False
            with atomic_directory(path) as folder:
                card = {"kind": kind, "format": _FORMAT, **fill(folder)}
                (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            return True
    except (CheckpointError, OSError) as error:
        raise DataError(f"The index {path} cannot be written: {error}") from error


def read_card(path: str | Path, kind: str) -> dict[str, Any]:
    """What an index folder says about itself.

    Raises:
        DataError: There is no such folder, or it is no index of this kind.
    """
    if not Path(path).is_dir():
        raise DataError(f"The index {path} does not exist.")
    card = _card(path)
    if card is None:
        raise DataError(f"{path} is not a search index: it has no readable {CARD}.")
    if card.get("kind") != kind:
        raise DataError(f"{path} is a {card.get('kind')} index, not a {kind} index.")
    if card.get("format") != _FORMAT:
        raise DataError(
            f"{path} has the format {card.get('format')!r}, and this version of agentrl reads {_FORMAT}: "
            "remove the folder and build it anew."
        )
    return card


def kind_of_folder(path: str | Path) -> str | None:
    """The kind of index in a folder; None if it is not an index folder."""
    card = _card(path)
    return None if card is None else str(card.get("kind"))


def _card(path: str | Path) -> dict[str, Any] | None:
    try:
        card = json.loads(Path(path, CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


@contextlib.contextmanager
def _only_builder_in(folder: Path) -> Iterator[None]:
    """Waits until no other process builds here; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
