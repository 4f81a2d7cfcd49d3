"""`agentrl show` on real run folders."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.cli.show import load_decoder, pick_tree
from agentrl.cli.tree_view import tree_lines
from agentrl.config import Config
from agentrl.errors import CheckpointError, ConfigError, DataError
from agentrl.files import atomic_directory
from agentrl.runs import RunFolder
from agentrl.trainers.settings import EnvSettings, ModelSettings, TrainSettings
from agentrl.trajectory import Leaf, StopReason, Tree


def tree(task_id: str, tokenizer: PreTrainedTokenizerFast) -> Tree:
    grown = Tree(task_id)
    grown.add(None, "prompt", 0, tokenizer.encode("<|im_start|>user\n6*7?<|im_end|>\n"))
    answer = tokenizer.encode("42<|im_end|>")
    grown.add(0, "assistant", 0, answer, entropies=[0.7] * len(answer))
    grown.leaves.append(Leaf(1, StopReason.ANSWERED, 1.0, True, num_turns=1))
    return grown


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> RunFolder:
    """A finished run with three trees and two checkpoints, the older one with an unusable tokenizer."""
    with RunFolder.create(tmp_path / "runs" / "toy", Config(), seed=0, command="x") as run:
        for update, task_id in enumerate(["first", "second", "third"]):
            run.save_trees(update, [tree(task_id, byte_tokenizer)])
        with atomic_directory(run.checkpoints_path / "update-000001") as folder:
            (folder / "tokenizer.json").write_text("{}")
        with atomic_directory(run.checkpoints_path / "update-000002") as folder:
            byte_tokenizer.save_pretrained(folder)
    return run


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_by_path_and_by_name(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent.parent)
    assert shown("toy") == shown(str(run.path)) == shown("runs/toy")


def test_the_text_comes_from_the_latest_checkpoint(run: RunFolder) -> None:
    lines = shown(str(run.path)).splitlines()
    # 1 control token + "user\n6*7?" (9 bytes) + 1 control token + 1 line break = 12; "42" and the end = 3
    assert lines[0].startswith(
        "tree 1 of 3: task first, update 0; 1 trajectories, 1 successful; 15 unique tokens, 15 along"
    )
    assert lines[1:] == [
        "[0] prompt: 12 given",
        "| <|im_start|>user",
        "| 6*7?<|im_end|>",
        "| ",
        '[1] assistant, turn 0: 3 sampled, entropy mean 0.70, max 0.70 at "4"',
        "> 42<|im_end|>",
        "= success, reward 1.00, answered, 1 turn, no tool call",
    ]


def test_episodes_are_named_as_the_journal_names_them(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    grown = tree("first", byte_tokenizer)
    grown.leaves[0].episode = "4.0.1"
    grown.leaves.append(Leaf(1, StopReason.INVALID, 0.0, False, error="gone", episode="4.0.2"))
    decode = byte_tokenizer.decode
    ends = [line.plain for line in tree_lines(grown, decode) if line.plain.startswith("=")]
    assert ends == [
        "= success, reward 1.00, answered, 1 turn, no tool call, episode 4.0.1",
        "= invalid, not counted: gone, episode 4.0.2",
    ]


def test_choosing_a_tree(run: RunFolder) -> None:
    assert shown(str(run.path), "--tree", "2").startswith("tree 2 of 3: task second")
    assert shown(str(run.path), "--last").startswith("tree 3 of 3: task third")
    with pytest.raises(ConfigError, match="has 3 stored trees; --tree must be 1 to 3, got 4"):
        pick_tree(run.trees_path, 4)


def test_a_row_that_is_being_written_does_not_count(run: RunFolder) -> None:
    with run.trees_path.open("a") as file:
        file.write('{"task_id": "half')
    assert pick_tree(run.trees_path, None)[0].task_id == "third"


def test_damaged_and_absent_trees(run: RunFolder) -> None:
    run.trees_path.write_text('{"task_id": 1}\n')
    with pytest.raises(DataError, match=r"trees\.jsonl, row 1 is not a trajectory tree"):
        pick_tree(run.trees_path, None)
    run.trees_path.unlink()
    with pytest.raises(CheckpointError, match="toy has no stored trajectories"):
        pick_tree(run.trees_path, None)


def test_before_the_first_checkpoint_the_model_of_the_config_speaks(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    byte_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    settings = TrainSettings(env=EnvSettings(id="x"), model=ModelSettings(name=str(tmp_path / "model")))
    with RunFolder.create(tmp_path / "run", settings, seed=0, command="x") as run:
        decode = load_decoder(run)
    assert decode(byte_tokenizer.encode("a b<|im_end|>")) == "a b<|im_end|>"


def test_colors_only_in_a_terminal(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(str(run.path))
    monkeypatch.setenv("FORCE_COLOR", "1")
    colored = shown(str(run.path))
    assert "\x1b[" not in plain
    assert "\x1b[1;33m4" in colored  # entropy 0.7: bold yellow
    assert "entropy from 0.5 nats" in colored
