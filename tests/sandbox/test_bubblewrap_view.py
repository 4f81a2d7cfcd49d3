"""What a program in a bubblewrap sandbox sees and may do, started by root and by a normal user."""

import contextlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from engines import require_bubblewrap
from other_trainers import run_trainer

import agentrl
from agentrl.sandbox import Limits
from agentrl.sandbox.bubblewrap.command import Descriptors, sandbox_command
from agentrl.sandbox.host_python import HostPython, describe, describe_other

CANARY = "the-answer-is-42"
REPORT = r"""
import json, os, socket

def status(pid):
    return dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines())

def error_of(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__

folders, num_files, wanted_found, named_agentrl, of_etc, below_hidden = ["/"], 0, [], [], [], []
for folder in folders:
    device = os.stat(folder).st_dev
    for entry in os.scandir(folder) if os.access(folder, os.R_OK | os.X_OK) else ():
        num_files += 1
        if (device, entry.inode()) in wanted:
            wanted_found.append((device, entry.inode()))
        if "agentrl" in entry.path:
            named_agentrl.append(entry.path)
        if folder == "/etc":
            of_etc.append(entry.path)
        if folder in ("/usr/local", "/usr/src"):
            below_hidden.append(entry.path)
        if entry.is_dir(follow_symlinks=False) and entry.path != "/proc":
            folders.append(entry.path)
print(json.dumps({
    "pids": [int(name) for name in os.listdir("/proc") if name.isdigit()],
    "status": {pid: status(pid) for pid in ("1", "self")},
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")},
    "mounts": [line.split()[4:6] for line in open("/proc/self/mountinfo")],
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]],
    "environment": dict(os.environ),
    "fds": {name: os.readlink("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")
            if os.path.lexists("/proc/self/fd/" + name)},
    "hostname": socket.gethostname(),
    "writable": [folder for folder in folders if os.access(folder, os.W_OK)],
    "devices": os.listdir("/dev"),
    "root": os.listdir("/"),
    "num_files": num_files,
    "numpy_file": numpy_file,
    "wanted_found": wanted_found,
    "named_agentrl": named_agentrl,
    "of_etc": of_etc,
    "below_hidden": below_hidden,
    "passwords": error_of(lambda: open("/etc/shadow")),
    "agentrl": error_of(lambda: __import__("agentrl")),
    "numpy": error_of(lambda: __import__("numpy")),
    "tty": error_of(lambda: open("/dev/tty")),
    "inet": error_of(lambda: socket.socket(socket.AF_INET)),
    "mount": os.system("mount -t tmpfs none /box/work 2>/dev/null"),
    "newuser": os.system("unshare -U true 2>/dev/null"),
    "sysctl": error_of(lambda: open("/proc/sys/kernel/hostname", "w")),
    "tmp": error_of(lambda: open("/tmp/file", "w")),
    "work": error_of(lambda: open("/work/file", "w")),
    "lock": error_of(lambda: __import__("multiprocessing").Lock()),
}))
"""
OPEN = """
import os
import numpy
from agentrl.sandbox import Limits
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap
os.environ["SECRET"] = {secret!r}
session = Bubblewrap().open(limits=Limits(cpu_s=60, wall_s=120, output_bytes=1_000_000))
shown = os.lstat(numpy.__file__)
result = session.run(f"numpy_file = {{(shown.st_dev, shown.st_ino)}}\\n" + {code!r})
assert result.status == "ok", result
print(result.output)
"""


def identity_of(path: str | Path) -> tuple[int, int]:
    """What a file is known by on both sides, under whatever name: they show the same files of one file system."""
    entry = os.lstat(path)
    return entry.st_dev, entry.st_ino


def project_files() -> set[tuple[int, int]]:
    found = set()
    for folder, names, files in os.walk(Path(agentrl.__file__).parents[1]):
        names[:] = [name for name in names if not name.startswith(".") and name != "node_modules"]
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # a module is being compiled: such a file is soon renamed
                found.add(identity_of(os.path.join(folder, name)))
    return found


@pytest.fixture(scope="module", params=["whoever runs the tests", "a normal user"])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    require_bubblewrap()
    code = f"wanted = {project_files()!r} | {{numpy_file}}\n{REPORT}"
    opening = OPEN.format(secret=CANARY, code=code)
    report: dict[str, Any] = json.loads(run_trainer(opening, as_user=request.param == "a normal user"))
    return report


def test_it_has_namespaces_of_its_own(report: dict[str, Any]) -> None:
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert report["namespaces"][name] != os.readlink(f"/proc/self/ns/{name}"), name
    assert report["hostname"] == "sandbox"


def test_it_sees_its_own_processes_only(report: dict[str, Any]) -> None:
    assert min(report["pids"]) == 1
    assert len(report["pids"]) == 3, "runner, checkpoint, interpreter"


@pytest.mark.parametrize("process", ["1", "self"])
def test_no_process_has_rights(report: dict[str, Any], process: str) -> None:
    status = report["status"][process]
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2", "a filter"
    assert set(status["Uid"].split()) & {"0", str(os.geteuid())} == set()
    assert set(status["Gid"].split()) & {"0", str(os.getegid())} == set()
    assert status["Groups"].strip() in ("", "65534")


def test_everything_but_its_box_is_read_only(report: dict[str, Any]) -> None:
    writable = {path for path, options in report["mounts"] if "ro" not in options.split(",")}
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    assert writable == {"/box", "/proc", *devices}
    assert all(folder == "/box" or folder.startswith("/box/") for folder in report["writable"])
    assert "/box/work" in report["writable"]
    assert all("nosuid" in options.split(",") for _, options in report["mounts"])
    assert (report["tmp"], report["work"]) == (None, None)
    assert report["sysctl"] is not None


def test_there_is_no_network_but_an_empty_loopback(report: dict[str, Any]) -> None:
    assert report["interfaces"] == ["lo"]
    assert report["inet"] == "PermissionError"


def test_there_is_no_terminal_and_no_raw_device(report: dict[str, Any]) -> None:
    assert sorted(report["devices"]) == sorted(
        ["null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"]
    )
    assert report["tty"] == "FileNotFoundError"
    assert report["lock"] is None, "shared memory works"


def test_namespaces_and_mounts_cannot_be_made(report: dict[str, Any]) -> None:
    assert report["mount"] != 0
    assert report["newuser"] != 0


def test_the_environment_is_empty_but_for_settings(report: dict[str, Any]) -> None:
    assert set(report["environment"]) <= {
        *("PATH", "LANG", "HOME", "TMPDIR", "PWD", "LC_CTYPE"),
        *("PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"),
        *("MPLBACKEND", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    }
    assert CANARY not in json.dumps(report)


def test_no_descriptor_of_the_host_came_along(report: dict[str, Any]) -> None:
    sockets = [target for target in report["fds"].values() if target.startswith("socket:")]
    assert len(sockets) == 1, "the interpreter's own, to the runner"
    others = set(report["fds"].values()) - set(sockets)
    assert all(target.startswith(("pipe:", "/dev/null", "/proc/")) for target in others), report["fds"]


def test_nothing_of_agentrl_or_of_the_project_can_be_reached(report: dict[str, Any]) -> None:
    assert len(project_files()) > 100
    assert report["wanted_found"] == [report["numpy_file"]], "the walk finds what is shown, and none of the project"
    assert report["agentrl"] == "ModuleNotFoundError"
    assert report["named_agentrl"] == []


def test_no_secret_of_the_machine_can_be_reached(report: dict[str, Any]) -> None:
    assert set(report["of_etc"]) <= {"/etc/ld.so.cache", "/etc/alternatives"}
    assert report["passwords"] == "FileNotFoundError"
    assert not {"home", "run", "sys", "mnt", "media", "srv", "boot"} & set(report["root"])
    assert report["below_hidden"] == [] or os.path.realpath(sys.executable).startswith("/usr/local/")
    assert report["num_files"] > 1000


def test_chosen_packages_can_be_imported(report: dict[str, Any]) -> None:
    assert report["numpy"] is None


def test_a_pythons_parts_are_shown_without_what_was_installed_into_it() -> None:
    python = describe(["numpy"])
    assert os.access(python.executable, os.X_OK)
    stdlib = os.path.dirname(os.__file__)
    assert any(os.path.realpath(stdlib).startswith(folder) for folder in (*python.paths, "/usr/"))
    assert not [path for path in python.paths if path.endswith(("site-packages", "dist-packages"))]
    shown = [path for path in python.packages if "numpy" in os.path.basename(path)]
    assert shown
    assert len(shown) == len(python.packages), "nothing that numpy does not require"


def test_packages_that_a_package_requires_come_along() -> None:
    shown = {os.path.basename(path) for path in describe(["sympy"]).packages}
    assert {"sympy", "mpmath"} <= shown, "sympy requires mpmath"
    assert "numpy" not in shown
    assert describe(["no-such-distribution"]).packages == {}


def test_another_python_is_asked_itself(tmp_path: Path) -> None:
    assert describe_other(sys.executable, ("numpy",)) == describe(["numpy"])
    assert describe_other(str(tmp_path / "absent"), ()) is None
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(stat.S_IRWXU)
    assert describe_other(str(broken), ()) is None


def test_an_interpreter_below_work_or_tmp_takes_the_place_of_the_link() -> None:
    python = HostPython(executable="/work/py/bin/python3", paths=("/work/py",), hidden=(), packages={})
    fds = Descriptors(seccomp=3, info=4, block=5)
    command = sandbox_command(python, ["x"], {}, disk_bytes=int(Limits().disk_mb) << 20, descriptors=fds, uid=None)
    links = [command[at + 2] for at, word in enumerate(command) if word == "--symlink"]
    assert "/work" not in links
    assert "/tmp" in links
    assert command.index("/work") < command.index("/work/py")
