"""Control groups: real ones where this machine lets us make them, imitated ones for what it does not have."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import require_bubblewrap

from agentrl.errors import ForkError
from agentrl.sandbox import Limits
from agentrl.sandbox.bubblewrap import link as bubblewrap_link
from agentrl.sandbox.bubblewrap.link import BubblewrapLink
from agentrl.sandbox.bubblewrap.sandbox import DEFAULT_PACKAGES, Bubblewrap, _environment, _find_setup
from agentrl.sandbox.linux import cgroups
from agentrl.sandbox.linux.cgroups import Cgroup, CgroupPlace, find_place, is_binding, owned_groups, total_limits
from agentrl.sandbox.owner import owner_id

MB = 1 << 20
SMALL = Limits(cpu_s=60, wall_s=120, memory_mb=48, pids=8, disk_mb=8)
"""Together 48 * 2 + 8 + 64 = 168 MB and 8 * 2 + 16 = 32 tasks for one session."""


@pytest.fixture
def place() -> CgroupPlace:
    place = find_place()
    if place is None:
        if os.environ.get("AGENTRL_REQUIRE_BUBBLEWRAP") and os.geteuid() == 0:
            pytest.fail("no control groups can be made here, which CI needs")
        pytest.skip(
            "no control groups can be made here: run as root, or in a session with a delegated cgroup v2 subtree"
        )
    return place


@pytest.fixture
def group(place: CgroupPlace) -> Iterator[Cgroup]:
    group = place.create()
    yield group
    group.kill()
    assert group.remove()


def start(program: str, limits: Limits) -> BubblewrapLink:
    require_bubblewrap()
    setup = _find_setup(DEFAULT_PACKAGES)
    command = [setup.python.executable, "-c", program]
    return BubblewrapLink(setup.bwrap, setup.python, command, _environment(setup.python), limits)


def read_all(link: BubblewrapLink) -> bytes:
    text = b""
    while part := link.receive(1000, 60):
        text += part
    return text


def test_totals_leave_room_for_the_checkpoint_the_files_and_the_runner() -> None:
    assert total_limits(SMALL, 1) == ((48 * 2 + 8 + 64) * MB, 8 * 2 + 16)
    assert total_limits(SMALL, 4) == ((48 * 5 + 8 + 64) * MB, 8 * 5 + 16)


def test_a_sandbox_cannot_use_more_memory_than_its_group(place: CgroupPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """170 MB in children of 10 MB each: no limit of a single process would notice."""
    program = """
import os, time
pids = []
for number in range(17):
    pid = os.fork()
    if pid == 0:
        data = bytearray(10 << 20)
        time.sleep(60)
    pids.append(pid)
    print(number, flush=True)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
    with contextlib.closing(start(program, SMALL)) as link:
        text = b""
        while b"-9" not in text:
            part = link.receive(1000, 60)
            assert part, text
            text += part
        monkeypatch.setattr(bubblewrap_link, "_DEATH_S", 0.1)  # it lives, and nobody waits for its end
        assert not link.ran_out_of_memory(), "a child was killed, not the sandbox"


def test_a_sandbox_whose_first_process_is_killed_for_memory_says_so(place: CgroupPlace) -> None:
    with contextlib.closing(start("bytearray(400 << 20)", SMALL)) as link:
        assert link.receive(1, 60) == b""
        assert link.ran_out_of_memory()
    assert link.ran_out_of_memory(), "also after it was closed"


def test_a_sandbox_that_ends_otherwise_does_not_say_so(place: CgroupPlace) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL); os._exit(137)"  # looks like one
    with contextlib.closing(start(program, SMALL)) as link:
        assert link.receive(1, 60) == b""
        assert not link.ran_out_of_memory()


def test_a_child_killed_for_memory_in_an_earlier_request_is_not_why_a_sandbox_ends(place: CgroupPlace) -> None:
    program = """
import os, sys
pid = os.fork()
if pid == 0:
    with open("/proc/self/oom_score_adj", "w") as file: file.write("1000")
    data = bytearray(400 << 20)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
sys.stdin.readline()
os._exit(137)  # as if it were killed
"""
    with contextlib.closing(start(program, SMALL)) as link:
        assert link.receive(100, 60) == b"-9\n"
        assert link._cgroup is not None
        assert link._cgroup.num_killed_for_memory() == 1
        link.send(b"\n", 60)
        assert link.receive(1, 60) == b""
        assert not link.ran_out_of_memory()


def test_a_sandbox_cannot_have_more_processes_than_its_group(place: CgroupPlace) -> None:
    program = """
import os, time
count = 0
while count < 100:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        break
    count += 1
print(count)
"""
    with contextlib.closing(start(program, SMALL)) as link:
        assert link.receive(100, 60) == b"31\n", "32 with process 1"
        link.resize(2)  # 8 * 3 + 16 = 40
        limits = {int((folder / "pids.max").read_text()) for folder in link._cgroup.folders if "pids" in str(folder)}
        assert limits <= {40}


def test_a_fork_of_a_session_raises_the_limits(place: CgroupPlace) -> None:
    require_bubblewrap()
    limits = Limits(cpu_s=60, wall_s=120, memory_mb=96)
    with contextlib.closing(Bubblewrap().open(limits=limits)) as session:
        group = session.home._link._cgroup  # type: ignore[attr-defined]
        assert memory_limit(group) == (96 * 2 + 64 + 64) * MB
        with contextlib.closing(session.fork()) as fork:
            assert memory_limit(group) == (96 * 3 + 64 + 64) * MB
            assert fork.run("1").output == "1\n"


def test_a_fork_for_which_there_is_no_room_is_refused(place: CgroupPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    require_bubblewrap()
    with contextlib.closing(Bubblewrap().open(limits=Limits(cpu_s=60, wall_s=120))) as session:

        def refuse(self: Cgroup, **_: int) -> None:
            raise OSError("no room")

        monkeypatch.setattr(Cgroup, "limit", refuse)
        with pytest.raises(ForkError, match="no room"):
            session.fork()
        assert session.run("1").output == "1\n"


def test_without_groups_limits_are_best_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    require_bubblewrap()
    monkeypatch.setattr(bubblewrap_link, "find_place", lambda: None)
    monkeypatch.setattr("agentrl.sandbox.bubblewrap.sandbox.find_place", lambda: None)
    assert not Bubblewrap().limits_are_enforced
    with contextlib.closing(Bubblewrap().open(limits=Limits(cpu_s=60, wall_s=120, memory_mb=256, pids=10))) as session:
        code = "import resource; resource.getrlimit(resource.RLIMIT_NPROC), resource.getrlimit(resource.RLIMIT_AS)"
        assert session.run(code).output == f"((84, 84), ({256 * MB}, {256 * MB}))\n"  # 2 * 10 + 64
        assert not session.home._link.ran_out_of_memory()
        with contextlib.closing(session.fork()) as fork:
            assert fork.run("2").output == "2\n"


def memory_limit(group: Cgroup) -> int:
    files = [folder / name for folder in group.folders for name in ("memory.limit_in_bytes", "memory.max")]
    return int(next(file for file in files if file.exists()).read_text())


def test_limits_are_raised_and_never_lowered(group: Cgroup) -> None:
    for wanted, expected in ((64, 64), (128, 128), (32, 128)):
        group.limit(memory_bytes=wanted * MB, pids=wanted)
        assert memory_limit(group) == expected * MB
        assert {(folder / "pids.max").read_text() for folder in group.folders if (folder / "pids.max").exists()} == {
            f"{expected}\n"
        }


def test_a_process_joins_and_a_group_is_removed_once_it_is_empty(place: CgroupPlace) -> None:
    group = place.create()
    assert group.remove()
    assert group.remove(), "gone already"
    group = place.create()
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        assert not group.remove(limit_s=0.05), "busy"
        assert [set(other.folders) for owner, other in owned_groups() if owner == owner_id()] == [set(group.folders)]
        assert group.kill()
        assert process.wait() == -signal.SIGKILL
        assert group.remove()
    assert group.num_killed_for_memory() == 0
    with pytest.raises(OSError, match=r"."):
        group.add(os.getpid())
    assert not any(owner == owner_id() for owner, _ in owned_groups())


def test_the_self_test_passes_a_place_where_limits_bind(place: CgroupPlace) -> None:
    assert is_binding(place)
    assert not any(owner == owner_id() for owner, _ in owned_groups()), "it leaves nothing"


@pytest.mark.parametrize("left_out", ["memory_bytes", "pids"])
def test_the_self_test_fails_where_a_limit_does_not_bind(
    place: CgroupPlace, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """Case 108: what was written is not believed."""
    limit = Cgroup.limit

    def forget(self: Cgroup, **limits: int) -> None:
        limit(self, **{**limits, left_out: 1 << 30 if left_out == "memory_bytes" else 1000})

    monkeypatch.setattr(Cgroup, "limit", forget)
    assert not is_binding(place)


def test_a_place_that_was_too_slow_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    place = CgroupPlace(())
    answers: list[bool] = []

    def try_out(place: CgroupPlace) -> bool:
        if not answers:
            raise subprocess.TimeoutExpired("python", 30)
        return answers.pop()

    monkeypatch.setattr(cgroups, "is_binding", try_out)
    monkeypatch.setattr(cgroups, "_place_v1", lambda: place)
    cgroups._find_place.cache_clear()
    try:
        assert find_place() is None
        answers.append(True)
        assert [find_place(), find_place()] == [place, place], "an answer is remembered"
    finally:
        cgroups._find_place.cache_clear()


def test_the_self_test_knows_a_lack_of_time(place: CgroupPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_TEST_S", 0.0)
    with pytest.raises(subprocess.TimeoutExpired):
        is_binding(place)
    assert not any(owner == owner_id() for owner, _ in owned_groups()), "it leaves nothing"


def test_the_self_test_fails_where_nothing_can_be_made(tmp_path: Path) -> None:
    assert not is_binding(CgroupPlace((tmp_path / "absent",)))


def imitate_v2(monkeypatch: pytest.MonkeyPatch, root: Path, group: str, handed_down: dict[str, str]) -> None:
    (root / group.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for folder, controllers in handed_down.items():
        (root / folder / "cgroup.subtree_control").write_text(controllers)
    mount = cgroups._Mount(str(root), "/", is_v2=True, controllers=frozenset())
    monkeypatch.setattr(cgroups, "_mounts", lambda: [mount])
    monkeypatch.setattr(cgroups, "_own_groups", lambda: {"": group})


def test_with_v2_the_nearest_ancestor_that_hands_down_both_controllers_is_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handed_down = {"": "cpu memory pids", "user": "memory pids", "user/app": "memory"}
    imitate_v2(monkeypatch, tmp_path, "/user/app/scope", handed_down)
    assert cgroups._place_v1() is None
    place = cgroups._place_v2()
    assert place == CgroupPlace((tmp_path / "user",))
    monkeypatch.setattr(Cgroup, "remove", lambda self: True)  # it would wait for a file to go
    assert not is_binding(place), "a folder is no group, whatever files are in it"


def test_with_v2_there_is_no_place_where_nothing_is_handed_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imitate_v2(monkeypatch, tmp_path, "/scope", {"": "cpu"})
    assert cgroups._place_v2() is None


def test_with_v2_memory_swap_and_pids_are_written_and_kills_are_read(tmp_path: Path) -> None:
    for name, text in (("memory.max", "max"), ("memory.swap.max", "max"), ("pids.max", "max")):
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n")
    group = Cgroup((tmp_path,))
    group.limit(memory_bytes=64 * MB, pids=20)
    assert [(tmp_path / f"{name}.max").read_text() for name in ("memory", "memory.swap", "pids")] == [
        str(64 * MB),
        "0",
        "20",
    ]
    assert group.num_killed_for_memory() == 2


def test_a_limit_that_reads_back_differently_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(Path, "write_text", lambda *_: 0)  # a kernel that ignores it
    with pytest.raises(OSError, match="was set to"):
        Cgroup((tmp_path,)).limit(memory_bytes=64 * MB, pids=1)


def test_mounts_are_read_as_the_kernel_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "31 30 0:26 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:10 - cgroup cgroup rw,memory\n"
        "32 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    monkeypatch.setattr(cgroups, "_read", lambda path: text if path == "/proc/self/mountinfo" else "")
    memory, unified = cgroups._mounts()
    assert (memory.point, memory.is_v2) == ("/sys/fs/cgroup/memory", False)
    assert memory.controllers == {"rw", "memory"}
    assert memory.folder_of("/docker/ab/x").resolve() == Path("/sys/fs/cgroup/memory/x").resolve()
    assert (unified.point, unified.is_v2) == ("/sys/fs/cgroup/unified", True)


def test_the_test_program_is_valid_on_this_python() -> None:
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", cgroups._TEST_PROGRAM], input=b"\n", check=True)
    assert answer.returncode == 0
