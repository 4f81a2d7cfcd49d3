"""Whole training runs on a real vLLM: in process, ahead of the weights, and on two servers of which one is killed."""

import json
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from process_tree import descendants
from rich.console import Console

from agentrl.config import load_config
from agentrl.policies.loading import model_path
from agentrl.policies.vllm.in_process import InProcessEngine
from agentrl.policies.vllm.launch import LocalServer
from agentrl.policies.vllm.settings import EngineSettings
from agentrl.trainers import TrainSettings, engines, train
from agentrl.trainers.update import Updater

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def run(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows of metrics of a run with the quickstart's settings."""
    small = ["policy.engine=vllm", "evaluation.tasks=100", "evaluation.greedy=false", f"run={folder}"]
    train(load_config(TrainSettings, QUICKSTART, [*small, *overrides]), console=Console(quiet=True))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def updates(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "loss" in row]


def held_out(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["held_out/success"] for row in rows if "held_out/success" in row]


@pytest.mark.vllm
def test_arpo_learns_and_both_sides_agree(tmp_path: Path) -> None:
    rows = run(tmp_path / "run", "updates=10")
    before, after = held_out(rows)
    assert after > before + 0.2
    assert len(updates(rows)) == 10
    for row in updates(rows):
        assert row["mismatch_max"] < 1e-3, "float32 on both sides"
        assert row["mismatch_ess"] > 0.999
        assert row["invalid_episodes"] == 0
    assert sum(row["branches"] for row in updates(rows)) > 0
    assert sum(row["engine_cached_tokens"] for row in updates(rows)) > 0


def note_loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Fills with the names of the files that engines load, and the version."""
    loads: list[tuple[list[str], int]] = []
    load_weights = InProcessEngine.load_weights

    async def noted(self: InProcessEngine, path: Path, version: int) -> None:
        names = [file.name for file in path.iterdir() if file.name != "README.md"] if path.is_dir() else [path.suffix]
        loads.append((sorted(names), version))
        await load_weights(self, path, version)

    monkeypatch.setattr(InProcessEngine, "load_weights", noted)
    return loads


@pytest.mark.vllm
def test_with_lora_only_adapters_are_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = note_loads(monkeypatch)
    lora = ["model.lora.rank=6", "model.lora.alpha=12", "optimizer.learning_rate=5e-3"]
    rows = updates(run(tmp_path / "run", "updates=3", "evaluation.tasks=8", "rollout.tasks_per_update=4", *lora))
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert loads == [(adapter, version) for version in range(4)]
    assert len(rows) == 3
    for row in rows:
        assert row["mismatch_max"] < 1e-3
        assert row["invalid_episodes"] == 0
    assert sum(row["engine_cached_tokens"] for row in rows) > 0


@pytest.mark.vllm
def test_weights_that_are_handed_over_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SHARED", {"cpu"})
    loads = note_loads(monkeypatch)
    small = ["updates=3", "evaluation.tasks=8", "rollout.tasks_per_update=4", "optimizer.learning_rate=1e-3"]
    rows = updates(run(tmp_path / "run", *small))
    assert loads == [([".handles"], version) for version in range(4)]
    assert len(rows) == 3
    assert max(row["mismatch_max"] for row in rows) < 1e-3


@pytest.mark.vllm
def test_sampling_ahead_of_the_weights(tmp_path: Path) -> None:
    rows = updates(run(tmp_path / "run", "updates=6", "policy.max_staleness=1", "evaluation.tasks=8"))
    assert len(rows) == 6
    assert max(row["staleness_max"] for row in rows) == 1.0
    assert all(0.5 < row["mismatch_ess"] <= 1.0 for row in rows)


@pytest.mark.vllm
def test_a_server_that_is_killed_costs_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(model=model_path("quickstart"), context_length=384, max_in_flight=64, num_top=20)
    with ExitStack() as stack:
        servers = [stack.enter_context(LocalServer(settings)) for _ in range(2)]
        update = Updater.update

        def kill_one_later(self: Any, trees: Any, *, number: int, seed: int) -> dict[str, float]:
            if number == 1:  # while the episodes of the next update are sampled
                threading.Timer(1.0, kill, [servers[0]]).start()
            return update(self, trees, number=number, seed=seed)

        monkeypatch.setattr(Updater, "update", kill_one_later)
        urls = ",".join(server.url for server in servers)
        rows = updates(run(tmp_path / "run", "updates=4", f"policy.servers=[{urls}]", "evaluation.tasks=8"))
    assert len(rows) == 4
    assert [row["invalid_episodes"] for row in rows] == [0.0] * 4
    assert [row["episodes"] for row in rows] == [128.0] * 4
    assert sum(row["engine_lost_engines"] for row in rows) >= 1
    assert max(row["mismatch_max"] for row in rows) < 1e-3


def kill(server: LocalServer) -> None:
    for pid in descendants(server.pid):
        with suppress(ProcessLookupError):  # one may end with another
            os.kill(pid, signal.SIGKILL)
