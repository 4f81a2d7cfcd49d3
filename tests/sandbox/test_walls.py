"""What every isolating back end does, over a real engine and real bubblewrap."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from engines import require_bubblewrap, require_docker

from agentrl.errors import ForkError
from agentrl.sandbox import Limits, RunnerSandbox, SandboxFileError, SecurityLevel, StatelessSandbox, WarmPool
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.session import RunnerSession

GENEROUS = Limits(cpu_s=60, wall_s=120)
CANARY = "the answer is 48151623"
Open = Callable[..., RunnerSession]


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest) -> RunnerSandbox:
    if request.param == "docker":
        return DockerSandbox(require_docker())
    require_bubblewrap()
    return Bubblewrap()


@pytest.fixture
def opened(sandbox: RunnerSandbox) -> Iterator[Open]:
    with ExitStack() as stack:

        def start(limits: Limits = GENEROUS, files: dict[str, bytes] | None = None) -> RunnerSession:
            session = sandbox.open(limits=limits, files=files)
            stack.callback(session.close)
            return session

        yield start


@pytest.fixture
def session(opened: Open) -> RunnerSession:
    return opened()


def test_names_live_and_a_killed_cell_is_rolled_back(session: RunnerSession) -> None:
    session.run("x = [1]; import random; random.seed(1)")
    for code in ("import os; x.append(2); os._exit(3)", "import ctypes; x.append(2); ctypes.string_at(0)"):
        result = session.run(code)
        assert (result.status, result.state) == ("killed", "rolled_back")
    assert session.run("x").output == "[1]\n"


def test_the_runner_is_process_one_and_cannot_be_touched(session: RunnerSession) -> None:
    session.run("x = 1; import os, signal")
    found = session.run("""
for action in (
    lambda: os.kill(1, signal.SIGKILL) or os.kill(1, signal.SIGSTOP) or "no effect",
    lambda: open("/proc/1/mem", "rb").read(1),
    lambda: os.listdir("/proc/1/fd"),
    lambda: open("/proc/1/environ").read(),
    lambda: os.readlink("/proc/1/cwd"),
    lambda: open("/proc/1/maps").read(1),
):
    try:
        print(action())
    except OSError as error:
        print(type(error).__name__)
""")
    assert found.output == "no effect\n" + "PermissionError\n" * 5
    assert session.run("x").output == "1\n"


def test_killing_everything_spares_the_session(session: RunnerSession) -> None:
    session.run("x = 1")
    assert session.run("import os; os.kill(-1, 9)").status == "ok"
    assert session.run("x").output == "1\n"


def test_a_fork_has_memory_and_files_of_its_own(session: RunnerSession) -> None:
    session.run("import os; x = [1]; path = os.path.abspath('notes'); _ = open(path, 'w').write('first')")
    log = "log = open('log', 'w+'); _ = log.write('a'); log.flush()"
    session.run(log)
    with ExitStack() as stack:
        forks = [session.fork(), session.fork()]
        forks.append(forks[0].fork())
        for number, fork in enumerate(forks):
            stack.callback(fork.close)
            fork.run(
                f"x.append({number}); _ = open(path, 'a').write(' {number}'); _ = log.write('{number}'); log.flush()"
            )
        assert session.run("x, open(path).read(), open('log').read(), path").output == (
            "([1], 'first', 'a', '/box/work/notes')\n"
        )
        for number, fork in enumerate(forks):
            assert fork.run("x, open('notes').read(), open('/work/log').read()").output == (
                f"([1, {number}], 'first {number}', 'a{number}')\n"
            )


def test_as_many_forks_as_there_is_room_for_and_all_keep_their_names(opened: Open) -> None:
    session = opened(Limits(cpu_s=60, wall_s=120, memory_mb=100, pids=16))
    session.run("x = 'kept'")
    with ExitStack() as stack:
        forks = []
        try:
            while len(forks) < 70:
                forks.append(session.fork())
                stack.callback(forks[-1].close)
        except ForkError as error:
            assert "no more" in str(error)  # noqa: PT017 - a back end may as well have room for all
        assert len(forks) >= 60
        assert {fork.run("x").output for fork in [session, *forks]} == {"'kept'\n"}
        assert session.run("import os; os._exit(3)").state == "rolled_back"
        assert session.run("x").output == "'kept'\n"


def test_work_and_tmp_are_known_by_their_usual_names(session: RunnerSession) -> None:
    session.run("import tempfile; _ = open('/work/a', 'w').write('1'); name = tempfile.mkstemp()[1]")
    output = session.run("open('a').read(), tempfile.gettempdir(), name.startswith('/box/tmp/')").output
    assert output == "('1', '/box/tmp', True)\n"
    assert session.run("import os; os.listdir('/tmp') == [os.path.basename(name)]").output == "True\n"


def test_files_go_in_and_come_out(opened: Open) -> None:
    session = opened(files={"task/data.bin": bytes(range(256)) * 4096})
    assert session.run("import os; os.path.getsize('task/data.bin')").output == f"{256 * 4096}\n"
    session.run("_ = open('out.bin', 'wb').write(open('task/data.bin', 'rb').read()[::-1])")
    assert session.read("out.bin", 1 << 21) == bytes(range(255, -1, -1)) * 4096
    assert session.list_files() == ["out.bin", "task/data.bin"]
    session.run("os.symlink('/etc/passwd', 'link'); os.mkfifo('pipe')")
    for path in ("link", "pipe", "/etc/passwd", "../../etc/passwd"):
        with pytest.raises(SandboxFileError):
            session.read(path, 100)


def test_a_full_disk_is_the_programs_problem(opened: Open) -> None:
    session = opened(Limits(cpu_s=60, wall_s=120, disk_mb=8, file_mb=6))
    result = session.run("for n in range(4): _ = open(str(n), 'wb').write(bytes(5 << 20))")
    assert result.status == "error"
    assert "No space left" in result.output
    with pytest.raises(ForkError, match="No space left"):
        session.fork()
    with pytest.raises(SandboxFileError, match="No space left"):
        session.write("big", bytes(9 << 20))
    session.run("import os; [os.remove(n) for n in os.listdir()]")
    session.fork().close()


def test_memory_of_all_processes_together_is_limited(opened: Open) -> None:
    session = opened(Limits(cpu_s=60, wall_s=120, memory_mb=150))
    session.run("x = 1")
    code = "import os, time\nfor _ in range(6):\n    if not os.fork(): block = b'x' * 90_000_000; time.sleep(60)\n"
    code += "time.sleep(60)"
    result = session.run(code)
    assert (result.status, result.state) == ("killed", "rolled_back"), result
    assert session.run("x").output == "1\n"


def test_a_fork_gets_memory_of_its_own(opened: Open) -> None:
    """Two sessions hold 120 MB each in a sandbox made for one with 150."""
    session = opened(Limits(cpu_s=60, wall_s=120, memory_mb=150))
    fork = session.fork()
    for branch in (session, fork):
        assert branch.run("block = b'x' * 100_000_000; len(block)").output == "100000000\n"
    assert session.run("len(block)").output == fork.run("len(block)").output == "100000000\n"
    fork.close()


def test_processes_are_limited(opened: Open) -> None:
    session = opened(Limits(cpu_s=60, wall_s=120, pids=20))
    session.run("x = 1")
    result = session.run(
        "import os, time\nfor _ in range(8):\n    try: os.fork()\n    except OSError: pass\ntime.sleep(60)"
    )
    assert (result.status, result.reason) == ("killed", "pids")
    assert session.run("x").output == "1\n"


def test_sessions_know_nothing_of_each_other(opened: Open) -> None:
    first = opened()
    first.run(
        f"secret = {CANARY!r}; _ = open('/work/secret', 'w').write(secret); _ = open('/tmp/secret', 'w').write(secret)"
    )
    second = opened()
    found = second.run("""
import os
found = ['name'] if 'secret' in globals() else []
for folder, _, files in os.walk('/'):
    if not folder.startswith(('/proc', '/sys')):
        found += [os.path.join(folder, name) for name in files if name == 'secret']
found, sum(name.isdigit() for name in os.listdir('/proc'))
""")
    assert found.output == "([], 3)\n"  # the runner, this interpreter, its checkpoint


def test_neither_answer_nor_reward_code_can_be_reached(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks what a sandbox shows besides the system's programs, which others look through by inode."""
    monkeypatch.setenv("TASK_ANSWER", CANARY)
    session = opened(Limits(cpu_s=100, wall_s=200, memory_mb=1024))
    pieces = [CANARY[:8], CANARY[8:]]
    found = session.run(f"""
import os, sys
answer, code = ''.join({pieces!r}).encode(), b'class ' + b'ToolEnv'
found = []
for folder, _, names in os.walk('/'):
    if folder.startswith(('/sys', '/proc/', '/usr', sys.base_prefix)):
        continue
    for name in names:
        path = os.path.join(folder, name)
        try:
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 4_000_000:
                data = open(path, 'rb').read()
                found += [path] * (answer in data or code in data)
        except OSError:
            pass
for pid in (name for name in os.listdir('/proc') if name.isdigit()):
    for part in ('environ', 'cmdline'):
        try:
            found += [pid + part] * (answer in open(f'/proc/{{pid}}/{{part}}', 'rb').read())
        except OSError:
            pass
found, [name for name in sys.modules if 'agentrl' in name], {{k for k in os.environ if 'ANSWER' in k}}
""")
    assert found.output == "([], [], set())\n", found


def test_a_pool_hands_out_fresh_sandboxes(sandbox: RunnerSandbox) -> None:
    pool = WarmPool(sandbox, num_ready=2)
    try:
        for _ in range(3):
            session = pool.open(limits=GENEROUS)
            assert session.run("import os; 'x' in globals(), os.listdir('/work')").output == "(False, [])\n"
            session.run("x = 1; open('/work/canary', 'w').close()")
            session.close()
    finally:
        pool.close()


def test_stateless_programs_share_a_sandbox_and_find_nothing(sandbox: RunnerSandbox) -> None:
    shared = StatelessSandbox(sandbox)
    try:
        session = shared.open(limits=GENEROUS)
        session.run("import os; x = 1; open('/work/canary', 'w').close(); open('/tmp/canary', 'w').close(); os.fork()")
        look = "import os; 'x' in globals(), os.listdir('/work'), os.listdir('/tmp')"
        assert session.run(look).output == "(False, [], [])\n"
    finally:
        shared.close()


def test_a_stateless_program_finds_nothing_of_another_anywhere(sandbox: RunnerSandbox) -> None:
    """The first leaves a file, a closed folder and a link in every folder of the sandbox that it can write to."""
    leave = """
import os
def left(make):
    try:
        make()
    except OSError:
        return False
    return True
for folder, _, _ in os.walk('/'):
    if not folder.startswith(('/proc', '/sys')):
        name = os.path.join(folder, 'canary')
        makes = lambda: open(name, 'w').close(), lambda: os.mkdir(name + '2', 0), lambda: os.symlink('/', name + '3')
        if any([left(make) for make in makes]):
            print(folder)
"""
    look = """
import os
found = []
for folder, folders, files in os.walk('/'):
    if not folder.startswith(('/proc', '/sys')):
        found += [os.path.join(folder, name) for name in folders + files if 'canary' in name]
found
"""
    shared = StatelessSandbox(sandbox)
    try:
        assert shared.open(limits=GENEROUS).run(look).output == "[]\n"
        written = set(shared.open(limits=GENEROUS).run(leave).output.split())
        assert written >= {"/box/work", "/box/tmp"}, written
        assert shared.open(limits=GENEROUS).run(look).output == "[]\n"
    finally:
        shared.close()


@pytest.mark.parametrize("inodes", [4096, 20_000])
def test_files_of_one_stateless_program_do_not_hurt_the_next(sandbox: RunnerSandbox, inodes: int) -> None:
    """4,200 files are more than the smaller limit, and more than are removed in one go."""
    limits = Limits(cpu_s=60, wall_s=120, inodes=inodes)
    fill = """
try:
    for number in range(4200):
        open(f'file {number}', 'w').close()
except OSError as error:
    print(error.strerror)
print(number >= 4000)
"""
    shared = StatelessSandbox(sandbox)
    try:
        for _ in range(3):
            filled = shared.open(limits=limits).run(fill)
            # At 4,096 the file system refuses more, or else the runner notices when it looks next.
            assert filled.output.endswith("True\n") or (filled.reason, inodes) == ("files", 4096)
            after = shared.open(limits=limits, files={"given": b"1"}).run(
                "import os; os.listdir(), open('new', 'w').write('1')"
            )
            assert after.output == "(['given'], 1)\n"
    finally:
        shared.close()


def test_a_fork_can_neither_read_nor_write_the_memory_of_another(session: RunnerSession) -> None:
    """They have one user id, so that it takes more than that to keep them apart."""
    session.run(f"secret = {CANARY!r}")
    fork = session.fork()
    third = fork.fork()
    for reader in (fork, third, session):
        found = reader.run("""
import os
reached, refused = [], set()
for pid in (name for name in os.listdir('/proc') if name.isdigit() and int(name) != os.getpid()):
    for part, mode in (('mem', 'rb'), ('mem', 'r+b'), ('maps', 'rb'), ('environ', 'rb')):
        try:
            with open(f'/proc/{pid}/{part}', mode) as file:
                if part == 'mem' or file.read(1):
                    reached.append((pid, part, mode))
        except OSError as error:
            refused.add(type(error).__name__)
    for part in ('fd', 'cwd', 'root'):
        try:
            os.stat(f'/proc/{pid}/{part}/.')
            os.listdir(f'/proc/{pid}/{part}/')
            reached.append((pid, part))
        except OSError as error:
            refused.add(type(error).__name__)
reached, refused
""")
        assert found.output == "([], {'PermissionError'})\n"
    fork.close()
    third.close()
    assert session.run("secret").output == f"{CANARY!r}\n"


def test_load_makes_no_false_timeouts(sandbox: RunnerSandbox) -> None:
    """Eight cells at a time, each of which needs a quarter of its CPU limit and, alone, little of its time limit."""
    limits = Limits(cpu_s=2, wall_s=60)
    code = "import time\nwhile time.process_time() < 0.5: pass"
    statuses: list[str] = []

    def work() -> None:
        session = sandbox.open(limits=limits)
        statuses.append(session.run(code).status)
        session.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["ok"] * 8


def test_the_level_is_that_of_a_shared_kernel(sandbox: RunnerSandbox) -> None:
    assert sandbox.security_level is SecurityLevel.CONTAINER
    sandbox.check()
