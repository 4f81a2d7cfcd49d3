"""An engine that is there and says nothing, without one: a socket that nobody reads from."""

import os
import socket
from pathlib import Path

import pytest

from agentrl.sandbox.docker import link as docker_link
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.link import DockerLink

docker = pytest.importorskip("docker")


def link_to(address: str) -> DockerLink:
    engine = Engine()
    engine._clients = {os.getpid(): docker.DockerClient(base_url=address, version="1.41")}
    return DockerLink(engine, "container", socket.socket(), lambda _: {})


def test_an_engine_that_does_not_answer_is_not_reachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(docker_link, "_PING_S", 0.2)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        link = link_to(f"unix://{path}")
        assert not link.is_reachable()
        link.abandon()


def test_an_engine_that_is_gone_is_not_reachable(tmp_path: Path) -> None:
    link = link_to(f"unix://{tmp_path}/absent")
    assert not link.is_reachable()
    link.abandon()
