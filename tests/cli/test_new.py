"""`agentrl new env`: what it writes works as it is, and nothing is overwritten."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.cli.new import write_environment
from agentrl.errors import ConfigError


def in_folder(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder of its own, as the person who typed the command would."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environ)


def test_the_written_test_passes_and_can_fail(tmp_path: Path) -> None:
    environment, test = write_environment("WordReversal", tmp_path)
    pytest_command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    result = in_folder(tmp_path, *pytest_command)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
    environment.write_text(environment.read_text().replace("return text[::-1]", "return text"))
    result = in_folder(tmp_path, *pytest_command, "-k", "oracle", test.name)
    assert result.returncode == 1
    assert "test_oracle_solves_every_task" in result.stdout


def test_the_environment_is_at_most_15_lines_and_well_kept(tmp_path: Path) -> None:
    environment, test = write_environment("WordReversal", tmp_path)
    assert len([line for line in environment.read_text().splitlines() if line.strip()]) <= 15
    for arguments in (("check", "--isolated", "--select", "E,F,I,B,UP"), ("format", "--isolated", "--check")):
        result = in_folder(tmp_path, "-m", "ruff", *arguments, "--line-length", "120", environment.name, test.name)
        assert result.returncode == 0, result.stdout


def test_an_agent_can_play_it(tmp_path: Path) -> None:
    write_environment("Letters", tmp_path)
    program = (
        "from agentrl import make\n"
        "env = make('letters:Letters-v0', split='test')\n"
        "print(env.reset(options={'task': 0})[0])\n"
        'print(*env.step(\'<tool_call>{"name": "reverse", "arguments": {"text": "1001"}}</tool_call>\')[:4])\n'
        "print(*env.step('1001')[1:4])\n"
    )
    result = in_folder(tmp_path, "-c", program)
    # 1001 is the first odd number, and reads the same backwards
    assert result.stdout.splitlines() == ["Reverse 1001.", "1001 0.0 False False", "1.0 True False"], result.stderr


def test_names_of_files(tmp_path: Path) -> None:
    for name, module in (
        ("WordCount", "word_count"),
        ("HTTPServerLog", "http_server_log"),
        ("Top10Words", "top10_words"),
    ):
        assert [path.name for path in write_environment(name, tmp_path)] == [f"{module}.py", f"test_{module}.py"]


@pytest.mark.parametrize("existing", ["letters.py", "test_letters.py"])
def test_nothing_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match=f"^{existing} exists already"):
        write_environment("Letters", tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "mine")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("letters", "expected a name such as WordCount, got 'letters'"),
        ("Word-Count", "expected a name such as WordCount"),
        ("../Up", "expected a name such as WordCount"),
        ("", "expected a name such as WordCount"),
        ("Class", r"class\.py would hide the Python module"),
        ("Json", r"json\.py would hide the Python module of that name; choose another name than 'Json'"),
        ("Gymnasium", r"gymnasium\.py would hide"),
    ],
)
def test_names_that_do_not_work(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_environment(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new", "env", "Letters"])
    assert (result.exit_code, result.stdout) == (0, "wrote letters.py\nwrote test_letters.py\n")
    result = CliRunner().invoke(app, ["new", "env", "Letters"])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: letters.py exists already; choose another name or move it away.\n",
    )
