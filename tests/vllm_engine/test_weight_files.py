"""Weights as files: what is in them, and that they do not stay."""

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

from agentrl.errors import CheckpointError, ConfigError
from agentrl.policies.loading import EMBEDDED, load_model, model_path
from agentrl.policies.vllm.shapes import difference
from agentrl.policies.vllm.weights import WeightFiles


def test_the_file_holds_what_save_pretrained_would_write(tmp_path: Path) -> None:
    model = make_tiny_llama(64)
    model.save_pretrained(tmp_path / "checkpoint")
    expected = load_file(tmp_path / "checkpoint" / "model.safetensors")
    with WeightFiles(model) as files:
        found = load_file(files.write(1))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tied_weights_are_in_it_once() -> None:
    model = load_model(EMBEDDED).model
    with WeightFiles(model) as files:
        found = load_file(files.write(1))
    expected = load_file(Path(model_path(EMBEDDED)) / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_do_not_lie_in_one_piece_are_copied(tiny_llama: LlamaForCausalLM) -> None:
    model = make_tiny_llama(64)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.t().contiguous().t())
    with WeightFiles(model) as files:
        found = load_file(files.write(1))
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], weight)


def test_later_updates_do_not_change_an_older_file() -> None:
    model = make_tiny_llama(64)
    before = model.lm_head.weight.detach().clone()
    with WeightFiles(model) as files:
        first = files.write(1)
        perturb(model)
        second = files.write(2)
        assert torch.equal(load_file(first)["lm_head.weight"], before)
        assert torch.equal(load_file(second)["lm_head.weight"], model.lm_head.weight)


def test_the_last_two_versions_stay_until_the_end(tmp_path: Path) -> None:
    with WeightFiles(make_tiny_llama(64), tmp_path) as files:
        paths = [files.write(version) for version in range(4)]
        assert [path.exists() for path in paths] == [False, False, True, True]
        assert sorted(paths[0].parent.iterdir()) == paths[2:]
    assert list(tmp_path.iterdir()) == []
    files.close()


def test_a_version_may_be_written_again(tmp_path: Path) -> None:
    model = make_tiny_llama(64)
    with WeightFiles(model, tmp_path) as files:
        files.write(1)
        perturb(model)
        assert torch.equal(load_file(files.write(1))["lm_head.weight"], model.lm_head.weight)


def test_a_killed_owner_leaves_nothing_for_long(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import torch\n"
        "from agentrl.policies.vllm.weights import WeightFiles\n"
        "from tiny_models import make_tiny_llama\n"
        "files = WeightFiles(make_tiny_llama(64), Path(sys.argv[1])); files.write(1)\n"
        "if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)"
    )

    def run(how: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", code, str(tmp_path), how], env=environment, timeout=120)

    run("end")
    assert list(tmp_path.iterdir()) == []
    run("kill")
    [left] = tmp_path.iterdir()
    assert [file.name for file in left.iterdir()] == ["weights-1.safetensors"]
    with WeightFiles(make_tiny_llama(64), tmp_path) as files:
        assert files.write(1).parent != left
        assert not left.exists()


def test_of_two_runs_none_removes_the_files_of_the_other(tmp_path: Path) -> None:
    with WeightFiles(make_tiny_llama(64), tmp_path) as first:
        path = first.write(1)
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
        with pytest.raises(CheckpointError, match="No space left"):
            files.write(1)
        [folder] = tmp_path.iterdir()
        assert list(folder.iterdir()) == []


def test_differences_are_named() -> None:
    model = {"a": (2, 3), "b": (4,), "tied": (5,)}
    assert difference(model, model) == ""
    assert difference(model, {"a": (2, 3), "b": (4,)}, optional={"tied"}) == ""
    assert difference(model, {**model, "x": (1,)}) == "x unknown to the model."
    assert difference(model, {"a": (3, 2)}) == "b, tied missing; a has shape (3, 2) instead of (2, 3)."
    assert difference(dict.fromkeys("abcde", (1,)), {}) == "a, b, c and 2 more missing."
