"""Where bubblewrap cannot run, the error says what to do; which Python it runs follows a rule."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engines import require_bubblewrap

from agentrl.sandbox import Limits, SandboxUnavailableError
from agentrl.sandbox.bubblewrap import remedy as bubblewrap_remedy
from agentrl.sandbox.bubblewrap import sandbox as bubblewrap
from agentrl.sandbox.bubblewrap.remedy import remedy
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap, _find_setup
from agentrl.sandbox.host_python import HostPython, describe


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was found out before does not count, nor does what is found out here."""
    _find_setup.cache_clear()
    yield
    _find_setup.cache_clear()


def test_without_bubblewrap_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="apt install bubblewrap"):
        Bubblewrap().open(limits=Limits())


def test_on_macos_docker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxUnavailableError, match=r"needs Linux.*docker.*colima"):
        Bubblewrap().open(limits=Limits())


def test_what_bubblewrap_says_is_quoted_and_nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    broken.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    counts = []
    for _ in range(3):
        with pytest.raises(SandboxUnavailableError, match="Creating new namespace failed"):
            Bubblewrap().open(limits=Limits())
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] >= counts[2], "the first opens what is kept"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor.*`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "`sudo sysctl -w kernel.unprivileged_userns_clone=1`"),
        ("/proc/sys/user/max_user_namespaces", "0", "`sudo sysctl -w user.max_user_namespaces=15000`"),
    ],
)
def test_the_setting_that_forbids_user_namespaces_is_named(
    monkeypatch: pytest.MonkeyPatch, path: str, value: str, expected: str
) -> None:
    monkeypatch.setattr(bubblewrap_remedy, "_read", lambda name: value if name == path else "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    text = remedy("bwrap: setting up uid map: Permission denied")
    assert re.search(expected, text), text
    assert "setting up uid map: Permission denied" in text
    assert "docker" in text
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sysctl" not in remedy("bwrap: setting up uid map: Permission denied"), "root needs none"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sysctl" not in remedy("bwrap: execvp python: no such file"), "another failure"


def test_inside_a_container_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_remedy, "_read", lambda name: "")
    monkeypatch.setattr(bubblewrap_remedy, "_CONTAINER_MARKS", ("/proc/self/exe",))
    assert "Containers mostly forbid" in remedy("bwrap: Creating new namespace failed: Operation not permitted")
    monkeypatch.setattr(bubblewrap_remedy, "_CONTAINER_MARKS", ())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "Containers" not in remedy("bwrap: Creating new namespace failed: Operation not permitted")


def test_an_old_bubblewrap_is_called_so() -> None:
    assert "0.7 or later" in remedy("bwrap: Unknown option --size")


def test_root_without_setpriv_is_told_to_install_it() -> None:
    assert "apt install util-linux" in remedy("bwrap: execvp /usr/bin/setpriv: No such file or directory")


def broken_python(tmp_path: Path) -> HostPython:
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\necho this one is broken >&2\nexit 1\n")
    program.chmod(0o755)
    return HostPython(executable=str(program), paths=(str(program),), hidden=(), packages={})


def test_a_python_that_does_not_start_in_there_gives_way_to_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_bubblewrap()
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("there is no /usr/bin/python3: apt install python3")
    monkeypatch.setattr(bubblewrap, "describe", lambda packages: broken_python(tmp_path))
    session = Bubblewrap().open(limits=Limits())
    assert session.run("import sys; sys.prefix").output == "'/usr'\n"
    session.close()


def test_without_any_python_all_reasons_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_bubblewrap()
    broken = broken_python(tmp_path)
    monkeypatch.setattr(bubblewrap, "describe", lambda packages: broken)
    old = replace(broken, executable="/usr/bin/no-such-python")
    monkeypatch.setattr(bubblewrap, "describe_other", lambda python, packages: old)
    with pytest.raises(SandboxUnavailableError, match=r"(?s)this one is broken.*no-such-python"):
        Bubblewrap().open(limits=Limits())


def test_packages_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    require_bubblewrap()
    assert describe(["numpy"]).packages, "numpy is installed here"
    session = Bubblewrap(packages=["mpmath"]).open(limits=Limits(cpu_s=60, wall_s=120))
    assert session.run("import mpmath; mpmath.mpf(1) / 4").output == "mpf('0.25')\n"
    assert "ModuleNotFoundError" in session.run("import numpy").output
    session.close()
