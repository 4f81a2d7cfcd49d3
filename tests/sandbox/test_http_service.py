"""The client of a remote sandbox service: what it sends, and what becomes of every kind of answer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from fusion_server import fusion_service

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox import Limits, SandboxFileError, open_sandbox
from agentrl.sandbox.http_service import HttpSandbox
from agentrl.sandbox.stateless import StatelessSession

LIMITS = Limits(wall_s=5, memory_mb=100)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fusion_service() as (address, _):
        yield address


@pytest.fixture
def session(url: str) -> StatelessSession:
    return HttpSandbox(url).open(limits=LIMITS, files={"data/a.txt": b"hi"})


@pytest.mark.parametrize(
    ("code", "status", "output", "exit_code"),
    [
        ("x = 20\nx + 1", "ok", "21\n", None),
        ("print('out'); import sys; print('err', file=sys.stderr); print('out')", "ok", "out\nerr\nout\n", None),
        ("open('data/a.txt').read()", "ok", "'hi'\n", None),
        ("import sys; sys.exit(3)", "error", "exit code 3\n", 3),
        ("print('\U0001f600 \\ud800')", "ok", "\U0001f600 \\ud800\n", None),
        ("import sys; sys.exit(0)", "ok", "", None),
        ("x =", "error", None, None),
        ("input()", "error", None, None),
    ],
)
def test_a_program_gives_what_a_cell_gives(
    session: StatelessSession, code: str, status: str, output: str | None, exit_code: int | None
) -> None:
    result = session.run(code)
    assert (result.status, result.exit_code, result.state) == (status, exit_code, "reset")
    if output is not None:
        assert result.output == output


def test_a_traceback_shows_the_cells_lines_alone(session: StatelessSession) -> None:
    output = session.run("def f():\n    return 1 / 0\nf()").output
    assert output == (
        'Traceback (most recent call last):\n  File "<cell 1>", line 3, in <module>\n    f()\n'
        '  File "<cell 1>", line 2, in f\n    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n'
    )


def test_nothing_is_kept(session: StatelessSession) -> None:
    session.run("x = 1; open('new', 'w').close()")
    assert session.run("import os; 'x' in globals(), os.path.exists('new')").output == "(False, False)\n"


def test_a_time_limit_is_the_programs_doing(url: str) -> None:
    result = HttpSandbox(url).open(limits=Limits(wall_s=1)).run("while True: pass")
    assert (result.status, result.reason) == ("timeout", "wall")
    assert result.output == "so far\nkilled: 1 s time limit\n"


def test_a_crash_is_the_programs_doing(session: StatelessSession) -> None:
    result = session.run("import os; os.abort()")
    assert (result.status, result.reason, result.signal) == ("killed", "died", 6)
    assert result.output == "killed: the interpreter died by SIGABRT\n"


def test_output_is_cut(url: str) -> None:
    result = HttpSandbox(url).open(limits=Limits(output_bytes=100)).run("print('x' * 1000)")
    assert (result.output_bytes, result.truncated) == (1001, True)
    assert len(result.output.encode()) <= 100


def test_files_can_be_given_later_and_forks_have_them(session: StatelessSession) -> None:
    session.write("b.bin", b"\0\xff")
    fork = session.fork()
    fork.write("c", b"")
    assert fork.run("open('b.bin', 'rb').read()").output == "b'\\x00\\xff'\n"
    assert (session.list_files(), fork.list_files()) == (["b.bin", "data/a.txt"], ["b.bin", "c", "data/a.txt"])
    assert session.read("b.bin", 10) == b"\0\xff"
    with pytest.raises(SandboxFileError, match="no cell's files are kept"):
        session.read("c", 10)
    with pytest.raises(SandboxFileError, match="2 bytes; at most 1"):
        session.read("b.bin", 1)
    with pytest.raises(ConfigError, match="below its working directory"):
        session.write("../b", b"")


def test_the_request_has_the_services_names() -> None:
    with fusion_service() as (address, requests):
        HttpSandbox(address).open(limits=LIMITS, files={"a": b"\1"}).run("1")
    (request,) = requests
    expected = {"language": "python", "run_timeout": 5, "memory_limit_MB": 100, "files": {"a": "AQ=="}}
    assert {name: request[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": "SandboxError", "message": "no pod left"}, "service failed: 'no pod left'"),
        ({"status": "Success", "run_result": None}, "service failed: 'Success'"),
        ({"detail": "?"}, 'does not speak the protocol of SandboxFusion: an object with "status" was expected'),
        ({"status": "Success", "run_result": {"status": "Running"}}, "got 'Running' with code None"),
    ],
)
def test_a_service_that_fails_is_no_observation(answer: dict[str, Any], message: str) -> None:
    with fusion_service(lambda _: answer) as (address, _), pytest.raises(InfrastructureError, match=message):
        HttpSandbox(address).open(limits=LIMITS).run("1")


def test_a_service_that_is_not_there_is_no_observation(url: str) -> None:
    with pytest.raises(InfrastructureError, match="404"):
        HttpSandbox(f"{url}/elsewhere").open(limits=LIMITS).run("1")


def test_the_catalog_knows_it_and_refuses_what_it_cannot(url: str) -> None:
    with contextlib.closing(open_sandbox("http", url=url).open(limits=LIMITS)) as session:
        assert session.run("6 * 7").output == "42\n"
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("1")
    with pytest.raises(ConfigError, match="leave out ready and share"):
        open_sandbox("http", url=url, ready=1)
    with pytest.raises(ConfigError, match="refuses its options"):
        open_sandbox("http")
