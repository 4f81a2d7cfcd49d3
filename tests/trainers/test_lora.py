"""Training an adapter: the base stays as it is, the reference is the base, checkpoints resume and load by path."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentrl.policies.loading import load_model, model_path
from agentrl.trainers import TrainSettings, train
from agentrl.trainers.settings import (
    EnvSettings,
    EvaluationSettings,
    LoraSettings,
    ModelSettings,
    OptimizerSettings,
    RolloutSettings,
)

pytest.importorskip("peft", reason="the extra 'peft' is not installed: pip install 'agentrl-framework[peft]'")


def settings(run: Path, updates: int) -> TrainSettings:
    return TrainSettings(
        env=EnvSettings(id="agentrl/Arithmetic-v0"),
        recipe="grpo",  # its KL needs a reference: the base with the adapter switched off
        updates=updates,
        model=ModelSettings(lora=LoraSettings(rank=4, alpha=8)),
        rollout=RolloutSettings(tasks_per_update=2, max_turn_tokens=48, max_episode_tokens=384),
        evaluation=EvaluationSettings(tasks=4, greedy=False),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        checkpoint_every=1,
        threads=1,
        run=run,
    )


def test_an_adapter_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    result = train(settings(tmp_path / "run", updates=2))
    adapter = load_file(result.checkpoint / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[-2] for name in adapter} == {"lora_A", "lora_B"}
    assert any(bool(weight.any()) for name, weight in adapter.items() if "lora_B" in name)  # lora_B starts at zero
    assert not (result.checkpoint / "model.safetensors").exists()

    base, merged = load_model("quickstart").model, load_model(str(result.checkpoint)).model
    assert all(parameter.requires_grad for parameter in merged.parameters())
    ours, theirs = dict(merged.named_parameters()), dict(base.named_parameters())
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed
    assert all("proj" in name for name in changed)  # "all-linear": norms and embeddings have no adapter
    stored = load_file(Path(model_path("quickstart")) / "model.safetensors")
    assert all(torch.equal(stored[name], theirs[name]) for name in stored)


def test_the_reference_is_the_base_model(tmp_path: Path) -> None:
    """At the first update the adapter is still zero, so policy and reference agree; then they part."""
    train(settings(tmp_path / "run", updates=2))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = [row["kl_reference"] for row in rows if "kl_reference" in row]
    assert distances[0] == pytest.approx(0.0, abs=1e-6)
    assert distances[1] > 1e-5
