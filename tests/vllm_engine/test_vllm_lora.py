"""A LoRA run hands over its adapter alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_engine import LiveEngine, largest_gap, make_order, perturb, questions

from agentrl.errors import PolicyError
from agentrl.policies.loading import LoadedModel, add_lora
from agentrl.policies.vllm.weights import WeightFiles

pytestmark = pytest.mark.vllm

CLOSE = 1e-3


@pytest.fixture(scope="module")
def live() -> Iterator[LiveEngine]:
    with LiveEngine(lora_rank=8) as engine:
        yield engine


@pytest.fixture
def model(loaded: LoadedModel) -> Any:
    torch.manual_seed(0)
    return add_lora(loaded.model, rank=6, alpha=16, targets="all-linear").eval()


def test_every_adapter_is_the_trainers_and_older_ones_go(live: LiveEngine, loaded: LoadedModel, model: Any) -> None:
    prompt = (questions(loaded, 1)[0] * 6)[:134]
    [base] = live.sample(make_order(prompt))
    assert largest_gap(model, prompt, base) < CLOSE  # an adapter begins as no change at all
    numbers: list[int] = []
    for step in range(4):
        perturb(model, seed=step)
        with WeightFiles(model) as files, files.write(live.version + 1) as path:
            assert sorted(file.name for file in path.iterdir() if "README" not in file.name) == [
                "adapter_config.json",
                "adapter_model.safetensors",
            ]
            version = live.load(path)
        live.sample(make_order(prompt))
        [turn] = live.sample(make_order(prompt))
        assert largest_gap(model, prompt, turn) < CLOSE
        assert turn.versions == (version, version)
        assert turn.num_cached == 128
        [number] = live.run(live.vllm.list_loras())
        assert number not in numbers
        numbers.append(number)
    assert largest_gap(model, prompt, base) > 0.1


def test_nothing_of_an_older_adapter_is_in_the_cache(live: LiveEngine, loaded: LoadedModel, model: Any) -> None:
    prompt = (questions(loaded, 1)[0] * 6)[:134]
    live.follow(model)
    live.sample(make_order(prompt))
    perturb(model)
    live.follow(model)
    [turn] = live.sample(make_order(prompt))
    assert turn.num_cached == 0
    assert largest_gap(model, prompt, turn) < CLOSE


def test_whole_weights_are_refused(live: LiveEngine, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.touch()
    with pytest.raises(PolicyError, match="lora_rank=8"):
        live.run(live.engine.load_weights(path, 1000))


def test_an_adapter_of_too_large_a_rank_is_refused(live: LiveEngine, loaded: LoadedModel) -> None:
    large = add_lora(loaded.model, rank=16, alpha=16, targets="all-linear")
    with WeightFiles(large) as files, pytest.raises(PolicyError, match="rank"), files.write(1000) as path:
        live.run(live.engine.load_weights(path, 1000))
    assert live.sample(make_order([5, 6, 7]))[0].token_ids
