"""The directory of one session: `work`, where its cells run, and `tmp`.

Whatever lies in it was made by model-written code: no link in it is followed, no special file opened.
Standard library only: the worker runs this file without agentrl.
"""

import os
from contextlib import suppress


def copy_folder(source: str, target: str) -> None:
    """Copies directories, regular files and links (as links) from `source` into the existing folder `target`.

    Raises:
        OSError: Something cannot be read or written.
    """
    import shutil  # not at the top: it would double the modules that every worker loads, and few sessions fork

    pending = [(source, target)]
    while pending:  # not recursive: programs can nest deeper than Python's stack
        here, there = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                copy = os.path.join(there, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.makedirs(copy, exist_ok=True)
                    pending.append((entry.path, copy))
                elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    shutil.copy2(entry.path, copy, follow_symlinks=False)


def remove_folder(root: str) -> None:
    """Removes a session's directory, however deep and whatever its permissions; quiet if it is gone."""
    silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    for command in (["rm", "-rf", "--", root], ["chmod", "-R", "u+rwx", "--", root], ["rm", "-rf", "--", root]):
        if not os.path.lexists(root):
            return
        with suppress(OSError):
            os.waitpid(os.posix_spawnp(command[0], command, os.environ, file_actions=silence), 0)
