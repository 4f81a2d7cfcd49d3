"""The interpreter tool as an episode uses it, over the real sandbox."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError, DataError, ForkError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.sandbox import (
    ExecResult,
    Limits,
    SandboxFileError,
    SandboxUnavailableError,
    SecurityLevel,
    Session,
    Share,
    UnsafeSubprocess,
)
from agentrl.tools import TOOLS, InterpreterTool, Toolbox, ToolResult, ToolStatus

LIMITS = Limits(cpu_s=60, wall_s=120)


def ask(toolbox: Toolbox, code: str) -> ToolResult:
    return toolbox.call(ToolCall("python", {"code": code}))


class CountingSandbox(UnsafeSubprocess):
    """Remembers the sessions that were opened."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Any:
        self.sessions.append(super().open(limits=limits, files=files))
        return self.sessions[-1]


@pytest.fixture
def sandbox() -> CountingSandbox:
    return CountingSandbox()


@pytest.fixture
def toolbox(sandbox: CountingSandbox) -> Iterator[Toolbox]:
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS)]) as toolbox:
        yield toolbox


def test_names_live_from_call_to_call(toolbox: Toolbox) -> None:
    assert ask(toolbox, "x = [1, 2]").text == "(no output)"
    result = ask(toolbox, "x.append(3); print('sum', sum(x)); x")
    assert (result.text, result.status) == ("sum 6\n[1, 2, 3]", ToolStatus.OK)


def test_an_error_is_a_failed_call_with_the_traceback(toolbox: Toolbox) -> None:
    result = ask(toolbox, "print('before')\n1 / 0")
    assert result.status is ToolStatus.ERROR
    assert result.text == (
        'before\nTraceback (most recent call last):\n  File "<cell 1>", line 2, in <module>\n    1 / 0\n    ~~^~~\n'
        "ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os._exit(3)", "killed: the interpreter exited with code 3; names from before this cell are kept"),
        ("import sys; sys.exit(2)", "exit code 2"),
        ("x =", '  File "<cell 2>", line 1\n    x =\n       ^\nSyntaxError: invalid syntax'),
    ],
)
def test_other_ends_are_failed_calls_too(toolbox: Toolbox, code: str, text: str) -> None:
    ask(toolbox, "kept = 1")
    result = ask(toolbox, code)
    assert (result.text, result.status) == (text, ToolStatus.ERROR)
    assert ask(toolbox, "kept").text == "1"


def test_a_program_over_its_limit_is_told_so(sandbox: CountingSandbox) -> None:
    with Toolbox([InterpreterTool(sandbox, limits=Limits(cpu_s=0.3, wall_s=60))]) as toolbox:
        result = ask(toolbox, "while True: pass")
        assert result.text == "killed: 0.3 s CPU limit; names from before this cell are kept"
        assert result.status is ToolStatus.ERROR


def test_the_sandbox_alone_keeps_time() -> None:
    tool = InterpreterTool(UnsafeSubprocess(), limits=Limits(wall_s=77.0))
    assert tool.deadline_s is tool.open().deadline_s is None
    assert not tool.inline


def test_output_is_cut_once_and_by_the_sandboxes_limit(sandbox: CountingSandbox) -> None:
    with Toolbox([InterpreterTool(sandbox, limits=Limits(output_bytes=200))]) as toolbox:
        result = ask(toolbox, "print('a' * 100_000)")
    assert len(result.text.encode()) <= 200
    assert result.text.count("bytes cut") == 1
    assert not result.truncated


def test_a_session_starts_at_the_first_call_and_ends_with_the_episode(sandbox: CountingSandbox) -> None:
    prototype = InterpreterTool(sandbox, limits=LIMITS)
    with Toolbox([prototype]) as toolbox:
        assert sandbox.sessions == []
        ask(toolbox, "1")
        ask(toolbox, "2")
        assert len(sandbox.sessions) == 1
    with pytest.raises(InfrastructureError, match="closed"):
        sandbox.sessions[0].run("1")


def test_episodes_do_not_see_each_other(sandbox: CountingSandbox) -> None:
    prototype = InterpreterTool(sandbox, limits=LIMITS)
    with Toolbox([prototype]) as one, Toolbox([prototype]) as two:
        ask(one, "x = 1")
        assert "NameError" in ask(two, "x").text


def test_a_fork_is_equal_independent_and_closed_by_its_owner(toolbox: Toolbox, sandbox: CountingSandbox) -> None:
    ask(toolbox, "x = [1]; open('f', 'w').write('a')")
    with toolbox.fork() as fork:
        assert ask(fork, "x.append(2); open('f', 'a').write('b'); x, open('f').read()").text == "([1, 2], 'ab')"
        assert ask(toolbox, "x, open('f').read()").text == "([1], 'a')"
        assert len(sandbox.sessions) == 1, "a fork runs nothing again and opens no session"
    assert ask(toolbox, "x").text == "[1]"


def test_a_fork_before_the_first_call_is_fresh(toolbox: Toolbox) -> None:
    with toolbox.fork() as fork:
        ask(fork, "x = 1")
        assert "NameError" in ask(toolbox, "x").text


def test_a_state_that_cannot_be_copied_says_so(toolbox: Toolbox) -> None:
    ask(toolbox, "import os; ends = os.pipe()")
    with pytest.raises(ForkError, match="a pipe is open"):
        toolbox.fork()


def test_files_are_in_every_session(sandbox: CountingSandbox) -> None:
    prototype = InterpreterTool(sandbox, limits=LIMITS, files={"data.csv": b"1,2"})
    for _ in range(2):
        with Toolbox([prototype]) as toolbox:
            assert ask(toolbox, "open('data.csv').read()").text == "'1,2'"
            ask(toolbox, "open('data.csv', 'w').write('changed')")


def test_a_sandbox_that_fails_ends_the_episode(sandbox: CountingSandbox) -> None:
    class Absent:
        name = "absent"
        security_level = SecurityLevel.CONTAINER
        keeps_state = True

        def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Session:
            raise SandboxUnavailableError("no engine: install one")

    with Toolbox([InterpreterTool(Absent())]) as toolbox, pytest.raises(InfrastructureError, match="no engine"):
        ask(toolbox, "1")
    with Toolbox([InterpreterTool(sandbox)]) as toolbox:
        ask(toolbox, "1")
        sandbox.sessions[-1].close()
        with pytest.raises(InfrastructureError):
            ask(toolbox, "1")


class Walled(CountingSandbox):
    """Stands for a back end that isolates: what a cell did is gone with its sandbox."""

    security_level = SecurityLevel.CONTAINER


def test_a_sandbox_that_fails_is_replaced_once_and_brought_to_the_same_state() -> None:
    sandbox = Walled()
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS, files={"a": b"1"})]) as toolbox:
        ask(toolbox, "x = [open('a').read()]; print('once')")
        ask(toolbox, "1 / 0")
        sandbox.sessions[-1].close()
        assert ask(toolbox, "x.append(2); x").text == "['1', 2]"
        assert len(sandbox.sessions) == 2
        sandbox.sessions[-1].close()
        assert ask(toolbox, "x").text == "['1', 2]"


class Faulty(CountingSandbox):
    """Its sessions run what they are given, and then fail as often as told."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures
        self.ran: list[str] = []

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Any:
        session = super().open(limits=limits, files=files)
        run = session.run

        def run_and_fail(code: str) -> ExecResult:
            result = run(code)
            self.ran.append(code)
            if self.num_failures:
                self.num_failures -= 1
                raise InfrastructureError("hung up")
            return result

        session.run = run_and_fail
        return session


@pytest.mark.parametrize("history", [[], ["x = 1"]])
def test_without_isolation_no_cell_runs_twice(history: list[str]) -> None:
    sandbox = Faulty(num_failures=0)
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS)]) as toolbox:
        for code in history:
            ask(toolbox, code)
        sandbox.num_failures = 1
        for _ in range(2):  # nor does a later call run anything, with the names gone
            with pytest.raises(InfrastructureError):
                ask(toolbox, "order()")
    assert sandbox.ran == [*history, "order()"]
    assert len(sandbox.sessions) == 1


ORDERS = """
import os, signal, time
with open({path!r}, "a") as orders:
    orders.write("ordered ")
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the runner is not always the parent")
@pytest.mark.parametrize("share", ["nothing", "stateless"])
def test_a_program_that_kills_its_runner_is_not_run_again(share: Share, tmp_path: Path) -> None:
    tool = TOOLS["python"](sandbox="unsafe_subprocess", share=share)
    with Toolbox([tool]) as toolbox, pytest.raises(InfrastructureError):
        ask(toolbox, ORDERS.format(path=str(tmp_path / "orders")))
    assert (tmp_path / "orders").read_text() == "ordered "


def test_behind_walls_the_first_cell_is_run_again() -> None:
    class FaultyWalled(Faulty):
        security_level = SecurityLevel.CONTAINER

    sandbox = FaultyWalled(num_failures=1)
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS)]) as toolbox:
        assert ask(toolbox, "6 * 7").text == "42"
    assert sandbox.ran == ["6 * 7"] * 2


def test_a_state_that_does_not_come_out_the_same_ends_the_episode() -> None:
    sandbox = Walled()
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS)]) as toolbox:
        ask(toolbox, "import os; os.urandom(8)")
        sandbox.sessions[-1].close()
        with pytest.raises(InfrastructureError):
            ask(toolbox, "1")


def test_a_sandbox_that_keeps_failing_ends_the_episode() -> None:
    class Failing(Walled):
        def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Any:
            session = super().open(limits=limits, files=files)
            session.close()
            return session

    sandbox = Failing()
    with Toolbox([InterpreterTool(sandbox, limits=LIMITS)]) as toolbox, pytest.raises(InfrastructureError):
        ask(toolbox, "1")
    assert len(sandbox.sessions) == 2


def test_files_go_in_and_come_out(sandbox: CountingSandbox) -> None:
    tool = InterpreterTool(sandbox, limits=LIMITS).open()
    tool.write("task/data.csv", b"1,2")
    tool.call({"code": "_ = open('sum.txt', 'w').write(str(sum(map(int, open('task/data.csv').read().split(',')))))"})
    assert tool.list_files() == ["sum.txt", "task/data.csv"]
    assert tool.read("sum.txt") == b"3"
    with pytest.raises(SandboxFileError, match="no such file"):
        tool.read("other.txt")
    tool.close()


def test_a_link_is_not_followed_out_of_the_sandbox(sandbox: CountingSandbox, tmp_path: Path) -> None:
    (tmp_path / "answer").write_text("42")
    tool = InterpreterTool(sandbox, limits=LIMITS).open()
    tool.call(
        {"code": f"import os; os.symlink({str(tmp_path / 'answer')!r}, 'out'); os.symlink({str(tmp_path)!r}, 'dir')"}
    )
    tool.call({"code": "os.mkfifo('pipe'); os.mkdir('folder')"})
    for path in ("out", "dir/answer", "pipe", "folder", "/etc/passwd", "../answer", ""):
        with pytest.raises(SandboxFileError):
            tool.read(path)
    for path in ("out", "dir/new", "folder", "pipe"):
        with pytest.raises(SandboxFileError):
            tool.write(path, b"overwritten")
    assert (tmp_path / "answer").read_text() == "42"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer"]
    tool.close()


def test_a_large_file_is_refused_before_it_is_read(sandbox: CountingSandbox) -> None:
    tool = InterpreterTool(sandbox, limits=LIMITS).open()
    tool.call({"code": "_ = open('big', 'wb').write(bytes(3_000_000))"})
    with pytest.raises(SandboxFileError, match="3,000,000 bytes; at most 1,000"):
        tool.read("big", 1000)
    assert tool.read("big") == bytes(3_000_000)
    tool.close()


def test_the_model_is_told_when_nothing_is_kept() -> None:
    assert "are kept from call to call" in InterpreterTool(UnsafeSubprocess()).description
    tool = TOOLS["python"](sandbox="unsafe_subprocess", share="stateless")
    assert "a program of its own" in tool.description
    assert tool.call({"code": "6 * 7"}) == "42"


def test_the_catalog_reads_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1")
    tool = TOOLS["python"](sandbox="unsafe_subprocess", files={"data.csv": str(tmp_path / "table.csv")}).open()
    assert tool.call({"code": "open('data.csv').read()"}) == "'1'"
    tool.close()
    with pytest.raises(DataError, match="cannot be read"):
        TOOLS["python"](sandbox="unsafe_subprocess", files={"data.csv": str(tmp_path / "absent")})


def test_a_failure_without_output_still_has_a_text() -> None:
    class Silent:
        def run(self, code: str) -> ExecResult:
            return ExecResult(status="error", output="", output_bytes=0, cpu_s=0.0, wall_s=0.0)

        def fork(self) -> "Silent":
            return self

        def close(self) -> None:
            pass

    class SilentSandbox(UnsafeSubprocess):
        def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Any:
            return Silent()

    with Toolbox([InterpreterTool(SilentSandbox())]) as toolbox:
        assert ask(toolbox, "1").text == "The code failed (error)."


def test_the_catalog_makes_it_only_with_a_named_sandbox() -> None:
    make = TOOLS["python"]
    tool = make(sandbox="unsafe_subprocess", limits={"cpu_s": 2.0, "wall_s": 5.0})
    assert (tool._limits.cpu_s, tool._limits.wall_s) == (2.0, 5.0)
    with pytest.raises(
        ConfigError, match=r"Say which sandbox runs the model's code: sandbox='auto' \| 'docker' \| 'bubblewrap'"
    ):
        make()
    with pytest.raises(LookupError, match="unsafe_subprocess"):
        make(sandbox="subprocess")
    with pytest.raises(ConfigError, match=r"Unknown sandbox limit 'cpus'\. Did you mean 'cpu_s'"):
        make(sandbox="unsafe_subprocess", limits={"cpus": 1})
    with pytest.raises(ConfigError, match="cpu_s must be positive"):
        make(sandbox="unsafe_subprocess", limits={"cpu_s": -1})


@pytest.mark.parametrize("arguments", [{}, {"code": 5}, {"code": "1", "timeout": 1000}])
def test_wrong_arguments_run_nothing(toolbox: Toolbox, sandbox: CountingSandbox, arguments: dict[str, Any]) -> None:
    assert toolbox.call(ToolCall("python", arguments)).status is ToolStatus.INVALID_CALL
    assert sandbox.sessions == []


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [(("bubblewrap",), r"open_sandbox\('bubblewrap'\)"), ((UnsafeSubprocess(), {"cpu_s": 1}), r"Limits\(cpu_s=1\)")],
)
def test_names_and_mappings_are_for_configs_only(arguments: tuple[Any, ...], remedy: str) -> None:
    sandbox, *limits = arguments
    with pytest.raises(ConfigError, match=remedy):
        InterpreterTool(sandbox, limits=limits[0] if limits else None)
