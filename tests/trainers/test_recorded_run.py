"""Whole runs of the preference and data side: from a file, from the oracle, with replay; and resumed."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agentrl.config import load_config
from agentrl.trainers import TrainSettings, train

SETTINGS = (
    "env.id=agentrl/Arithmetic-v0",
    "env.arguments.level=1",
    "updates=2",
    "checkpoint_every=1",
    "threads=1",
    "rollout.tasks_per_update=3",
    "rollout.max_turn_tokens=16",
    "rollout.max_episode_tokens=384",
    "optimizer.learning_rate=1e-4",
    "evaluation.tasks=1",
    "evaluation.greedy=false",
)
PAIRS = [
    {"prompt": f"How much is {n} + 5?", "chosen": f"The answer is {n + 5}.", "rejected": "I do not know."}
    for n in range(6)
]
LABELS = [
    {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": row[side]}], "label": side == "chosen"}
    for row, side in zip(PAIRS, ("chosen", "rejected") * 3, strict=True)
]


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "update-000002" / "model.safetensors")


@pytest.mark.parametrize(
    ("recipe", "examples", "overrides"),
    [
        ("dpo", PAIRS, []),
        ("kto", LABELS, []),
        ("sft", None, []),
        ("orpo", None, ["group.size=4", "extras.replay.groups=2"]),
    ],
    ids=["dpo-file", "kto-file", "sft-oracle", "orpo-replay"],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, recipe: str, examples: list[Any] | None, overrides: list[str]
) -> None:
    given = [*SETTINGS, f"recipe={recipe}", *overrides]
    if examples is not None:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in examples))
        given.append(f"data.path={data}")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    screen = io.StringIO()
    train(load_config(TrainSettings, overrides=[*given, f"run={whole}"]), console=Console(file=screen, width=200))
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "update-000002")
    resumed = load_config(TrainSettings, overrides=[*given, f"run={stopped}"])
    train(resumed, resume=True, console=Console(file=io.StringIO()))

    ours, theirs = weights(whole), weights(stopped)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    first = load_file(stopped / "checkpoints" / "update-000001" / "model.safetensors")
    assert any(not torch.equal(ours[name], first[name]) for name in ours)  # the second update changed something
    assert rows(whole) == rows(stopped)
    updates = [row for row in rows(whole) if "learning_rate" in row]
    assert [row["update"] for row in updates] == [1, 2]
    assert all(row["steps_passed_over"] == 0 for row in updates if "steps_passed_over" in row)
    line = next(line for line in screen.getvalue().splitlines() if line.startswith("update 1/2"))
    assert ("loss" in line) == ("success" not in line)  # where nobody plays, the loss is what there is to see
