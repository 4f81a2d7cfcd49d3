"""However a bubblewrap sandbox ends, and whoever ends it, nothing of it stays."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import require_bubblewrap
from other_trainers import command_lines, run_trainer, start_trainer, wait_until

from agentrl.errors import InfrastructureError
from agentrl.sandbox import Limits
from agentrl.sandbox.bubblewrap.link import BubblewrapLink
from agentrl.sandbox.bubblewrap.sandbox import DEFAULT_PACKAGES, Bubblewrap, _environment, _find_setup
from agentrl.sandbox.cleanup import PROCESS_PREFIX
from agentrl.sandbox.linux.cgroups import owned_groups
from agentrl.sandbox.linux.pidfd import pidfd_kill, pidfd_open, pidfd_wait
from agentrl.sandbox.linux.user_ids import FIRST_UID, UserIds
from agentrl.sandbox.owner import owned_name, owner_id
from agentrl.sandbox.runner.process_tree import descendants

GENEROUS = Limits(cpu_s=60, wall_s=120)


@pytest.fixture(autouse=True)
def bubblewrap() -> None:
    require_bubblewrap()


def start(*program: str, limits: Limits = GENEROUS) -> BubblewrapLink:
    setup = _find_setup(DEFAULT_PACKAGES)
    return BubblewrapLink(setup.bwrap, setup.python, program, _environment(setup.python), limits)


@pytest.fixture
def echo() -> Iterator[BubblewrapLink]:
    """A sandbox that says what it hears."""
    with contextlib.closing(start("/usr/bin/cat")) as link:
        yield link


def talk(link: BubblewrapLink, text: bytes) -> bytes:
    link.send(text, 60)
    return link.receive(1000, 60)


def processes_of_ours() -> list[int]:
    mine = owned_name(PROCESS_PREFIX)
    return [pid for pid, text in command_lines().items() if text.startswith(mine)]


def groups_of_ours() -> list[Path]:
    return [folder for owner, group in owned_groups() if owner == owner_id() for folder in group.folders]


def test_bytes_go_both_ways_with_deadlines(echo: BubblewrapLink) -> None:
    assert talk(echo, b"hello") == b"hello"
    with pytest.raises(TimeoutError):
        echo.receive(1, 0.05)
    with pytest.raises(TimeoutError):
        echo.send(bytes(20_000_000), 0.5)  # cat waits for us to read, and sockets hold less than this
    echo.close()
    with pytest.raises(OSError, match=r"."):
        echo.send(b"x", 1)


def test_the_end_of_the_program_ends_the_stream() -> None:
    with contextlib.closing(start("/usr/bin/true")) as link:
        assert link.receive(1, 60) == b""
        assert not link.ran_out_of_memory()


def test_a_program_that_cannot_start_has_last_words() -> None:
    with contextlib.closing(start("/no/such/program")) as link:
        assert link.receive(1, 60) == b""
        assert "/no/such/program" in link.last_words()


def test_closing_wakes_a_thread_that_waits_and_may_be_done_twice(echo: BubblewrapLink) -> None:
    received: list[bytes | str] = []

    def wait() -> None:
        try:
            received.append(echo.receive(1, 60))
        except OSError:
            received.append("closed")

    thread = threading.Thread(target=wait)
    thread.start()
    closers = [threading.Thread(target=echo.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    for closer in [*closers, thread]:
        closer.join(60)
        assert not closer.is_alive()
    assert received in ([b""], ["closed"])
    assert processes_of_ours() == []
    assert groups_of_ours() == []


def test_a_sandbox_outlives_the_thread_that_started_it() -> None:
    """Case 78: `--die-with-parent` would kill it."""
    links: list[BubblewrapLink] = []
    thread = threading.Thread(target=lambda: links.append(start("/usr/bin/cat")))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with contextlib.closing(links[0]) as link:
        assert talk(link, b"still here") == b"still here"
        assert len(processes_of_ours()) == 1, "and so does the outer process"


def test_a_sandbox_whose_outer_process_is_killed_is_ended_by_closing(echo: BubblewrapLink) -> None:
    """Case 79: process 1 survives that, and would for ever."""
    talk(echo, b"by now process 1 is no bubblewrap any more")
    (outer,) = processes_of_ours()
    inner = int(Path(f"/proc/{outer}/task/{outer}/children").read_text())
    os.kill(outer, signal.SIGKILL)
    assert wait_until(lambda: not Path(f"/proc/{outer}/cmdline").exists() or not Path(f"/proc/{outer}/exe").exists())
    assert talk(echo, b"alive") == b"alive"
    echo.close()
    assert wait_until(lambda: inner not in command_lines())
    assert groups_of_ours() == []


def test_closing_kills_whatever_a_program_has_started() -> None:
    script = "import os, signal, time\nif os.fork() == 0: os.setsid(); os.fork()\n"
    script += "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 60))\nprint(0, flush=True)\nwhile True: time.sleep(1)"
    with contextlib.closing(start(_find_setup(DEFAULT_PACKAGES).python.executable, "-c", script)) as link:
        assert link.receive(1, 60) == b"0"
        (outer,) = processes_of_ours()
        assert wait_until(lambda: len(descendants(outer)) == 3), "process 1, a child in a session of its own, its child"
        everything = {outer, *descendants(outer)}
        link.close()
        assert not everything & command_lines().keys()


def test_a_forked_trainer_does_not_end_its_parents_sandbox(echo: BubblewrapLink) -> None:
    """Case 91."""
    pid = os.fork()
    if pid == 0:
        echo.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert talk(echo, b"mine") == b"mine"


def test_a_forked_trainer_opens_its_own() -> None:
    code = (
        "import os\n"
        "from agentrl.sandbox import Limits\n"
        "from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap\n"
        "session = Bubblewrap().open(limits=Limits())\n"
        "session.run('x = 1')\n"
        "if os.fork() == 0:\n"
        "    other = Bubblewrap().open(limits=Limits())\n"
        "    print(other.run('import os; os.getuid()').output, end='', flush=True)\n"
        "    other.close()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(session.run('x; import os; os.getuid()').output, end='')\n"
    )
    child, parent = map(int, run_trainer(code).split())
    if os.geteuid() == 0:
        assert child != parent, "two sandboxes that live at once never have one user id"
        assert min(child, parent) >= FIRST_UID


def test_a_hundred_sandboxes_leave_nothing() -> None:
    """Case 103 in short."""

    def count() -> Counter[str]:
        """Mounts by their place: of everybody's, as other containers come and go, each with places of its own."""
        mounts = Counter(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return Counter(
            {
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "children": len(Path("/proc/thread-self/children").read_text().split()),
                "mounts over each other": max(mounts.values()),
                "processes": len(processes_of_ours()),
                "groups": len(groups_of_ours()),
            }
        )

    with contextlib.closing(start("/usr/bin/cat")) as link:  # what is set up once
        talk(link, b"x")
    Bubblewrap().open(limits=GENEROUS).close()
    before = count()
    for _ in range(98):
        with contextlib.closing(start("/usr/bin/cat")) as link:
            assert talk(link, b"x") == b"x"
    for _ in range(2):
        with contextlib.closing(Bubblewrap().open(limits=GENEROUS)) as session:
            assert session.run("1 + 1").output == "2\n"
    assert count() <= before
    assert before["groups"] == before["processes"] == 0


def test_a_bubblewrap_that_fails_is_an_infrastructure_failure(tmp_path: Path) -> None:
    setup = _find_setup(DEFAULT_PACKAGES)
    for text, message in (("echo no luck >&2; exit 1", "no luck"), ("echo '{\"child-pid\"' >&$4", "cannot start")):
        broken = tmp_path / "bwrap"
        broken.write_text(f"#!/bin/sh\n{text}\n")
        broken.chmod(0o755)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(InfrastructureError, match=message):
            BubblewrapLink(str(broken), setup.python, ["true"], {}, GENEROUS)
        assert os.listdir("/proc/self/fd") == before
        assert groups_of_ours() == []


def test_a_pidfd_stands_for_one_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        fd = pidfd_open(process.pid)
        assert not os.get_inheritable(fd)
        assert not pidfd_wait(fd, 0.01)
        pidfd_kill(fd)
        assert pidfd_wait(fd, 60)
        assert process.wait() == -signal.SIGKILL
        pidfd_kill(fd)  # gone: quiet
        os.close(fd)
    with pytest.raises(OSError, match=r"."):
        pidfd_open(2**22 + 1)  # above the largest id that Linux gives


def test_user_ids_are_of_one_process_until_it_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "ids")
    code = (
        "from agentrl.sandbox.linux.user_ids import UserIds\n"
        f"ids = UserIds({path!r})\n"
        "print(ids.take(), ids.take(), flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    with start_trainer(code) as other:
        assert other.stdout is not None
        assert other.stdout.readline().split() == [str(FIRST_UID), str(FIRST_UID + 1)]
        mine = UserIds(path)
        assert [mine.take(), mine.take()] == [FIRST_UID + 2, FIRST_UID + 3]
        mine.give_back(FIRST_UID + 2)
        assert mine.take() == FIRST_UID + 2
        other.kill()
        other.wait()
    assert mine.take() == FIRST_UID


def test_the_other_end_is_not_held_open_by_a_forked_trainer() -> None:
    """A runner ends when its host hangs up, which it only hears when no copy of the host has the stream open."""
    session = Bubblewrap().open(limits=GENEROUS)
    (outer,) = processes_of_ours()
    stream = session.home._link._sock  # type: ignore[attr-defined]
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            socket.socket(fileno=os.dup(stream.fileno())).close()
            os.write(write_fd, b"open")
        except (OSError, ValueError):
            os.write(write_fd, b"closed")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_fd, 10) == b"closed"
    os.close(read_fd)
    os.close(write_fd)
    session.close()
    assert outer not in command_lines()
