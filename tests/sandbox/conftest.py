from collections.abc import Iterator

import pytest
from engines import require_docker
from session_checks import GENEROUS, OpenSession

from agentrl.sandbox import Limits, UnsafeSubprocess
from agentrl.sandbox.attacks import surroundings
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.session import RunnerSession


@pytest.fixture
def open_session() -> Iterator[OpenSession]:
    """Opens sessions that are closed at the end of the test."""
    sessions: list[RunnerSession] = []

    def start(limits: Limits = GENEROUS, files: dict[str, bytes] | None = None) -> RunnerSession:
        sessions.append(UnsafeSubprocess().open(limits=limits, files=files))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def session(open_session: OpenSession) -> RunnerSession:
    return open_session()


@pytest.fixture(scope="session")
def docker_sandbox() -> DockerSandbox:
    """Skips where there is no engine."""
    return DockerSandbox(require_docker())


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that an attack leaves are not waited for to go."""
    monkeypatch.setattr(surroundings, "_LEFTOVER_S", 0.0)
