"""Weights as files: what is in them, and that they do not stay."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from live_engine import perturb
from safetensors.torch import load_file
from tiny_models import make_tiny_llama
from transformers import LlamaForCausalLM

from agentrl.errors import CheckpointError, ConfigError, PolicyError
from agentrl.policies.loading import EMBEDDED, add_lora, load_model, model_path
from agentrl.policies.vllm import handles
from agentrl.policies.vllm.engine import EngineLostError
from agentrl.policies.vllm.handles import open_exported
from agentrl.policies.vllm.shapes import difference
from agentrl.policies.vllm.weights import WeightFiles


def test_the_file_holds_what_save_pretrained_would_write(tmp_path: Path) -> None:
    model = make_tiny_llama(64)
    model.save_pretrained(tmp_path / "checkpoint")
    expected = load_file(tmp_path / "checkpoint" / "model.safetensors")
    with WeightFiles(model) as files, files.write(1) as path:
        found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tied_weights_are_in_it_once() -> None:
    model = load_model(EMBEDDED).model
    with WeightFiles(model) as files, files.write(1) as path:
        found = load_file(path)
    expected = load_file(Path(model_path(EMBEDDED)) / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_do_not_lie_in_one_piece_are_copied(tiny_llama: LlamaForCausalLM) -> None:
    model = make_tiny_llama(64)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.t().contiguous().t())
    with WeightFiles(model) as files, files.write(1) as path:
        found = load_file(path)
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], weight)


def test_later_updates_do_not_change_an_older_file() -> None:
    model = make_tiny_llama(64)
    before = model.lm_head.weight.detach().clone()
    with WeightFiles(model) as files:
        with files.write(1) as first:
            pass
        perturb(model)
        with files.write(2) as second:
            assert torch.equal(load_file(first)["lm_head.weight"], before)
            assert torch.equal(load_file(second)["lm_head.weight"], model.lm_head.weight)


def test_what_was_loaded_last_stays_until_the_end(tmp_path: Path) -> None:
    with WeightFiles(make_tiny_llama(64), tmp_path) as files:
        loaded: list[Path] = []
        for version in range(3):
            with files.write(version) as path:
                assert {*path.parent.iterdir()} == {*loaded, path}
            loaded = [path]
            assert list(path.parent.iterdir()) == loaded
    assert list(tmp_path.iterdir()) == []
    files.close()


def test_what_was_refused_goes_and_what_was_loaded_stays(tmp_path: Path) -> None:
    model = make_tiny_llama(64)
    with WeightFiles(model, tmp_path) as files:
        with files.write(1) as loaded:
            pass
        for version in (1, 2, 2):  # the same version is written anew when an engine has slept
            with pytest.raises(KeyboardInterrupt), files.write(version):
                raise KeyboardInterrupt
            assert list(loaded.parent.iterdir()) == [loaded]
        perturb(model)
        with files.write(1) as again:
            assert torch.equal(load_file(again)["lm_head.weight"], model.lm_head.weight)
        assert list(loaded.parent.iterdir()) == [again]


def test_adapters_go_too(tmp_path: Path) -> None:
    model = add_lora(make_tiny_llama(64), rank=2, alpha=2, targets="all-linear")
    with WeightFiles(model, tmp_path) as files:
        for version in (1, 2):
            with files.write(version) as path:
                assert (path / "adapter_model.safetensors").is_file()
        assert list(path.parent.iterdir()) == [path]


def test_what_is_handed_over_where_it_lies_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make_tiny_llama(64)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.randn(32, 64).t())  # is copied
    rehearsed = []

    async def rehearse(path: Path) -> None:
        rehearsed.append(open_exported(path.read_text()).keys())

    with WeightFiles(model, tmp_path) as files:
        with files.write(1) as written:
            pass
        asyncio.run(files.share(rehearse))
        assert rehearsed == [model.state_dict().keys()]
        for version in (2, 3):
            perturb(model)
            with files.write(version) as path:
                found = open_exported(path.read_text())
                assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
                text = path.read_text()
                del found
            assert list(written.parent.iterdir()) == []
        with pytest.raises(RuntimeError):  # the copy is gone
            open_exported(text)


@pytest.mark.parametrize("error", [PolicyError("no access\nat all"), RuntimeError("no access"), OSError("no access")])
def test_where_memory_cannot_be_read_it_is_files_again(tmp_path: Path, error: Exception) -> None:
    async def fail(path: Path) -> None:
        if isinstance(error, PolicyError):
            raise error

    def fail_to_export(tensors: object) -> str:
        raise error

    with WeightFiles(make_tiny_llama(64), tmp_path) as files, pytest.MonkeyPatch.context() as patch:
        if not isinstance(error, PolicyError):
            patch.setattr(handles, "export", fail_to_export)
        with pytest.warns(UserWarning, match=r"cannot read the trainer's memory.*no access\.?$"):
            asyncio.run(files.share(fail))
        [folder] = tmp_path.iterdir()
        assert list(folder.iterdir()) == []
        with files.write(1) as path:
            assert load_file(path)


def test_an_engine_that_is_gone_is_no_reason_for_files(tmp_path: Path) -> None:
    async def fail(path: Path) -> None:
        raise EngineLostError("died")

    with WeightFiles(make_tiny_llama(64), tmp_path) as files, pytest.raises(EngineLostError):
        asyncio.run(files.share(fail))


def test_a_killed_owner_leaves_nothing_for_long(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import torch\n"
        "from agentrl.policies.vllm.weights import WeightFiles\n"
        "from tiny_models import make_tiny_llama\n"
        "files = WeightFiles(make_tiny_llama(64), Path(sys.argv[1]))\n"
        "with files.write(1): pass\n"
        "if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)"
    )

    def run(how: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", code, str(tmp_path), how], env=environment, timeout=600)

    run("end")
    assert list(tmp_path.iterdir()) == []
    run("kill")
    [left] = tmp_path.iterdir()
    assert [file.name for file in left.iterdir()] == ["weights-1-0.safetensors"]
    with WeightFiles(make_tiny_llama(64), tmp_path) as files, files.write(1) as path:
        assert path.parent != left
        assert not left.exists()


def test_of_two_runs_none_removes_the_files_of_the_other(tmp_path: Path) -> None:
    with WeightFiles(make_tiny_llama(64), tmp_path) as first, first.write(1) as path:
        with WeightFiles(make_tiny_llama(64), tmp_path):
            pass
        assert path.exists()


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Name another folder"):
        WeightFiles(make_tiny_llama(64), tmp_path / "file" / "below")


def test_a_write_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agentrl.policies.vllm.weights.save_file", fail)
    with WeightFiles(make_tiny_llama(64), tmp_path) as files:
        with pytest.raises(CheckpointError, match="No space left"), files.write(1):
            pass
        [folder] = tmp_path.iterdir()
        assert list(folder.iterdir()) == []


def test_differences_are_named() -> None:
    model = {"a": (2, 3), "b": (4,), "tied": (5,)}
    assert difference(model, model) == ""
    assert difference(model, {"a": (2, 3), "b": (4,)}, optional={"tied"}) == ""
    assert difference(model, {**model, "x": (1,)}) == "x unknown to the model."
    assert difference(model, {"a": (3, 2)}) == "b, tied missing; a has shape (3, 2) instead of (2, 3)."
    assert difference(dict.fromkeys("abcde", (1,)), {}) == "a, b, c and 2 more missing."
