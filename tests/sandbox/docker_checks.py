"""What several test files do with containers."""

import functools
import json
import os
import signal
import struct
from typing import Any

from other_trainers import start_trainer

from agentrl.sandbox import Limits
from agentrl.sandbox.docker.engine import OWNER_LABEL, Engine
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.link import Link
from agentrl.sandbox.owner import owner_id


@functools.cache
def _engine(address: str) -> Engine:
    return Engine()


def start_program(sandbox: DockerSandbox, source: str, limits: Limits | None = None) -> Link:
    """A container that runs a program of the test instead of the runner; it must define `main`."""
    link = sandbox.start(limits or Limits()).link
    body = json.dumps({"agentrl.sandbox.runner.main": source}).encode()
    link.send(struct.pack(">I", len(body)) + body, 60)
    return link


def receive_exactly(link: Link, num_bytes: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < num_bytes and (part := link.receive(num_bytes - len(data), 60)):
        data += part
    return data


def containers_of(owner: str | None = None) -> dict[str, dict[str, Any]]:
    """Id to what the engine says of each container of a process; of this one by default."""
    label = f"{OWNER_LABEL}={owner or owner_id()}"
    client = _engine(os.environ.get("DOCKER_HOST", "")).client()
    return {found["Id"]: found for found in client.api.containers(all=True, filters={"label": label})}


TRAINER = """
import sys, time
from agentrl.sandbox import Limits
from agentrl.sandbox.docker.sandbox import DockerSandbox
from agentrl.sandbox.owner import owner_id
print(owner_id(), flush=True)
"""
LOOPS = """
session = DockerSandbox(sys.argv[1]).open(limits=Limits(cpu_s=1000, wall_s=1000))
session.run("x = 1")
print("open", flush=True)
session.run("while True: pass")
"""
CREATES_ONLY = """
sandbox = DockerSandbox(sys.argv[1])
sandbox._create(sandbox._engine.client(), f"agentrl-test-{time.monotonic_ns()}", Limits())
print("open", flush=True)
time.sleep(1000)
"""


def kill_trainer(code: str, image: str) -> str:
    """Starts a trainer, kills it once its container is there, and returns its owner id."""
    with start_trainer(f"import sys; sys.argv[1:] = [{image!r}]\n{TRAINER}{code}") as trainer:
        try:
            assert trainer.stdout is not None
            owner = trainer.stdout.readline().strip()
            assert trainer.stdout.readline() == "open\n"
            assert len(containers_of(owner)) == 1
        finally:
            trainer.send_signal(signal.SIGKILL)
    return owner
