"""How often a server is asked that is not there; the rest is tested through its two users, retriever and endpoint."""

import socket
import time

import pytest

from agentrl import json_service
from agentrl.errors import ConfigError, InfrastructureError
from agentrl.json_service import JsonService, Patience


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/x"


def test_a_server_that_takes_no_connections_is_given_up_before_the_deadline(
    closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.001)
    service = JsonService(closed_url, what="oracle", patience=Patience(deadline_s=3600.0, max_connects=5))
    for attempts, times in ((None, "5 times"), (2, "2 times"), (1, "once")):
        with pytest.raises(InfrastructureError, match=rf"^The oracle {closed_url} failed: Connect.* \(tried {times}\)"):
            service.post({}, max_connects=attempts)


def test_pauses_double_up_to_a_limit(closed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(InfrastructureError):
        JsonService(closed_url, patience=Patience(deadline_s=3600.0)).post({})
    # 0.25 s, doubled up to 10 s, each times a number between 0.5 and 1.5; the eighth attempt is the last.
    assert len(pauses) == 7
    for pause, middle in zip(pauses, [0.25, 0.5, 1, 2, 4, 8, 10], strict=True):
        assert 0.5 * middle <= pause <= 1.5 * middle


@pytest.mark.parametrize("changes", [{"connect_s": 0.0}, {"read_s": -1.0}, {"deadline_s": float("nan")}])
def test_a_senseless_time_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} must be positive and finite"):
        Patience(**changes)  # type: ignore[arg-type]
