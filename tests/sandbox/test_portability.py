"""What holds on systems without /proc and without adoption of orphans, simulated by a runner that does without."""

import json

import pytest
from session_checks import OpenSession

from agentrl.sandbox import Limits, launch
from agentrl.sandbox.session import RunnerSession


@pytest.fixture
def session(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> RunnerSession:
    code = launch.runner_code()
    modules = json.loads(code[4:])
    text = modules["agentrl.sandbox.runner.process_tree"]
    assert "/proc/" in text
    assert "_PR_SET_CHILD_SUBREAPER, int(adopts)" in text
    modules["agentrl.sandbox.runner.process_tree"] = text.replace("/proc/", "/no-proc/").replace(
        "_PR_SET_CHILD_SUBREAPER, int(adopts)", "_PR_SET_CHILD_SUBREAPER, 0"
    )
    copying = modules["agentrl.sandbox.runner.cloning"]
    assert "/proc/" in copying
    modules["agentrl.sandbox.runner.cloning"] = copying.replace("/proc/", "/no-proc/")
    body = json.dumps(modules).encode()
    monkeypatch.setattr("agentrl.sandbox.home.runner_code", lambda: len(body).to_bytes(4, "big") + body)
    return open_session(Limits(cpu_s=0.5, wall_s=30))


def test_names_and_results_are_the_same(session: RunnerSession) -> None:
    assert session.run("x = 20; x + 1").output == "21\n"
    assert session.run("x / 0").status == "error"
    assert session.run("x").output == "20\n"


def test_a_cell_that_dies_is_rolled_back(session: RunnerSession) -> None:
    session.run("x = 1")
    first = session.run("x = 2\nimport os; os._exit(3)")
    assert (first.status, first.exit_code, first.state) == ("killed", 3, "rolled_back")
    assert session.run("x").output == "1\n"
    second = session.run("x = 2\nimport os; os._exit(3)")  # the interpreter is now nobody's child: no exit status
    assert (second.status, second.exit_code, second.state) == ("killed", None, "rolled_back")
    assert second.output == "killed: the interpreter ended; names from before this cell are kept\n"
    assert session.run("x").output == "1\n"


def test_the_kernel_keeps_the_cpu_limit(session: RunnerSession) -> None:
    session.run("x = 1")
    result = session.run("while True: pass")
    assert (result.status, result.reason, result.state) == ("timeout", "cpu", "rolled_back")
    assert session.run("x").output == "1\n"


def test_a_session_forks(session: RunnerSession) -> None:
    session.run("x = [1]")
    fork = session.fork()
    assert fork.run("x.append(2); x").output == "[1, 2]\n"
    assert session.run("x").output == "[1]\n"
    fork.close()
