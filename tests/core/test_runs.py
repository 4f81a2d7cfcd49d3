"""Run folders: what a start writes, what a kill may damage, and what resuming repairs."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentrl
from agentrl.config import Config, load_config
from agentrl.errors import CheckpointError
from agentrl.provenance import describe_start, package_versions
from agentrl.runs import RunFolder, RunStatus, read_metrics
from agentrl.trajectory import Leaf, StopReason, Tree, read_trees


class Settings(Config):
    seed: int = 3
    name: str = "first"


def create(path: Path) -> RunFolder:
    return RunFolder.create(path, Settings(), seed=3, command="agentrl train first.yaml")


def tree(task_id: str) -> Tree:
    grown = Tree(task_id, metadata={"level": 1})
    grown.add(None, "prompt", 0, [1, 2])
    grown.leaves.append(Leaf(0, StopReason.ANSWERED, 1.0, True))
    return grown


def test_create_writes_settings_manifest_and_status(tmp_path: Path) -> None:
    with create(tmp_path / "runs" / "first") as run:
        assert run.status is RunStatus.RUNNING
        assert load_config(Settings, run.config_path) == Settings()
        manifest = run.manifest
    assert (manifest["seed"], manifest["command"]) == (3, "agentrl train first.yaml")
    assert manifest["agentrl"] == agentrl.__version__
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["resumed"] == []
    assert RunFolder.open(run.path).status is RunStatus.FINISHED


def test_rows_and_trees_come_back(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.log(0, {"held_out/success": 0.5, "note": "before"})
        run.log(1, {"reward": 1.0, "kl": math.nan, "tokens": 7, "ratio": math.inf})
        run.save_trees(1, [tree("a"), tree("b")])
        run.save_trees(2, [tree("c")])
    assert read_metrics(run.metrics_path) == [
        {"update": 0, "held_out/success": 0.5, "note": "before"},
        {"update": 1, "reward": 1.0, "kl": None, "tokens": 7, "ratio": None},
    ]
    trees = list(read_trees(run.trees_path))
    assert [(t.task_id, t.metadata) for t in trees] == [
        ("a", {"level": 1, "update": 1}),
        ("b", {"level": 1, "update": 1}),
        ("c", {"level": 1, "update": 2}),
    ]


def test_the_status_says_how_it_ended(tmp_path: Path) -> None:
    for name, error, status in (
        ("failed", ZeroDivisionError("division"), RunStatus.FAILED),
        ("interrupted", KeyboardInterrupt(), RunStatus.INTERRUPTED),
    ):
        with pytest.raises(type(error)), create(tmp_path / name):
            raise error
        assert RunFolder.open(tmp_path / name).status is status
    assert json.loads((tmp_path / "failed" / "status.json").read_text())["detail"] == "ZeroDivisionError: division"


# Resuming


def resumed(path: Path, update: int) -> RunFolder:
    return RunFolder.resume(path, update=update, command="agentrl train --resume")


def test_resuming_removes_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for update in range(5):
            run.log(update, {"reward": update})
            run.save_trees(update, [tree(f"t{update}")])
    with resumed(tmp_path / "run", 2) as run:
        assert run.status is RunStatus.RUNNING
        run.log(3, {"reward": 33})
    assert [row["reward"] for row in read_metrics(run.metrics_path)] == [0, 1, 2, 33]
    assert [t.task_id for t in read_trees(run.trees_path)] == ["t0", "t1", "t2"]
    assert [(entry["update"], entry["command"]) for entry in run.manifest["resumed"]] == [(2, "agentrl train --resume")]
    assert run.manifest["command"] == "agentrl train first.yaml"


@pytest.mark.parametrize("cut", range(1, len('{"update": 2, "reward": 2.5}\n') + 1))
def test_a_last_line_cut_anywhere_is_repaired(tmp_path: Path, cut: int) -> None:
    with create(tmp_path / "run") as run:
        run.log(1, {"reward": 1.5})
        run.log(2, {"reward": 2.5})
    whole = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(whole[:-cut])
    rest = [] if cut > 1 else [{"update": 2, "reward": 2.5}]  # only the line break is missing
    assert read_metrics(run.metrics_path) == [{"update": 1, "reward": 1.5}, *rest]
    with resumed(tmp_path / "run", 1) as run:
        run.log(2, {"reward": 2.5})
    assert run.metrics_path.read_bytes() == whole


def test_a_missing_last_line_break_is_added(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.log(1, {"reward": 1.5})
    run.metrics_path.write_text('{"update": 1}')
    resumed(tmp_path / "run", 1).close()
    assert run.metrics_path.read_text() == '{"update": 1}\n'


def test_resuming_settles_checkpoints(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        (run.checkpoints_path / ".last.partial").mkdir(parents=True)
    resumed(tmp_path / "run", 0).close()
    assert list(run.checkpoints_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"update": 1}\nnonsense\n{"update": 2}\n', "line 2 is damaged"),
        ("metrics.jsonl", '{"update": 1}\n7\n', "line 2 is damaged"),
        ("metrics.jsonl", '{"reward": 1}\n', "does not say which update"),
        ("trees.jsonl", '{"metadata": {}}\n', "does not say which update"),
        ("manifest.json", "{", "Cannot read .*manifest.json"),
    ],
)
def test_other_damage_is_named_and_nothing_is_lost(tmp_path: Path, name: str, text: str, message: str) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path / "run", 5)
    assert (tmp_path / "run" / name).read_text() == text


def test_a_damaged_status(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "status.json").write_text('{"status": "sleeping"}')
    with pytest.raises(CheckpointError, match=r"status\.json is damaged"):
        _ = RunFolder.open(tmp_path / "run").status


CHILD = """
import sys
from pathlib import Path
from agentrl.config import Config
from agentrl.runs import RunFolder
run = RunFolder.create(Path(sys.argv[1]), Config(), seed=0, command="x")
for update in range(10**9):
    run.log(update, {"text": "x" * 5000})
    if update == 20:
        print("ready", flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_two_writers_are_refused_and_kill_9_frees_the_run(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    with pytest.raises(CheckpointError, match="Another process is writing"):
        resumed(tmp_path / "run", 10)
    assert RunFolder.open(tmp_path / "run").status is RunStatus.RUNNING  # reading is free
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) >= 20
    with resumed(tmp_path / "run", 10) as run:
        assert [row["update"] for row in read_metrics(run.metrics_path)] == list(range(11))


# Refusals


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    before = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(
        CheckpointError, match=r"holds a run already\. Continue it with --resume, or choose another name"
    ):
        create(tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").read_text() == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="is not empty; choose another name"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CheckpointError, match=r"Cannot write .*thesis\.tex"):
        create(tmp_path / "thesis.tex")


def test_only_run_folders_open(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder: it lacks config\.yaml"):
        RunFolder.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not exist\. Expected a folder that `agentrl train` has written"):
        RunFolder.open(tmp_path / "nowhere")


def test_a_full_disk_at_the_start_leaves_no_half_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    partial = tmp_path / "run" / ".manifest.json.partial"

    class FullDisk(Settings):
        def model_dump(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]
            partial.symlink_to("/dev/full")  # the disk fills up after the settings were dumped
            return super().model_dump(**options)

    with pytest.raises(CheckpointError, match=r"No space left on the disk .*manifest\.json"):
        RunFolder.create(tmp_path / "run", FullDisk(), seed=0, command="x")
    assert list((tmp_path / "run").iterdir()) == []
    create(tmp_path / "run").close()


def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.metrics_path.symlink_to("/dev/full")
    run.trees_path.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left .*metrics\.jsonl"):
        run.log(1, {"reward": 1.0})
    with pytest.raises(CheckpointError, match=r"No space left .*trees\.jsonl"):
        run.save_trees(1, [tree("a")])
    run.close()


# Provenance


def test_versions_of_what_is_installed() -> None:
    from importlib import metadata

    versions = package_versions()
    assert versions["numpy"] == metadata.version("numpy")
    assert versions["torch"] == metadata.version("torch")
    assert "pytest" not in versions  # installed, but agentrl does not declare it


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe_start("x")["git"]["working_directory"] is None
    git(tmp_path, "init")
    (tmp_path / "env.py").write_text("1")
    git(tmp_path, "add", "env.py")
    git(tmp_path, "commit", "-m", "first")
    commit = describe_start("x")["git"]["working_directory"]
    assert len(commit) == 40
    (tmp_path / "env.py").write_text("2")
    assert describe_start("x")["git"]["working_directory"] == f"{commit} (modified)"


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert describe_start("x")["git"] == {"agentrl": None, "working_directory": None}
