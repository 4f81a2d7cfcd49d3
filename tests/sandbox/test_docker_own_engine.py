"""With an engine of the tests' own, where nobody else's containers come and go.

It is stopped and killed while a cell runs, of which trainers are told and after which they can go on; and trainers are
killed before they could start what they had created.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_checks import CREATES_ONLY, containers_of, kill_trainer
from engines import require_own_engine
from other_trainers import wait_until
from session_checks import GENEROUS

from agentrl.errors import InfrastructureError
from agentrl.sandbox import SandboxUnavailableError
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.image import build_image
from agentrl.sandbox.docker.sandbox import IMAGE, DockerSandbox
from agentrl.sandbox.runner.process_tree import descendants


class OwnEngine:
    """An engine in a folder."""

    def __init__(self, script: Path, folder: Path) -> None:
        self._script = script
        self.folder = folder
        self.start()

    @property
    def pid(self) -> int:
        return int((self.folder / "docker.pid").read_text())

    def start(self) -> None:
        subprocess.run([self._script, "start", self.folder], check=True, stdout=subprocess.DEVNULL)

    def end(self, number: signal.Signals) -> None:
        pid = self.pid
        os.kill(pid, number)
        assert wait_until(lambda: not Path(f"/proc/{pid}/exe").exists())  # a zombie has none

    def remove(self) -> None:
        subprocess.run([self._script, "stop", self.folder], check=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    engine = OwnEngine(require_own_engine(), tmp_path_factory.mktemp("engine"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{engine.folder}/docker.sock")
        build_image(IMAGE, from_host=True, packages=())
        yield engine
    engine.remove()
    assert not engine.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_engine_is_no_fault_of_the_program(engine: OwnEngine, number: signal.Signals) -> None:
    sandbox = DockerSandbox()
    session = sandbox.open(limits=GENEROUS)
    session.run("x = 1")
    errors: list[Exception] = []

    def loop() -> None:
        try:
            session.run("while True: pass")
        except Exception as error:
            errors.append(error)

    cell = threading.Thread(target=loop)
    cell.start()
    (container,) = containers_of()
    runner = sandbox._engine.client().api.inspect_container(container)["State"]["Pid"]
    assert wait_until(lambda: len(descendants(runner)) == 2), "while a cell runs there is a checkpoint too"
    engine.end(number)
    cell.join(120)
    assert not cell.is_alive()
    (error,) = errors
    assert isinstance(error, InfrastructureError)
    assert not isinstance(error, SandboxUnavailableError)
    with pytest.raises(SandboxUnavailableError, match="No engine answers at"):
        sandbox.open(limits=GENEROUS)
    session.close()  # has nobody to talk to

    engine.start()
    again = sandbox.open(limits=GENEROUS)  # by the same object, which has to find the engine again
    assert again.run("1 + 1").output == "2\n"
    again.close()
    client = sandbox._engine.client()
    assert wait_until(lambda: client.api.containers(all=True) == [])  # the new engine clears away what the old one ran


def test_a_trainer_killed_before_the_start_leaves_a_container_that_the_next_one_removes(engine: OwnEngine) -> None:
    session = DockerSandbox().open(limits=GENEROUS)
    owner = kill_trainer(CREATES_ONLY, IMAGE)
    assert [found["State"] for found in containers_of(owner).values()] == ["created"]
    DockerSandbox().open(limits=GENEROUS).close()  # what every trainer begins with
    assert not containers_of(owner)
    assert session.run("1 + 1").output == "2\n"  # that of a live owner stays
    session.close()


def test_a_sweep_counts_what_it_removes(engine: OwnEngine) -> None:
    session = DockerSandbox().open(limits=GENEROUS)
    kill_trainer(CREATES_ONLY, IMAGE)
    assert [Engine().remove_leftovers() for _ in range(2)] == [1, 0]
    session.close()
