"""After a trainer that was killed no process, control group or folder stays; and nothing else is touched."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import require_bubblewrap
from other_trainers import command_lines, run_trainer, start_trainer, wait_until
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.sandbox import cleanup
from agentrl.sandbox.cleanup import FOLDER_PREFIX, PROCESS_PREFIX, clean_up, find_leftovers
from agentrl.sandbox.linux import cgroups
from agentrl.sandbox.linux.cgroups import Cgroup, find_place, owned_groups
from agentrl.sandbox.owner import is_dead, owned_name, owner_id, owner_in
from agentrl.sandbox.runner.process_tree import descendants

OPEN = """
import os, sys, time
from agentrl.sandbox import Limits, UnsafeSubprocess
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap
from agentrl.sandbox.owner import owner_id
back_end = {back_end}()
sessions = [back_end.open(limits=Limits(cpu_s=600, wall_s=600)) for _ in range(2)]
fork = sessions[0].fork()
print(owner_id(), flush=True)
"""
IDLE = "time.sleep(600)"
BUSY = "sessions[1].run('import os\\nos.system(\"sleep 600 &\")\\nwhile True: pass')"
DEAD_OWNER_CODE = "from agentrl.sandbox.owner import owner_id; print(owner_id())"


def left_of(owner: str) -> list[str]:
    """Everything on this machine that carries an owner's id."""
    found = [text[:80] for text in command_lines().values() if owner_in(text, PROCESS_PREFIX) == owner]
    found += [str(group.folders) for name, group in owned_groups() if name == owner]
    found += [
        str(folder) for folder in Path(tempfile.gettempdir()).iterdir() if owner_in(folder.name, FOLDER_PREFIX) == owner
    ]
    return found


def janitors_of(pid: int) -> list[int]:
    return [one for one, text in command_lines().items() if "pidfd_wait" in text and f" {pid} " in text[-400:]]


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@pytest.fixture
def dead_owner() -> str:
    return run_trainer(DEAD_OWNER_CODE).strip()


@pytest.fixture
def dead_here(dead_owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An owner who is dead for this process alone, with a folder for temporary files that is its own.

    Every trainer that starts or ends elsewhere on this machine cleans up as well, and might be the first to do so.
    """
    parts = dead_owner.split(".")
    parts[2] += "0"  # another pid namespace, of which nobody else knows anything
    owner = ".".join(parts)
    assert not is_dead(owner)
    monkeypatch.setattr(cleanup, "is_dead", lambda other: other == owner or is_dead(other))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return owner


@pytest.mark.parametrize(
    ("back_end", "doing", "as_user"),
    [
        ("Bubblewrap", BUSY, False),
        ("Bubblewrap", BUSY, True),
        ("Bubblewrap", IDLE, False),
        ("UnsafeSubprocess", BUSY, True),
    ],
    ids=[
        "bubblewrap, mid-cell",
        "bubblewrap, mid-cell, a normal user",
        "bubblewrap, idle",
        "no isolation, a normal user",
    ],
)
def test_a_killed_trainer_leaves_nothing(back_end: str, doing: str, as_user: bool) -> None:
    """Case 76."""
    require_bubblewrap()
    with start_trainer(OPEN.format(back_end=back_end) + doing, as_user=as_user) as trainer:
        assert trainer.stdout is not None
        owner = trainer.stdout.readline().strip()
        assert left_of(owner)
        (janitor,) = janitors_of(trainer.pid)
        if doing == BUSY:
            assert wait_until(
                lambda: any("sleep 600" in command_lines().get(pid, "") for pid in descendants(trainer.pid))
            )
        below = set(descendants(trainer.pid))
        assert below
        os.kill(trainer.pid, signal.SIGKILL)
    assert wait_until(lambda: not left_of(owner)), left_of(owner)
    assert wait_until(lambda: not below & command_lines().keys())
    assert wait_until(lambda: janitor not in command_lines()), "it ends as well"


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["the trainer", "its process group and session"])
def test_a_janitor_removes_what_no_runner_can(kill: Callable[[int, int], None]) -> None:
    """A folder, and a group with a process in it, whose runner died before its trainer did."""
    making = (
        "import tempfile\n"
        "from agentrl.sandbox.linux.cgroups import find_place\n"
        "from agentrl.sandbox.cleanup import FOLDER_PREFIX\n"
        "from agentrl.sandbox.janitor import ensure_janitor\n"
        "from agentrl.sandbox.owner import owned_name, owner_id\n"
        "import os, subprocess, time\n"
        "ensure_janitor()\n"
        "folder = tempfile.mkdtemp(prefix=owned_name(FOLDER_PREFIX))\n"
        "os.makedirs(folder + '/work/' + 'deep/' * 100)\n"
        "sleeping = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "place = find_place()\n"
        "if place: place.create().add(sleeping.pid)\n"
        "print(owner_id(), sleeping.pid if place else 0, flush=True)\n"
        "time.sleep(600)\n"
    )
    with start_trainer(making, start_new_session=True) as trainer:
        assert trainer.stdout is not None
        owner, sleeping = trainer.stdout.readline().split()
        assert len(left_of(owner)) == (2 if int(sleeping) else 1)
        kill(trainer.pid, signal.SIGKILL)
    assert wait_until(lambda: not left_of(owner))
    assert int(sleeping) not in command_lines()


def test_a_janitor_does_not_outlive_a_normal_end() -> None:
    with start_trainer(
        OPEN.format(back_end="UnsafeSubprocess") + "sys.stdin.readline()", stdin=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        (janitor,) = janitors_of(trainer.pid)
        trainer.communicate("\n", timeout=60)
        assert trainer.returncode == 0
    assert wait_until(lambda: janitor not in command_lines())


def test_a_trainer_has_one_janitor_which_is_not_its_child_and_a_forked_one_its_own() -> None:
    code = (
        "import os, sys, threading\n"
        "from agentrl.sandbox import Limits, UnsafeSubprocess\n"
        "def open_one(): UnsafeSubprocess().open(limits=Limits())\n"
        "threads = [threading.Thread(target=open_one) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "if os.fork() == 0:\n"
        "    open_one()\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with start_trainer(code, stdin=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        pids = {int(trainer.stdout.readline()) for _ in range(2)}
        janitors = [pid for trainer_pid in pids for pid in janitors_of(trainer_pid)]
        assert len(janitors) == 2
        for janitor in janitors:
            _, parent, _, session, *_ = stat_of(janitor)
            assert int(parent) not in pids
            assert int(session) != os.getsid(trainer.pid)
            assert wait_until(lambda janitor=janitor: stat_of(janitor)[0] == "S"), "asleep"  # type: ignore[misc]
        trainer.kill()
        for pid in pids - {trainer.pid}:
            os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not set(janitors) & command_lines().keys())


def test_the_living_keep_what_is_theirs(dead_here: str) -> None:
    mine, nobodys = (
        Path(tempfile.mkdtemp(prefix=prefix)) for prefix in (owned_name(FOLDER_PREFIX), f"{FOLDER_PREFIX}older_")
    )
    dead = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{dead_here}_"))
    try:
        assert f"folder {dead}" in clean_up()
        assert not dead.exists()
        assert mine.exists()
        assert nobodys.exists()
    finally:
        mine.rmdir()
        nobodys.rmdir()


def test_a_folder_of_somebody_else_or_a_link_is_left_alone(dead_here: str, tmp_path: Path) -> None:
    trap = Path(tempfile.gettempdir(), f"{FOLDER_PREFIX}{dead_here}_trap")
    (tmp_path / "precious").write_text("x")
    trap.symlink_to(tmp_path)
    try:
        assert not any(str(trap) in leftover.description for leftover in find_leftovers())
        assert (tmp_path / "precious").exists()
    finally:
        trap.unlink()
    if os.geteuid() == 0:
        trap.mkdir()
        os.chown(trap, 54_321, 54_321)
        assert not any(str(trap) in leftover.description for leftover in find_leftovers())
        trap.rmdir()


def test_groups_and_processes_of_the_dead_are_removed(dead_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = find_place()
    monkeypatch.setattr(cgroups, "owned_name", lambda prefix: f"{prefix}{dead_here}_")
    name = f"{PROCESS_PREFIX}{dead_here}_"
    with subprocess.Popen([name, "-c", "sleep 600 & wait"], executable="/bin/sh", start_new_session=True) as process:
        try:
            group: Cgroup | None = place.create() if place else None
            assert wait_until(lambda: name in command_lines().get(process.pid, "") and bool(descendants(process.pid)))
            below = set(descendants(process.pid))
            removed = clean_up()
            assert f"process {process.pid} (bubblewrap)" in removed
            process.wait(timeout=60)
            assert not below & command_lines().keys()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if group is not None:
        assert f"control group {group.folders[0]}" in removed or f"control group {group.folders[-1]}" in removed
        assert not any(folder.exists() for folder in group.folders)
    assert left_of(dead_here) == []


def test_outlasting_ends_after_two_quiet_looks_or_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["x"], [], ["y"], [], []]
    monkeypatch.setattr(cleanup, "find_leftovers", lambda: iter(()))
    monkeypatch.setattr(cleanup, "clean_up", lambda: answers.pop(0))
    cleanup.outlast(pause_s=0)
    assert answers == []
    monkeypatch.setattr(cleanup, "clean_up", lambda: ["never done"])
    cleanup.outlast(limit_s=0.05, pause_s=0.01)


def test_the_command_says_what_it_removed(dead_here: str) -> None:
    folder = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{dead_here}_")
    answer = CliRunner().invoke(app, ["sandbox", "cleanup"])
    assert answer.exit_code == 0
    assert f"removed folder {folder}\n" in answer.output
    assert not Path(folder).exists()
    answer = CliRunner().invoke(app, ["sandbox", "cleanup"])
    assert folder not in answer.output


def test_starting_removes_what_was_left_by_those_killed_with_their_janitor(dead_owner: str, tmp_path: Path) -> None:
    (tmp_path / f"{FOLDER_PREFIX}{dead_owner}_x").mkdir()
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
    run_trainer(f"{code}from agentrl.sandbox.janitor import ensure_janitor; ensure_janitor()")
    assert list(tmp_path.iterdir()) == []


def test_an_owner_is_read_from_the_names_of_its_things_only() -> None:
    assert owner_in(owned_name(PROCESS_PREFIX) + "a_b", PROCESS_PREFIX) == owner_id()
    for name in (
        "something-else_x",
        f"{FOLDER_PREFIX}{owner_id()}_x",
        PROCESS_PREFIX,
        f"x{owned_name(PROCESS_PREFIX)}",
    ):
        assert owner_in(name, PROCESS_PREFIX) is None
