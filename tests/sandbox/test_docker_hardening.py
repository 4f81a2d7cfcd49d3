"""Every wall of a container, looked at and pushed against by a program inside it; the engine's word is not taken."""

import ast
import platform
from collections.abc import Iterator
from typing import Any

import pytest
from docker_checks import containers_of
from session_checks import GENEROUS
from syscall_probe import PROBE, PROBE_ANSWERS

from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.session import RunnerSession

FACTS = '''
import grp, os, pathlib, socket, stat

def read(path):
    with open(path) as file:
        return file.read()

def status(pid):
    return dict(line.split(":\\t", 1) for line in read(f"/proc/{pid}/status").splitlines())

def writable_places():
    """Folders in which a file can be made, tried, and files that can be opened for writing, in the whole tree."""
    folders, files = [], []
    for folder, names, found in os.walk("/"):
        if folder == "/":
            names[:] = [name for name in names if name not in ("proc", "sys", "box")]
        try:
            os.close(os.open(os.path.join(folder, "probe"), os.O_CREAT | os.O_WRONLY))
            folders.append(folder)
        except OSError:
            pass
        files += [path for name in found if os.access(path := os.path.join(folder, name), os.W_OK)]
    return folders, files

def refusal(action, *arguments):
    try:
        return f"LEAKED {action(*arguments)!r}"
    except OSError as error:
        return type(error).__name__

def mode(path):
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:  # in /sys things come and go with other containers
        return 0

def cgroup(*paths):
    return next(int(read(path)) for path in paths if os.path.exists(path))

folders, files = writable_places()
devices = list(pathlib.Path("/dev").iterdir())
facts = {
    "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
    "status": status("self"),
    "runner": status(1),
    "mounts": {line.split()[1]: line.split()[2:4] for line in read("/proc/mounts").splitlines()},
    "writable folders": folders,
    "writable files": files,
    "devices": {path.name for path in devices if path.is_char_device() and not path.is_symlink()},
    "block devices": [path.name for path in devices if path.is_block_device()],
    "interfaces": [line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]],
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "hostname": socket.gethostname(),
    "memory": cgroup("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"),
    "tasks": cgroup("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"),
    "space": os.statvfs("/box").f_blocks * os.statvfs("/box").f_frsize,
    "inodes": os.statvfs("/box").f_files,
    "shared memory": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "limits": {line[:26].strip(): line[26:].split()[:2] for line in read("/proc/1/limits").splitlines()[1:]},
    "environment": dict(os.environ),
    "runner's environment": refusal(read, "/proc/1/environ"),
    "runner's files": refusal(os.listdir, "/proc/1/fd"),
    "kernel log": refusal(read, "/dev/kmsg"),
    "kernel settings": refusal(open, "/proc/sys/kernel/core_pattern", "w"),
    "kernel control": refusal(open, "/proc/sysrq-trigger", "w"),
    "cgroup escape": refusal(open, "/sys/fs/cgroup/release_agent", "w"),
    "sockets": [path for folder, _, names in os.walk("/") for name in names if not folder.startswith("/proc")
                and stat.S_ISSOCK(mode(path := os.path.join(folder, name)))],
    "setuid": [path for folder, _, names in os.walk("/usr") for name in names
               if mode(path := os.path.join(folder, name)) & (stat.S_ISUID | stat.S_ISGID)],
}
print(facts)
'''


@pytest.fixture(scope="module")
def session(docker_sandbox: DockerSandbox) -> Iterator[RunnerSession]:
    session = docker_sandbox.open(limits=GENEROUS)
    yield session
    session.close()


@pytest.fixture(scope="module")
def facts(docker_sandbox: DockerSandbox) -> dict[str, Any]:
    limits = type(GENEROUS)(cpu_s=60, wall_s=120, output_bytes=100_000)
    session = docker_sandbox.open(limits=limits)
    result = session.run(FACTS)
    session.close()
    assert result.status == "ok", result.output
    return dict(ast.literal_eval(result.output))


def test_programs_are_nobody_without_any_capability(facts: dict[str, Any]) -> None:
    assert facts["ids"] == ((65534,) * 3, (65534,) * 3, [65534])
    for process in ("status", "runner"):
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[process][name], 16) == 0
        assert facts[process]["NoNewPrivs"] == "1"
        assert facts[process]["Seccomp"] == "2"  # a filter
    assert facts["setuid"] == []


def test_nothing_can_be_written_but_the_box_and_a_little_shared_memory(facts: dict[str, Any]) -> None:
    assert facts["mounts"]["/"][1].split(",")[0] == "ro"
    assert facts["writable folders"] == ["/dev/shm"]
    assert facts["shared memory"] == 1 << 20
    assert {"nosuid", "nodev", "noexec"} <= set(facts["mounts"]["/dev/shm"][1].split(","))
    streams = {"/dev/stdin", "/dev/stdout", "/dev/stderr"}  # the cell's own
    terminals = {"/dev/ptmx", "/dev/pts/ptmx"}  # a new one cannot be unlocked: that is a control call
    harmless = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert set(facts["writable files"]) <= streams | terminals | harmless
    assert facts["devices"] == {"full", "null", "random", "tty", "urandom", "zero"}
    assert facts["block devices"] == []
    kind, options = facts["mounts"]["/box"]
    assert kind == "tmpfs"
    assert {"rw", "nosuid", "nodev"} <= set(options.split(","))


def test_space_and_number_of_files_end(facts: dict[str, Any], session: RunnerSession) -> None:
    assert facts["space"] == 64 << 20
    assert facts["inodes"] == 4096
    code = """
import errno, os
def fill(step):
    try:
        while True: step()
    except OSError as error:
        return errno.errorcode[error.errno]
numbers = iter(range(10**6))
print(fill(lambda: open(f"{next(numbers)}", "w").close()), len(os.listdir()) < 4096)
for name in os.listdir(): os.remove(name)
with open("large1", "wb") as one, open("large2", "wb") as two:
    print(fill(lambda: (one.write(bytes(1 << 20)), one.flush(), two.write(bytes(1 << 20)), two.flush())))
os.remove("large1"); os.remove("large2")
"""
    assert session.run(code).output == "ENOSPC True\nENOSPC\n"


def test_the_engine_limits_memory_tasks_and_files(facts: dict[str, Any]) -> None:
    assert facts["memory"] == (64 + 64 + 2 * 512) << 20  # runner, files, session and checkpoint
    assert facts["tasks"] == 16 + 2 * 64  # runner, session and checkpoint
    assert facts["limits"]["Max open files"] == ["4096", "4096"]
    assert facts["limits"]["Max core file size"] == ["0", "0"]


def test_there_is_no_network(facts: dict[str, Any]) -> None:
    assert facts["interfaces"] == ["lo"]


def test_processes_see_only_each_other_and_never_the_runner_s_inside(facts: dict[str, Any]) -> None:
    assert facts["processes"][0] == 1
    assert len(facts["processes"]) <= 4  # the runner, a checkpoint, the cell
    assert facts["runner"]["Name"].strip() == "python3"
    assert facts["runner's environment"] == facts["runner's files"] == "PermissionError"


def test_nothing_of_the_machine_shows(facts: dict[str, Any]) -> None:
    assert facts["hostname"] == "sandbox"
    assert facts["sockets"] == []
    allowed = {"PATH", "LANG", "HOME", "HOSTNAME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE"}
    assert facts["environment"].keys() <= allowed | {
        "MPLBACKEND",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "LC_CTYPE",
    }


def test_the_kernel_cannot_be_set(facts: dict[str, Any]) -> None:
    for name in ("kernel log", "kernel settings", "kernel control", "cgroup escape"):
        assert facts[name] in ("PermissionError", "OSError", "FileNotFoundError"), (name, facts[name])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe has numbers of x86_64")
def test_system_calls_are_filtered(session: RunnerSession) -> None:
    result = session.run(PROBE)
    assert ast.literal_eval(result.output) == PROBE_ANSWERS


def test_numbers_can_be_crunched(session: RunnerSession) -> None:
    code = "import numpy, sqlite3, hashlib, concurrent.futures as f\n"
    code += (
        "with f.ThreadPoolExecutor(4) as pool: print(sum(pool.map(lambda n: float(numpy.ones(n).sum()), range(10))))"
    )
    assert session.run(code).output == "45.0\n"  # 0 + 1 + ... + 9
    code = "import multiprocessing\nwith multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))"
    assert session.run(code).output == "[1, 2]\n"


def test_what_is_printed_is_not_stored_by_the_engine(docker_sandbox: DockerSandbox) -> None:
    before = containers_of()
    session = docker_sandbox.open(limits=GENEROUS)
    session.run("print('x' * 100_000)")
    (container,) = containers_of().keys() - before.keys()
    client = docker_sandbox._engine.client()
    with pytest.raises(Exception, match=r"does not support reading|'none' log driver"):
        client.api.logs(container)
    session.close()
