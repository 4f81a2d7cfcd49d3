"""The frame of the command line: one line per error, exit statuses, and nothing heavy before it is needed."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agentrl import __version__
from agentrl.cli.main import app
from agentrl.errors import ConfigError, MissingExtraError, UnknownNameError

RUNNER = CliRunner()


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `agentrl envs` raise an error."""

    def fail(error: BaseException) -> None:
        monkeypatch.setattr("agentrl.cli.lists.list_environments", raising(error))

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("lr must be positive, got -1."), "error: lr must be positive, got -1."),
        (UnknownNameError("Unknown tool 'x'."), "error: Unknown tool 'x'."),
        (MissingExtraError("peft", "LoRA"), "error: LoRA needs an extra that is not installed: pip install"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jsonl"), "error: a.jsonl: No such file or"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (ConfigError("first\nsecond"), "error: first\nerror: second\n"),
        (ConfigError(), "error: ConfigError\n"),
    ],
)
def test_an_error_is_a_line_on_stderr_and_status_2(
    failing: Callable[[BaseException], None], error: Exception, line: str
) -> None:
    failing(error)
    result = RUNNER.invoke(app, ["envs"])
    assert result.exit_code == 2
    assert result.stderr.startswith(line)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--debug", "envs"], ["envs", "--debug"]])
def test_debug_anywhere_lets_the_traceback_through(
    failing: Callable[[BaseException], None], arguments: list[str]
) -> None:
    failing(ConfigError("wrong"))
    result = RUNNER.invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert result.exit_code == 1


def test_a_bug_keeps_its_traceback(failing: Callable[[BaseException], None]) -> None:
    failing(ZeroDivisionError())
    assert isinstance(RUNNER.invoke(app, ["envs"]).exception, ZeroDivisionError)


def test_interrupted(failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    result = RUNNER.invoke(app, ["envs"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_version_and_unknown_commands() -> None:
    assert RUNNER.invoke(app, ["--version"]).stdout == f"agentrl {__version__}\n"
    result = RUNNER.invoke(app, ["enws"])
    assert result.exit_code == 2
    assert "Did you mean 'envs'?" in result.stderr


def test_every_command_has_help() -> None:
    commands = typer.main.get_command(app)
    for name in commands.commands:  # type: ignore[attr-defined]
        result = RUNNER.invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert "Usage" in result.stdout


# As a program


def agentrl(*arguments: str, cwd: Path | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, **options)  # type: ignore[call-overload,no-any-return]


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'transformers', 'gymnasium', 'numpy', 'pydantic', 'matplotlib'}\n"
        "atexit.register(lambda: print(sorted(heavy & {*sys.modules}), file=sys.stderr))\n"
        "from agentrl.cli.main import main\n"
        "sys.argv = ['agentrl', '--help']\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert "algorithms" in result.stdout
    assert result.stderr == "[]\n"


def test_a_real_error_of_a_real_program(tmp_path: Path) -> None:
    result = agentrl("show", "nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "error: runs/nowhere does not exist. Expected a folder that `agentrl train` has written.\n"
    )
    assert "CheckpointError" in agentrl("show", "nowhere", "--debug", cwd=tmp_path).stderr


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-u", "-m", "agentrl.cli", "tools"]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert result.returncode == 1
    assert result.stderr == ""
