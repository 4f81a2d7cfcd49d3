"""New weights in a running engine: from the next token on it is the trainer's model and nothing older."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from live_engine import LiveEngine, largest_gap, make_order, perturb, questions
from safetensors.torch import load_file, save_file

from agentrl.errors import ConfigError, PolicyError
from agentrl.policies.loading import LoadedModel
from agentrl.policies.vllm.engine import BrokenModelError, EngineEndedError, EngineLostError, Sampled
from agentrl.policies.vllm.weights import WeightFiles

pytestmark = pytest.mark.vllm

CLOSE = 1e-3


def long_prompt(loaded: LoadedModel) -> list[int]:
    """134 tokens: four full blocks of the prefix cache and a bit."""
    return (questions(loaded, 1)[0] * 6)[:134]


def test_after_an_update_the_engine_is_the_trainers_model(live: LiveEngine, loaded: LoadedModel) -> None:
    prompt = long_prompt(loaded)
    live.follow(loaded.model)
    live.sample(make_order(prompt))
    [before] = live.sample(make_order(prompt))
    assert before.num_cached == 128
    for step in range(3):
        perturb(loaded.model, seed=step)
        version = live.follow(loaded.model)
        [after] = live.sample(make_order(prompt))  # the cache salt is that of the order before: the reset has to do it
        assert after.num_cached == 0
        assert after.versions == (version, version)
        assert largest_gap(loaded.model, prompt, after) < CLOSE
    assert largest_gap(loaded.model, prompt, before) > 0.1


def test_the_test_above_would_see_a_stale_cache(
    live: LiveEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = long_prompt(loaded)
    live.follow(loaded.model)
    live.sample(make_order(prompt))
    pause = live.vllm.pause_generation

    async def pause_without_reset(**options: Any) -> None:
        await pause(**options | {"clear_cache": False})

    async def claim_reset() -> bool:
        return True

    monkeypatch.setattr(live.vllm, "pause_generation", pause_without_reset)
    monkeypatch.setattr(live.vllm, "reset_prefix_cache", claim_reset)
    perturb(loaded.model)
    live.follow(loaded.model)
    [stale] = live.sample(make_order(prompt))
    assert stale.num_cached == 128
    assert largest_gap(loaded.model, prompt, stale) > 0.1
    [salted] = live.sample(make_order(prompt, version=live.version))  # the second lock on that door
    assert salted.num_cached == 0
    assert largest_gap(loaded.model, prompt, salted) < CLOSE


def test_an_update_whose_cache_stays_is_refused(
    live: LiveEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> bool:
        return False

    monkeypatch.setattr(live.vllm, "reset_prefix_cache", fail)
    with pytest.raises(PolicyError, match="did not drop"):
        live.follow(loaded.model)
    monkeypatch.undo()
    live.version += 1
    live.follow(loaded.model)


def test_the_output_layer_follows_the_embedding_that_it_is_tied_to(live: LiveEngine, loaded: LoadedModel) -> None:
    assert loaded.model.config.tie_word_embeddings
    perturb(loaded.model, only="embed_tokens")
    with WeightFiles(loaded.model) as files, files.write(live.version + 1) as path:
        assert "lm_head.weight" not in load_file(path)
        live.load(path)
    prompt = long_prompt(loaded)
    assert largest_gap(loaded.model, prompt, live.sample(make_order(prompt))[0]) < CLOSE


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "empty", "no file"])
def test_weights_that_do_not_fit_change_nothing(
    live: LiveEngine, loaded: LoadedModel, damage: str, tmp_path: Path
) -> None:
    live.follow(loaded.model)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {key: value + 1 for key, value in loaded.model.state_dict().items() if key != "lm_head.weight"}
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        tensors["model.layers.99.mlp.up_proj.weight"] = tensors[name].clone()
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    path = tmp_path / "weights.safetensors"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage != "no file":
        save_file(tensors, path)
    with pytest.raises(PolicyError, match=r"model\.layers\.\d+\.mlp\.up_proj|vLLM says"):
        live.run(live.engine.load_weights(path, 1000))
    prompt = long_prompt(loaded)
    [turn] = live.sample(make_order(prompt))
    assert turn.versions == (live.version, live.version)
    assert largest_gap(loaded.model, prompt, turn) < CLOSE


def test_an_adapter_is_refused_by_an_engine_without_lora(live: LiveEngine, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="LoRA adapter"):
        live.run(live.engine.load_weights(tmp_path, 1000))


def test_a_turn_may_go_on_across_an_update(live: LiveEngine, loaded: LoadedModel) -> None:
    prompt, old = long_prompt(loaded), live.follow(loaded.model)
    perturb(loaded.model, 1e-3)

    async def update_meanwhile() -> Sampled:
        with WeightFiles(loaded.model) as files, files.write(old + 1) as path:
            turn = asyncio.create_task(live.engine.generate(make_order(prompt, max_tokens=800)))
            await _until(lambda: num_sampled() > 0)
            await live.engine.load_weights(path, old + 1)
        return await turn

    def num_sampled() -> int:
        """Tokens of the turn that have arrived."""
        turns = live.vllm.output_processor.request_states.values()
        return sum(turn.detokenizer.num_output_tokens() for turn in turns)

    turn = live.run(update_meanwhile())
    live.version = old + 1
    assert turn.versions == (old, old + 1)
    assert len(turn.token_ids) == 800


def test_cancelling_frees_the_request(live: LiveEngine, loaded: LoadedModel) -> None:
    async def cancel() -> None:
        turn = asyncio.create_task(live.engine.generate(make_order(long_prompt(loaded), max_tokens=800)))
        await _until(lambda: live.vllm.get_num_unfinished_requests() == 1)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        assert live.vllm.get_num_unfinished_requests() == 0

    live.run(cancel())


def test_a_model_that_returns_nan_is_an_error_and_can_be_mended(live: LiveEngine, loaded: LoadedModel) -> None:
    good = [parameter.detach().clone() for parameter in loaded.model.parameters()]
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(float("nan"))
    live.follow(loaded.model)
    with pytest.raises(BrokenModelError, match="NaN"):
        live.sample(make_order([5, 6, 7]))
    with torch.no_grad():
        for parameter, value in zip(loaded.model.parameters(), good, strict=True):
            parameter.copy_(value)
    live.follow(loaded.model)
    assert largest_gap(loaded.model, [5, 6, 7], live.sample(make_order([5, 6, 7]))[0]) < CLOSE


def test_an_engine_on_a_cpu_does_not_sleep(live: LiveEngine) -> None:
    with pytest.raises(ConfigError, match="can_sleep"):
        live.run(live.engine.sleep())


def test_a_killed_engine_is_noticed_by_every_call(live: LiveEngine, loaded: LoadedModel, tmp_path: Path) -> None:
    """The last one: nothing is left of the engine."""
    assert live.run(live.engine.is_healthy())
    [core] = [process for process in live.vllm.engine_core.resources.engine_manager.processes]
    path = tmp_path / "weights.safetensors"
    path.touch()

    async def kill() -> None:
        turn = asyncio.create_task(live.engine.generate(make_order(long_prompt(loaded), max_tokens=800)))
        await _until(lambda: live.vllm.get_num_unfinished_requests() == 1)
        core.kill()
        with pytest.raises(EngineLostError):
            await asyncio.wait_for(turn, 120)

    live.run(kill())
    with pytest.raises(EngineLostError):
        live.sample(make_order([5, 6, 7]))
    with pytest.raises(EngineLostError):
        live.run(live.engine.load_weights(path, 1000))
    with pytest.raises(EngineEndedError):
        live.run(live.engine.is_healthy())


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
