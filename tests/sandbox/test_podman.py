"""Podman in Docker's place: what it is asked for, and its walls, looked at and pushed against from inside."""

import ast
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_checks import CREATES_ONLY, LOOPS, containers_of, kill_trainer, receive_exactly, start_program
from engines import require_podman
from other_trainers import wait_until
from session_checks import GENEROUS
from syscall_probe import PROBE, PROBE_ANSWERS
from test_docker_hardening import FACTS
from test_docker_link import ECHO, LIMITS, MEBIBYTE, TELL_LIMITS

from agentrl.sandbox import Limits, SandboxUnavailableError
from agentrl.sandbox.attacks.attack import Attack
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.check import run_attacks
from agentrl.sandbox.docker.engine import _problem
from agentrl.sandbox.docker.plan import ContainerPlan
from agentrl.sandbox.docker.podman_dialect import PodmanDialect, podman_version
from agentrl.sandbox.docker.sandbox import DockerSandbox

docker = pytest.importorskip("docker")

INFO = {"OSType": "linux", "MemoryLimit": True, "PidsLimit": True, "CgroupVersion": "2"}
INFO |= {"SecurityOptions": ["name=seccomp,profile=default"]}


def version(number: str) -> dict[str, Any]:
    """As an engine tells it."""
    podman = {"Name": "Podman Engine", "Version": number, "Details": {"APIVersion": number}}
    return {"Components": [podman, {"Name": "Conmon", "Version": "2.1.6"}]}


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        ("4.3.1", {}, None),
        ("5.10.0-rc1", {}, None),  # more than 5.4, though less as text
        ("4.2.9", {}, "4.3 or later is needed"),
        ("3.4.4", {}, "4.3 or later is needed"),
        ("5.4.2", {"SecurityOptions": ["name=seccomp,profile=default,name=rootless"]}, "podman.socket"),
        ("5.4.2", {"SecurityOptions": ["name=apparmor"]}, "seccomp"),  # what holds for every engine
        ("5.4.2", {"MemoryLimit": False}, "cannot limit memory"),
    ],
)
def test_a_podman_that_cannot_hold_is_refused(number: str, change: dict[str, Any], words: str | None) -> None:
    problem = _problem(INFO | change, version(number))
    assert problem is None if words is None else words in (problem or "")


def test_other_engines_are_no_podman() -> None:
    assert podman_version({"Components": [{"Name": "Engine", "Version": "28.0"}, {"Name": "containerd"}]}) is None
    assert podman_version({}) is None


class Answer:
    def __init__(self, status_code: int, text: str) -> None:
        self.ok, self.status_code, self.text = status_code < 400, status_code, text


class ScriptedEngine:
    """Stands for a client and its `api`: answers requests as it is told, and notes what they were."""

    base_url, timeout = "http://engine", 60

    def __init__(self, answer: str = "", status: int = 200, failures: int = 0) -> None:
        self.api = self
        self._answer = answer
        self._status = status
        self.failures = failures
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.profiles: list[Path] = []

    def post(self, url: str, json: dict[str, Any], timeout: float) -> Answer:
        self.sent.append((url, json))
        if "seccomp_profile_path" in json:
            self.profiles.append(Path(json["seccomp_profile_path"]))
            assert ast.literal_eval(self.profiles[-1].read_text())["defaultAction"] == "SCMP_ACT_ERRNO"
        return Answer(self._status, self._answer.format(**json))

    def inspect_container(self, name: str) -> dict[str, Any]:
        return {"Mounts": [{"Destination": "/data"}]}

    def inspect_image(self, name: str) -> None:
        pass

    def remove_container(self, container: str, force: bool, v: bool) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise docker.errors.APIError("could not be stopped: container state improper")
        raise docker.errors.NotFound("no such container")


PLAN = ContainerPlan(
    name="c", image="i", runtime=None, command=["python3", "-c", "x"], environment={"A": "b"}, labels={}, limits=LIMITS
)


def test_a_filter_that_podman_cannot_read_names_the_remedy_and_leaves_no_file() -> None:
    elsewhere = ScriptedEngine("opening seccomp profile failed: open {seccomp_profile_path}: no such file", 500)
    with pytest.raises(SandboxUnavailableError, match=r"system-call filter.*TMPDIR"):
        PodmanDialect("4.3.1").create(elsewhere, PLAN)
    with pytest.raises(docker.errors.APIError, match="status 500: no space"):
        PodmanDialect("4.3.1").create(elsewhere := ScriptedEngine("no space", 500), PLAN)
    assert [path.parent.exists() for path in elsewhere.profiles] == [False]


def test_folders_that_podman_itself_mounts_are_refused() -> None:
    with pytest.raises(SandboxUnavailableError, match=r"/data.*containers\.conf"):
        PodmanDialect("4.3.1").create(ScriptedEngine(), PLAN)


def test_a_container_that_ends_while_it_is_removed_is_asked_for_until_it_is_gone() -> None:
    engine = ScriptedEngine(failures=2)
    PodmanDialect("4.3.1").remove(engine, "c")
    assert engine.failures == -1  # two failures and the answer that it is gone


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DockerSandbox]:
    with pytest.MonkeyPatch.context() as patch:
        sandbox = DockerSandbox(require_podman(patch))
        sandbox._engine.client()
        assert isinstance(sandbox._engine.dialect, PodmanDialect)
        yield sandbox
        assert wait_until(lambda: not containers_of())


def test_nothing_can_be_written_but_the_box_and_a_little_shared_memory(sandbox: DockerSandbox) -> None:
    session = sandbox.open(limits=Limits(cpu_s=60, wall_s=120, output_bytes=100_000))
    result = session.run(FACTS)
    session.close()
    assert result.status == "ok", result.output
    facts = ast.literal_eval(result.output)
    assert facts["mounts"]["/"][1].split(",")[0] == "ro"
    assert facts["writable folders"] == ["/dev/shm"]  # and not /run, /tmp or /var/tmp
    assert facts["shared memory"] == 1 << 20
    assert {"nosuid", "nodev", "noexec"} <= set(facts["mounts"]["/dev/shm"][1].split(","))
    assert (facts["space"], facts["inodes"]) == (64 << 20, 4096)
    assert facts["memory"] == (64 + 64 + 2 * 512) << 20  # runner, files, session and checkpoint
    assert facts["tasks"] == 16 + 2 * 64  # runner, session and checkpoint
    assert facts["limits"]["Max open files"] == ["4096", "4096"]
    assert facts["limits"]["Max core file size"] == facts["limits"]["Max msgqueue size"] == ["0", "0"]
    assert facts["ids"] == ((65534,) * 3, (65534,) * 3, [65534])
    for process in ("status", "runner"):
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[process][name], 16) == 0
        assert (facts[process]["NoNewPrivs"], facts[process]["Seccomp"]) == ("1", "2")
    assert facts["mounts"]["/run/secrets"][0] == "tmpfs"  # a subscription of the machine's could show there
    assert facts["interfaces"] == ["lo"]
    assert facts["sockets"] == facts["setuid"] == facts["block devices"] == []
    assert facts["devices"] == {"full", "null", "random", "tty", "urandom", "zero"}
    assert not {"container", "TERM", "HTTP_PROXY", "http_proxy"} & facts["environment"].keys()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe has numbers of x86_64")
def test_system_calls_are_filtered(sandbox: DockerSandbox) -> None:
    session = sandbox.open(limits=GENEROUS)
    assert ast.literal_eval(session.run(PROBE).output) == PROBE_ANSWERS
    session.close()


def test_a_session_and_its_fork_share_a_container_that_goes_with_the_last_of_them(sandbox: DockerSandbox) -> None:
    session = sandbox.open(limits=GENEROUS, files={"data.txt": b"1 2"})
    session.run("numbers = open('data.txt').read().split()")
    twin = session.fork()
    twin.run("numbers.append('3')")
    assert [session.run("numbers").output, twin.run("numbers").output] == ["['1', '2']\n", "['1', '2', '3']\n"]
    assert len(containers_of()) == 1
    session.close()
    assert twin.run("len(numbers)").output == "3\n"
    twin.close()
    assert not containers_of()


def test_limits_grow_with_sessions(sandbox: DockerSandbox) -> None:
    link = start_program(sandbox, TELL_LIMITS, LIMITS)

    def limits() -> list[int]:
        link.send(b"?", 60)
        return [int(number) for number in receive_exactly(link, 100).split()]

    # As with Docker: 64 + 8 + 2 * 32 = 136 MiB and 16 + 2 * 5 = 26 tasks for one session; 64 + 8 + 5 * 32 = 232 MiB and
    # 16 + 5 * 5 = 41 tasks for four, for whom room is made.
    assert limits() == [136 * MEBIBYTE, 136 * MEBIBYTE, 26]
    link.resize(3)
    assert limits() == [232 * MEBIBYTE, 232 * MEBIBYTE, 41]
    link.close()
    with pytest.raises(OSError, match="status 404"):
        link.resize(5)


def test_no_byte_means_anything_to_podman(sandbox: DockerSandbox) -> None:
    link = start_program(sandbox, ECHO)
    data = bytes(range(256)) * 100
    link.send(data, 60)
    assert receive_exactly(link, len(data)) == data
    for key in (b"\x10", b"\x11"):  # by which its users detach; it holds back the first where it looks for them
        link.send(key, 60)
        assert link.receive(1, 10) == key
    link.abandon()  # as the kernel does for a trainer that was killed
    assert wait_until(lambda: not containers_of())


def test_no_end_is_taken_for_a_lack_of_memory_that_podman_does_not_tell(sandbox: DockerSandbox) -> None:
    greedy = start_program(sandbox, "def main():\n  hoard = []\n  while True: hoard.append(bytearray(1 << 20))", LIMITS)
    assert receive_exactly(greedy, 1) == b""
    major = int((podman_version(sandbox._engine.client().version()) or "").split(".")[0])
    assert not greedy.ran_out_of_memory() or major >= 5  # and later ones know only until they have removed it
    greedy.close()
    liar = start_program(sandbox, "import os\ndef main(): os._exit(137)", LIMITS)  # the same exit status
    assert receive_exactly(liar, 1) == b""
    assert not liar.ran_out_of_memory()
    liar.close()


def test_volumes_of_an_image_cannot_be_written_to(sandbox: DockerSandbox) -> None:
    client = sandbox._engine.client()
    container = client.api.create_container(sandbox._image, "true")["Id"]
    tag = f"with-volume-{os.getpid()}"  # an engine may serve several test runs at a time
    client.api.commit(container, "agentrl-sandbox", tag, changes="VOLUME /data")
    client.api.remove_container(container)
    try:
        session = DockerSandbox(f"agentrl-sandbox:{tag}").open(limits=GENEROUS)
        output = session.run("import os\nos.makedirs('/data', exist_ok=True); open('/data/x', 'w')").output
        session.close()
        assert "Read-only file system" in output
    finally:
        client.images.remove(f"agentrl-sandbox:{tag}")


def test_a_missing_image_is_named_with_the_command_that_makes_it(sandbox: DockerSandbox) -> None:
    with pytest.raises(SandboxUnavailableError, match=r"no image 'python:0\.9'.*build-image --tag python:0\.9`"):
        DockerSandbox("python:0.9").open(limits=Limits())


def test_sessions_that_end_together_leave_nothing(sandbox: DockerSandbox) -> None:
    sessions = [sandbox.open(limits=GENEROUS) for _ in range(6)]
    threads = [threading.Thread(target=session.close) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not containers_of()


@pytest.mark.parametrize("code", [LOOPS, CREATES_ONLY])
def test_a_killed_trainer_leaves_nothing(sandbox: DockerSandbox, code: str) -> None:
    owner = kill_trainer(code, sandbox._image)
    if code is CREATES_ONLY:  # only who opens a session has a janitor; this is what every trainer begins with
        sandbox._engine.remove_leftovers()  # how many is not known: the janitor of another trainer may be here as well
    assert wait_until(lambda: not containers_of(owner))


@pytest.fixture(scope="module")
def attacks() -> list[Attack]:
    """Those that look for a way out; `agentrl sandbox selftest` has all."""
    return [attack for attack in ATTACKS if attack.group in ("fs", "secrets", "net", "kernel")]


def test_attacks_are_held(sandbox: DockerSandbox, attacks: list[Attack]) -> None:
    outcomes = list(run_attacks(lambda limits: sandbox.open(limits=limits), attacks))
    assert [(outcome.attack.id, outcome.detail) for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == 26 + 7 + 10 + 16
