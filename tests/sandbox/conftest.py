from collections.abc import Iterator

import pytest
from session_checks import GENEROUS, OpenSession

from agentrl.sandbox import Limits, UnsafeSubprocess
from agentrl.sandbox.unsafe_subprocess import SubprocessSession


@pytest.fixture
def open_session() -> Iterator[OpenSession]:
    """Opens sessions that are closed at the end of the test."""
    sessions: list[SubprocessSession] = []

    def start(limits: Limits = GENEROUS, files: dict[str, bytes] | None = None) -> SubprocessSession:
        sessions.append(UnsafeSubprocess().open(limits=limits, files=files))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def session(open_session: OpenSession) -> SubprocessSession:
    return open_session()
