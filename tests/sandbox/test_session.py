"""A session behaves like a notebook: names and files stay, output comes in order, errors are readable."""

import json
import os
import time

import pytest
from session_checks import OpenSession, folder_of

from agentrl.errors import ConfigError, ForkError, InfrastructureError
from agentrl.sandbox import Limits, SecurityLevel, UnsafeSubprocess, open_sandbox
from agentrl.sandbox.session import RunnerSession


def test_names_imports_and_functions_live_from_cell_to_cell(session: RunnerSession) -> None:
    first = session.run("import math\ndef area(r):\n    return math.pi * r ** 2\nx = 2")
    assert (first.status, first.output, first.state) == ("ok", "", "kept")
    assert session.run("round(area(x), 3)").output == "12.566\n"  # 4 pi = 12.56637...


def test_output_comes_in_the_order_it_was_written(session: RunnerSession) -> None:
    code = """
import subprocess, sys
print("out 1")
print("err 1", file=sys.stderr)
subprocess.run(["echo", "child"])
print("no line end, ", end="")
print("err 2", file=sys.stderr)
print("out 2")
"value"
"""
    expected = ["out 1", "err 1", "child", "no line end, err 2", "out 2", "'value'"]
    assert session.run(code).output.splitlines() == expected


def test_a_value_of_none_is_not_shown(session: RunnerSession) -> None:
    assert session.run("None").output == ""
    assert session.run("[None]").output == "[None]\n"


def test_an_error_is_reported_with_the_cells_lines_and_keeps_what_was_done(session: RunnerSession) -> None:
    result = session.run("y = 5\ny / 0")
    assert (result.status, result.state, result.reason) == ("error", "kept", None)
    assert result.output == (
        'Traceback (most recent call last):\n  File "<cell 1>", line 2, in <module>\n    y / 0\n    ~~^~~\n'
        "ZeroDivisionError: division by zero\n"
    )
    assert session.run("y").output == "5\n"


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "output"),
    [
        ("import sys; sys.exit()", "ok", 0, ""),
        ("import sys; sys.exit(0)", "ok", 0, ""),
        ("import sys; print('bye'); sys.exit(3)", "error", 3, "bye\nexit code 3\n"),
        ("import sys; sys.exit('no data')", "error", 1, "no data\nexit code 1\n"),
        ("raise KeyboardInterrupt", "error", None, None),
    ],
)
def test_exits_end_the_cell_and_not_the_session(
    session: RunnerSession, code: str, status: str, exit_code: int | None, output: str | None
) -> None:
    result = session.run(code)
    assert (result.status, result.exit_code, result.state) == (status, exit_code, "kept")
    assert output is None or result.output == output
    assert session.run("1").output == "1\n"


def test_input_is_at_its_end(session: RunnerSession) -> None:
    assert "EOFError" in session.run("input('name? ')").output
    assert session.run("import sys; sys.stdin.read()").output == "''\n"


def test_warnings_are_not_errors(session: RunnerSession) -> None:
    result = session.run("import warnings; warnings.warn('careful')")
    assert result.status == "ok"
    assert "UserWarning: careful" in result.output


def test_classes_of_a_cell_can_be_pickled_and_made_dataclasses(session: RunnerSession) -> None:
    code = """
from dataclasses import dataclass
import pickle
@dataclass
class Point:
    x: "int"
pickle.loads(pickle.dumps(Point(3)))
"""
    assert session.run(code).output == "Point(x=3)\n"


def test_files_are_given_kept_and_importable(open_session: OpenSession) -> None:
    session = open_session(files={"data/numbers.txt": b"1 2 3", "helper.py": b"def double(x): return 2 * x"})
    assert session.run("open('data/numbers.txt').read()").output == "'1 2 3'\n"
    assert session.run("from helper import double\ndouble(21)").output == "42\n"
    session.run("open('made.txt', 'w').write('here')")
    assert session.run("open('made.txt').read()").output == "'here'\n"


@pytest.mark.parametrize("name", ["/etc/passwd", "../out", "a/../../out", ""])
def test_a_file_outside_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="below its working directory"):
        UnsafeSubprocess().open(limits=Limits(), files={name: b""})


def test_the_environment_is_built_from_nothing(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    session = open_session()
    names = session.run("import os; sorted(os.environ)").output
    assert "SECRET_KEY" not in names
    assert "PYTHONPATH" not in names
    assert session.run("import sys; '/nowhere' in sys.path, sys.modules.get('agentrl')").output == "(False, None)\n"


def test_sets_are_printed_in_the_same_order_in_every_session(open_session: OpenSession) -> None:
    code = "set('the quick brown fox jumps'.split())"
    assert len({open_session().run(code).output for _ in range(3)}) == 1


def test_the_folder_is_private(session: RunnerSession) -> None:
    folder = folder_of(session)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()


def test_sessions_do_not_see_each_others_names(open_session: OpenSession) -> None:
    one, two = open_session(), open_session()
    one.run("import builtins; builtins.canary = canary = 1")
    assert "NameError" in two.run("canary").output
    assert folder_of(one) != folder_of(two)


def test_code_over_the_limit_is_refused_before_it_runs(open_session: OpenSession) -> None:
    session = open_session(Limits(code_bytes=100))
    result = session.run("x = 1 #" + "é" * 60)  # 7 + 2 * 60 bytes
    assert (result.status, result.output) == ("error", "The code has 127 bytes; at most 100 are accepted.\n")
    assert "NameError" in session.run("x").output


@pytest.mark.parametrize("code", ["'\ud800'", "print('\0')", "x = 1\r\nx\r\n", "\ufeff1", "# coding: latin-1\n1"])
def test_odd_code_is_a_result_and_never_a_crash(session: RunnerSession, code: str) -> None:
    assert session.run(code).status in ("ok", "error")
    assert session.run("2").output == "2\n"


def test_a_file_named_like_a_standard_module_does_no_harm(session: RunnerSession) -> None:
    for name in ("random", "tempfile", "threading", "json", "traceback", "socket"):
        session.run(f"open('{name}.py', 'w').write('x = 1')")
        session.run(f"import sys; _ = sys.modules.pop('{name}', None)")
        assert session.run(f"import {name}; {name}.x").output == "1\n"
    assert "ZeroDivisionError: division by zero" in session.run("1 / 0").output
    with pytest.raises(ForkError, match="cannot be examined"):
        session.fork()  # whether a thread is running cannot be found out
    assert session.run("sys.argv").output == "['']\n"


def test_usage_is_measured(session: RunnerSession) -> None:
    session.run("import time")
    busy = session.run("ends = time.process_time() + 0.3\nwhile time.process_time() < ends: pass")
    assert busy.cpu_s >= 0.29  # by another clock of the kernel's, in steps of up to 0.01 s
    assert busy.wall_s >= busy.cpu_s * 0.9  # one thread
    idle = session.run("time.sleep(0.3)")
    assert idle.wall_s - idle.cpu_s >= 0.29, "sleeping counts as wall-clock time and as nothing else"


def test_the_first_cell_ends_when_it_is_done_and_not_at_some_tick(session: RunnerSession) -> None:
    session.run("1")
    begun = time.monotonic()
    for _ in range(50):
        session.run("1")
    assert (time.monotonic() - begun) / 50 < 1.0  # 2 ms on an idle machine


def test_a_closed_session_says_so(session: RunnerSession) -> None:
    session.close()
    session.close()
    with pytest.raises(InfrastructureError, match="closed"):
        session.run("1")
    with pytest.raises(InfrastructureError, match="closed"):
        session.fork()


def test_the_back_end_is_opened_by_name_and_labelled() -> None:
    sandbox = open_sandbox("unsafe_subprocess")
    assert sandbox.name == "unsafe_subprocess"
    assert sandbox.security_level is SecurityLevel.NONE
    with pytest.raises(LookupError, match="Did you mean 'unsafe_subprocess'"):
        open_sandbox("subprocess")


def test_a_runner_that_cannot_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"agentrl.sandbox.runner.main": "raise RuntimeError('no such luck')"}).encode()
    monkeypatch.setattr("agentrl.sandbox.home.runner_code", lambda: len(body).to_bytes(4, "big") + body)
    with pytest.raises(InfrastructureError, match="did not start: RuntimeError: no such luck"):
        UnsafeSubprocess().open(limits=Limits())
