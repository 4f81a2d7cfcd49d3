"""A run that is killed and resumed ends with the same bits as one that is not: the real command, the real policy."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "updates=6",
    "checkpoint_every=2",
    "evaluation.tasks=10",
    "rollout.tasks_per_update=2",
    "keep_trees_every=1",
    "threads=1",
)


KILLED = """
import os, signal
from agentrl.cli.main import main
from agentrl.runs import RunFolder

log = RunFolder.log

def log_and_die(self, update, metrics):
    log(self, update, metrics)
    if update == 3:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.log = log_and_die
main()
"""


def command(*arguments: str, program: Sequence[str] = ("-m", "agentrl.cli")) -> list[str]:
    return [sys.executable, *program, "train", *arguments]


def start(run: Path, **options: Any) -> list[str]:
    return command(str(ROOT / "examples" / "quickstart.yaml"), *SETTINGS, f"run={run}", **options)


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read]


def last(run: Path) -> Path:
    return run / "checkpoints" / "update-000006"


def test_kill_minus_9_and_resume(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(start(whole), check=True, capture_output=True)

    process = subprocess.run(start(killed, program=("-c", KILLED)), capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert rows(killed)[-1]["update"] == 3
    assert not last(killed).exists()
    subprocess.run(command("--resume", str(killed)), check=True, capture_output=True)

    ours, theirs = (load_file(last(run) / "model.safetensors") for run in (whole, killed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, other = (torch.load(last(run) / "trainer.pt", weights_only=True) for run in (whole, killed))
    for index, moments in one["state"]["learner"]["optimizer"]["adamw"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other["state"]["learner"]["optimizer"]["adamw"]["state"][index][name])
    assert rows(whole) == rows(killed)
    trees = [(run / "trees.jsonl").read_text() for run in (whole, killed)]
    assert trees[0] == trees[1]
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["update-000004", "update-000006"]
    assert list((killed / "tensorboard").glob("events.*"))

    again = subprocess.run(command("--resume", str(killed)), capture_output=True, text=True)
    assert again.returncode == 2
    assert "is finished: all 6 updates are done. Nothing was trained." in again.stderr
