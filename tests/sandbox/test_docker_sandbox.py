"""Opening sessions in containers, what is said when that is impossible, and what killed trainers leave."""

import io
import os
import secrets
import socket
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from docker_checks import LOOPS, containers_of, kill_trainer
from other_trainers import start_trainer, wait_until
from session_checks import GENEROUS

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox import Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.docker.engine import Engine, _problem
from agentrl.sandbox.docker.sandbox import DockerSandbox


def test_sessions_keep_their_names_and_fork(docker_sandbox: DockerSandbox) -> None:
    before = containers_of()
    session = docker_sandbox.open(limits=GENEROUS, files={"data/numbers.txt": b"1 2 3"})
    assert session.run("numbers = open('data/numbers.txt').read().split(); len(numbers)").output == "3\n"
    assert session.run("import os, tempfile; os.path.samefile('.', '/work')").output == "True\n"
    assert session.run("os.path.samefile(tempfile.gettempdir(), '/tmp')").output == "True\n"
    twin = session.fork()
    twin.run("numbers.append('4'); open('own', 'w').close()")
    assert [session.run("numbers").output, twin.run("numbers").output] == [
        "['1', '2', '3']\n",
        "['1', '2', '3', '4']\n",
    ]
    assert session.run("os.path.exists('own')").output == "False\n"
    assert len(containers_of().keys() - before.keys()) == 1
    session.close()
    assert twin.run("len(numbers)").output == "4\n"
    twin.close()
    assert containers_of().keys() <= before.keys()


def test_levels() -> None:
    assert DockerSandbox().security_level is SecurityLevel.CONTAINER
    assert DockerSandbox(runtime="runsc").security_level is SecurityLevel.USER_KERNEL


def test_a_missing_image_is_named_with_the_command_that_makes_it_and_never_pulled(
    docker_sandbox: DockerSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(type(Engine().client().api), "pull", lambda self, name, *_, **__: pulled.append(name))
    with pytest.raises(
        SandboxUnavailableError, match=r"no image 'python:0\.9'.*build-image --tag python:0\.9`.*--from-host"
    ):
        DockerSandbox("python:0.9").open(limits=Limits())
    assert pulled == []


def test_an_unknown_runtime_is_named_with_those_there_are(docker_sandbox: DockerSandbox) -> None:
    with pytest.raises(SandboxUnavailableError, match=r"no runtime 'nonesuch', only .*runc"):
        DockerSandbox(docker_sandbox._image, runtime="nonesuch").open(limits=Limits())


@pytest.fixture
def tag() -> str:
    """Of an image of one test: others may use the engine too."""
    return f"test-{secrets.token_hex(8)}"


def test_an_image_with_volumes_is_refused(docker_sandbox: DockerSandbox, tag: str) -> None:
    client = Engine().client()
    before = containers_of()
    container = client.containers.create(docker_sandbox._image, "true", network_mode="none")
    container.commit("agentrl-sandbox", tag, changes="VOLUME /data")
    container.remove()
    try:
        with pytest.raises(ConfigError, match=r"declares volumes \(/data\).*without VOLUME"):
            DockerSandbox(f"agentrl-sandbox:{tag}").open(limits=Limits())
        assert containers_of().keys() <= before.keys()
    finally:
        client.images.remove(f"agentrl-sandbox:{tag}")


def test_an_image_without_the_box_will_do(docker_sandbox: DockerSandbox, tag: str) -> None:
    client = Engine().client()
    command = ["python3", "-c", "import os; os.rmdir('/box')"]
    container = client.containers.create(docker_sandbox._image, command, network_mode="none", user="0:0")
    container.start()
    assert container.wait()["StatusCode"] == 0
    container.commit("agentrl-sandbox", tag)
    container.remove()
    try:
        session = DockerSandbox(f"agentrl-sandbox:{tag}").open(limits=GENEROUS)
        assert session.run("open('a', 'w').write('b')").output == "1\n"
        session.close()
    finally:
        client.images.remove(f"agentrl-sandbox:{tag}")


def test_a_start_that_fails_leaves_nothing(docker_sandbox: DockerSandbox, tag: str) -> None:
    client = docker_sandbox._engine.client()
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    client.api.import_image_from_data(empty.getvalue(), repository="agentrl-sandbox", tag=tag)
    try:
        broken = DockerSandbox(f"agentrl-sandbox:{tag}")
        broken._engine = docker_sandbox._engine
        client.close()  # idle connections, of which it keeps a bounded number
        containers, descriptors = containers_of(), len(os.listdir("/proc/self/fd"))
        with pytest.raises(InfrastructureError, match=r"could not start a container.*python3"):
            broken.start(Limits())
        client.close()
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert containers_of().keys() <= containers.keys()
    finally:
        client.images.remove(f"agentrl-sandbox:{tag}")


def test_without_a_socket_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxUnavailableError) as caught:
        DockerSandbox().open(limits=Limits())
    for part in (f"{tmp_path}/none.sock", "apt-get install docker.io", "DOCKER_HOST", "bubblewrap"):
        assert part in str(caught.value)


def test_a_refused_connection_means_that_the_engine_must_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(f"{tmp_path}/dead.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
    with pytest.raises(SandboxUnavailableError, match="Start the engine"):
        DockerSandbox().open(limits=Limits())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_forbidden_socket_means_that_the_user_needs_the_group() -> None:
    # Every folder of `tmp_path` would have to be opened up.
    with socket.socket(socket.AF_UNIX) as engine, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o711)
        path = f"{folder}/docker.sock"
        engine.bind(path)
        os.chmod(path, 0o600)
        engine.listen()
        code = "from agentrl.sandbox.docker.engine import Engine\n"
        code += "try: Engine().client()\nexcept Exception as error: print(type(error).__name__, error)"
        with start_trainer(code, as_user=True, env={"DOCKER_HOST": f"unix://{path}"}) as trainer:
            output, _ = trainer.communicate(timeout=300)
    assert output.startswith("SandboxUnavailableError")
    assert "usermod -aG docker" in output


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(SandboxUnavailableError, match=r"pip install 'agentrl-framework\[docker\]'"):
        DockerSandbox().open(limits=Limits())


GOOD = {"OSType": "linux", "MemoryLimit": True, "PidsLimit": True, "CgroupVersion": "2"}
GOOD |= {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"CgroupVersion": "1", "SecurityOptions": ["name=seccomp,profile=default"]}, None),
        ({"CgroupVersion": "1"}, "without root on cgroup version 1"),
        ({"MemoryLimit": False}, "cannot limit memory"),
        ({"PidsLimit": False}, "cannot limit processes"),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp"),
        ({"SecurityOptions": None}, "seccomp"),
        ({"OSType": "windows"}, "Linux is needed"),
    ],
)
def test_engines_whose_limits_do_not_bind_are_refused(change: dict[str, Any], words: str | None) -> None:
    problem = _problem(GOOD | change, {"Components": [{"Name": "Engine"}, {"Name": "containerd"}]})
    assert problem is None if words is None else words in (problem or "")


def test_a_trainer_killed_during_a_cell_leaves_nothing(docker_sandbox: DockerSandbox) -> None:
    owner = kill_trainer(LOOPS, docker_sandbox._image)
    assert wait_until(lambda: not containers_of(owner))
