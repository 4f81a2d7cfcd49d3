"""Images: what is in one that is made of the running Python, and that both kinds run sessions."""

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from session_checks import GENEROUS
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.host_image import _Root, write_root
from agentrl.sandbox.docker.image import build_image
from agentrl.sandbox.docker.sandbox import DockerSandbox

NAME = f"agentrl-sandbox-tested-{os.getpid()}"
"""Of images; an engine may serve several test runs at a time."""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="takes Linux programs into an image")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tarfile.TarInfo]:
    """Of a root file system with numpy, by name."""
    path = tmp_path_factory.mktemp("root") / "root.tar"
    with path.open("wb") as file:
        write_root(file, ["numpy", "surely-not-installed"])
    with tarfile.open(path) as tar:
        entries = tar.getmembers()
    assert len({entry.name for entry in entries}) == len(entries), "something is in there twice"
    return {entry.name: entry for entry in entries}


@linux_only
def test_everything_is_root_s_and_readable_and_nothing_is_setuid(members: dict[str, tarfile.TarInfo]) -> None:
    for entry in members.values():
        assert (entry.uid, entry.gid) == (0, 0)
        if not entry.issym():
            assert entry.mode in (0o644, 0o755, 0o1777), entry.name
    assert [name for name, entry in members.items() if entry.mode == 0o1777] == ["box"]


@pytest.mark.parametrize(("mode", "expected"), [(0o6711, 0o755), (0o1600, 0o644), (0o777, 0o755)])
def test_special_bits_and_privacy_end_at_the_archive(tmp_path: Path, mode: int, expected: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x")
    program.chmod(mode)
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        _Root(tar).add_file(program, Path("/usr/bin/program"))
        assert [(entry.name, entry.mode) for entry in tar.getmembers() if entry.isfile()] == [
            ("usr/bin/program", expected)
        ]


@linux_only
def test_every_file_lies_in_a_folder_of_the_archive_that_comes_before_it(members: dict[str, tarfile.TarInfo]) -> None:
    seen = {"."}
    for name, entry in members.items():
        assert str(Path(name).parent) in seen, name
        if entry.isdir():
            seen.add(name)


@linux_only
def test_python_and_the_chosen_packages_are_there_and_nobody_else_s(members: dict[str, tarfile.TarInfo]) -> None:
    library = f"usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("json/__init__.py", "os.py", "site-packages/numpy/__init__.py"):
        assert members[f"{library}/{name}"].isfile()
    tops = {Path(name).parts[5] for name in members if name.startswith(f"{library}/site-packages/")}
    assert {top.split("-")[0].split(".")[0] for top in tops} == {"numpy"}
    assert not [name for name in members if "blas" in name and "site-packages" not in name], "a package's own library"
    parts = {part for name in members if "/numpy/" not in name for part in Path(name).parts}
    assert not parts & {"pip", "ensurepip", "setuptools", "agentrl", "gcc", "cc", "idlelib", "test_grammar.py"}
    assert members["work"].linkname == "box/work"
    assert members["tmp"].linkname == "box/tmp"


@linux_only
def test_no_path_of_this_machine_shows(members: dict[str, tarfile.TarInfo]) -> None:
    tops = {name.split("/")[0] for name in members}
    assert tops <= {"usr", "etc", "dev", "proc", "sys", "box", "work", "tmp", "bin", "sbin", "lib", "lib32", "lib64"}
    usr = {"/".join(name.split("/")[:3]) for name in members if name.startswith("usr/")}
    assert {name.split("/")[1] for name in usr} <= {"bin", "sbin", "lib", "lib32", "lib64", "local", "share"}
    assert {name for name in usr if "share" in name} <= {"usr/share", "usr/share/zoneinfo"}


@pytest.fixture
def remove_images(docker_sandbox: DockerSandbox) -> Iterator[None]:
    yield
    client = Engine().client()
    for image in client.images.list(NAME):
        client.images.remove(image.id, force=True)


def facts_of(image: str) -> Any:
    """What a session in a container of an image finds."""
    code = """
import importlib.util, os, pathlib, sys
print({
    "version": sys.version_info[:3],
    "packages": [name for name in ("numpy", "packaging", "pip", "agentrl") if importlib.util.find_spec(name)],
    "links": [os.readlink("/work"), os.readlink("/tmp")],
    "setuid": [str(path) for path in pathlib.Path("/usr").rglob("*") if path.lstat().st_mode & 0o6000],
})
"""
    session = DockerSandbox(image).open(limits=GENEROUS)
    result = session.run(code)
    session.close()
    assert result.status == "ok", result.output
    return eval(result.output)


@pytest.mark.usefixtures("remove_images")
def test_the_command_line_makes_an_image_of_this_python_without_network() -> None:
    command = [
        "sandbox",
        "build-image",
        "--from-host",
        "--tag",
        f"{NAME}:host",
        "--package",
        "packaging",
    ]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert ended.output.startswith(f"built {NAME}:host (")
    facts = facts_of(f"{NAME}:host")
    assert facts["version"] == sys.version_info[:3]
    assert facts["packages"] == ["packaging"]
    assert facts["setuid"] == []


@pytest.mark.usefixtures("remove_images")
def test_the_dockerfile_makes_an_image_of_any_base(docker_sandbox: DockerSandbox) -> None:
    built = build_image(f"{NAME}:base", base=docker_sandbox._image, packages=())
    assert built.image_id.startswith("sha256:")
    assert built.num_bytes > 10_000_000
    facts = facts_of(f"{NAME}:base")
    assert facts["packages"] == ["numpy"]  # of its base
    assert facts["links"] == ["/box/work", "/box/tmp"]
    assert facts["setuid"] == []


def test_a_build_that_fails_shows_its_last_lines(docker_sandbox: DockerSandbox) -> None:
    with pytest.raises(InfrastructureError, match="No module named pip"):
        build_image(f"{NAME}:broken", base=docker_sandbox._image, packages=("numpy",))


def test_a_base_and_the_host_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="'python:slim', not of both"):
        build_image(base="python:slim", from_host=True)
