"""The command line in this process, in an empty folder, with a model small enough to train in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agentrl.cli.main import app

CONFIG = """\
env: {id: "parity_env:Parity-v0"}
recipe: grpo
updates: 4
model: {name: MODEL, device: cpu}
rollout: {tasks_per_update: 2, max_turn_tokens: 6, max_episode_tokens: 600}
group: {size: 4}
optimizer: {learning_rate: 1.0e-3}
evaluation: {tasks: 12}
checkpoint_every: 1
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any, tiny_llama: Any) -> Path:
    """A model folder: a random Llama over bytes."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def agentrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in an empty folder, without colors and without folding lines."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "400"})

    def run(*arguments: Any, stdin: str | None = None) -> Result:
        result = runner.invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    """A config file in the folder that `agentrl` runs in."""
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.replace("MODEL", str(tiny_model)))
    return path.relative_to(tmp_path)
