"""The client of a remote sandbox service: what it sends, and what becomes of every kind of answer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from fusion_server import fusion_service
from http_server import hang_up, reply
from search_server import Serve, serving

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.sandbox import Limits, SandboxFileError, SecurityLevel, http_service, open_sandbox
from agentrl.sandbox.http_service import HttpSandbox
from agentrl.sandbox.stateless import StatelessSession

LIMITS = Limits(wall_s=60, memory_mb=100)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fusion_service() as (address, _):
        yield address


@pytest.fixture
def session(url: str) -> StatelessSession:
    return HttpSandbox(url).open(limits=LIMITS, files={"data/a.txt": b"hi"})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    with serving(monkeypatch) as start:
        yield start


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
    expected = {"language": "python", "run_timeout": 60, "memory_limit_MB": 100, "files": {"a": "AQ=="}}
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


def test_output_of_any_size_is_the_programs_doing(session: StatelessSession, monkeypatch: pytest.MonkeyPatch) -> None:
    # A megabyte of NULs is 6 MiB in JSON, more than other services may answer.
    result = session.run("print('\\0' * (1 << 20), end='')")
    assert (result.status, result.output_bytes, result.truncated) == ("ok", 1 << 20, True)
    monkeypatch.setattr(http_service, "_ANSWER_BYTES", 1 << 20)
    result = session.run("print('\\0' * (1 << 20), end='')")
    assert (result.status, result.reason, result.state) == ("killed", "output", "reset")
    assert result.output == "killed: the output was too large\n"


def test_an_answer_has_room_for_the_output_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "_ANSWER_BYTES", 10_000)
    limits = Limits(output_bytes=100_000)
    with fusion_service() as (address, _):  # 200,000 bytes are head and tail, 1,200,000 in JSON
        result = HttpSandbox(address).open(limits=limits).run("print('\\0' * 199_999)")
    assert (result.status, result.output_bytes) == ("ok", 599_998)  # a NUL is shown as U+FFFD: 3 * 199,999 + 1


def test_code_that_is_too_long_is_not_sent() -> None:
    with fusion_service() as (address, requests):
        result = HttpSandbox(address).open(limits=Limits(code_bytes=1000)).run("#" + "\u00e4" * 500)
    assert requests == []
    assert (result.status, result.state) == ("error", "reset")
    assert result.output == "The code has 1,001 bytes; at most 1,000 are accepted.\n"


@pytest.mark.parametrize("status", [200, 503, 500])
@pytest.mark.parametrize(("level", "times"), [(SecurityLevel.NONE, 1), (SecurityLevel.CONTAINER, 2)])
def test_without_isolation_no_program_is_sent_twice(
    serve: Serve, status: int, level: SecurityLevel, times: int
) -> None:
    done = reply({"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "done"}})
    server = serve(hang_up if status == 200 else reply(b"", status), done)
    session = HttpSandbox(server.url, security_level=level).open(limits=LIMITS)
    if times == 2:
        assert session.run("order()").output == "done"
    else:
        with pytest.raises(InfrastructureError, match=r"\(tried once\)"):
            session.run("order()")
    assert len(server.asked) == times


def test_a_request_that_is_too_large_is_the_programs_doing(serve: Serve) -> None:
    server = serve(reply(b"too large", 413))
    result = HttpSandbox(server.url).open(limits=LIMITS).run("1")
    assert (result.status, result.reason, result.state) == ("killed", "request", "reset")
    assert "larger than the sandbox service accepts" in result.output


def test_the_catalog_knows_it_and_refuses_what_it_cannot(url: str) -> None:
    with contextlib.closing(open_sandbox("http", url=url).open(limits=LIMITS)) as session:
        assert session.run("6 * 7").output == "42\n"
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("1")
    with pytest.raises(ConfigError, match="leave out ready and share"):
        open_sandbox("http", url=url, ready=1)
    with pytest.raises(ConfigError, match="needs the option 'url'"):
        open_sandbox("http")
    with pytest.raises(ConfigError, match=r"has no option 'api_kez'. Did you mean 'api_key'\?"):
        open_sandbox("http", url=url, api_kez="x")
    with pytest.raises(ConfigError, match=r"'bubblewrap' has no option 'redy'. Did you mean 'ready'\?"):
        open_sandbox("bubblewrap", redy=4)
