"""How the engine of a run comes to know the weights."""

from pathlib import Path
from typing import Any

import pytest
from vllm_engines import MemoryEngine

from agentrl.config import load_config
from agentrl.policies.loading import add_lora, load_model
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.in_process import InProcessEngine
from agentrl.policies.vllm.policy import VllmPolicy
from agentrl.trainers import TrainSettings, engines

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


class Rehearsing(MemoryEngine):
    """Takes everything."""

    async def rehearse(self, path: Path) -> None:
        assert path.is_file()


@pytest.mark.parametrize(
    ("where", "overrides", "suffix"),
    [
        ("cuda", [], ".safetensors"),
        ("cpu", [], ".handles"),
        ("cpu", ["policy.shared_folder={tmp}"], ".safetensors"),
        ("cpu", ["model.lora.rank=2"], ""),
    ],
)
def test_weights_are_read_where_they_lie_if_that_is_the_same_machine(
    where: str, overrides: list[str], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kind of device for which it is done in place of CUDA; an adapter is a folder always."""
    engine = Rehearsing("in process")

    async def open_it(*arguments: Any, **options: Any) -> MemoryEngine:
        return engine

    monkeypatch.setattr(InProcessEngine, "open", open_it)
    monkeypatch.setattr(engines, "_SHARED", {where})
    overrides = [override.format(tmp=tmp_path) for override in overrides]
    settings = load_config(TrainSettings, QUICKSTART, ["policy.engine=vllm", *overrides])
    loaded = load_model("quickstart")
    if settings.model.lora is not None:
        loaded = type(loaded)(
            add_lora(loaded.model, rank=2, alpha=2, targets="all-linear"), loaded.tokenizer, loaded.chat
        )
    policy = engines.open_policy(settings, loaded, version=0)
    assert isinstance(policy, VllmPolicy)
    with policy:
        policy.weights_changed()
        [(path, version)] = engine.loads
        assert (path.suffix, version) == (suffix, 1)
    assert not path.parent.exists()


def test_memory_is_read_on_gpus_only() -> None:
    assert sorted(engines._SHARED) == ["cuda"]


def test_an_engine_that_cannot_be_shared_with_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Rehearsing("in process")

    async def open_it(*arguments: Any, **options: Any) -> MemoryEngine:
        return engine

    async def die(self: Rehearsing, path: Path) -> None:
        raise EngineLostError("it died")

    monkeypatch.setattr(InProcessEngine, "open", open_it)
    monkeypatch.setattr(Rehearsing, "rehearse", die)
    monkeypatch.setattr(engines, "_SHARED", {"cpu"})
    settings = load_config(TrainSettings, QUICKSTART, ["policy.engine=vllm"])
    with pytest.raises(EngineLostError, match="it died"):
        engines.open_policy(settings, load_model("quickstart"), version=0)
    assert engine.num_closed == 1
