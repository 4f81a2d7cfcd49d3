"""Tensors that another process reads where they lie."""

import gc
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from agentrl.policies.vllm import handles
from agentrl.policies.vllm.handles import export, open_exported

SHARED = Path("/dev/shm")

READER = """
import sys
from pathlib import Path
from agentrl.policies.vllm.handles import open_exported
tensors = open_exported(Path(sys.argv[1]).read_text())
print({name: (tensor.tolist(), str(tensor.dtype)) for name, tensor in tensors.items()})
del tensors
"""


def shared_files() -> set[str]:
    """What this process has put into shared memory."""
    return {path.name for path in SHARED.glob(f"torch_{os.getpid()}_*")}


def read_elsewhere(text: str, path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(text)
    command = [sys.executable, "-c", READER, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the system has no /dev/shm to look into")
def test_another_process_reads_them_and_nothing_stays(tmp_path: Path) -> None:
    gc.collect()  # what other tests have left
    before = shared_files()
    flat = torch.arange(12.0)
    tensors = {
        "matrix": flat[4:10].view(2, 3),
        "whole": flat,
        "half": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
        "number": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
    }
    expected = {name: (tensor.tolist(), str(tensor.dtype)) for name, tensor in tensors.items()}
    for _ in range(2):
        answer = read_elsewhere(export(tensors), tmp_path / "handles")
        assert answer.stdout.strip() == str(expected), answer.stderr
        assert len(shared_files() - before) == 4, "one for each storage, and no more of them the second time"
    flat[5] = 50.0  # the trainer goes on in the same memory
    assert tensors["matrix"][0, 1] == 50.0
    del flat, tensors
    gc.collect()
    assert shared_files() == before


def test_a_change_after_the_export_is_noticed() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        weight = torch.arange(21).to(dtype)
        other = torch.ones(3)
        text = export({"other": other, "weight": weight})
        weight[20] = 21  # the last byte, which is not in a whole word
        with pytest.raises(ValueError, match="in the memory of weight"):
            open_exported(text)


def test_memory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    weight = torch.ones(3)
    text = export({"weight": weight})
    del weight
    gc.collect()
    answer = read_elsewhere(text, tmp_path / "handles")
    assert "RuntimeError" in answer.stderr


@pytest.mark.parametrize("text", ["print(1)", "[].append(1)", "__import__('os').getpid()"])
def test_a_file_of_handles_runs_no_code(text: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        open_exported(text)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


def test_pytorch_gets_back_what_it_said_about_a_tensor_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(8.0)[2:].view(2, 3)
    signature = inspect.signature(rebuild_cuda_tensor)
    said: dict[str, Any] = {
        "tensor_cls": torch.Tensor,
        "tensor_size": tensor.size(),
        "tensor_stride": tensor.stride(),
        "tensor_offset": 2,
        "storage_cls": torch.storage.TypedStorage,
        "dtype": torch.float32,
        "storage_device": 1,
        "storage_handle": bytes(range(64)),
        "storage_size_bytes": 32,
        "storage_offset_bytes": 512,
        "requires_grad": False,
        "ref_counter_handle": b"/torch_7_8",
        "ref_counter_offset": 3,
        "event_handle": b"",
        "event_sync_required": True,
    }
    heard: list[dict[str, Any]] = []

    def rebuild(*arguments: Any) -> torch.Tensor:
        heard.append(dict(signature.bind(*arguments).arguments))
        return tensor

    reduced = (rebuild_cuda_tensor, tuple(said[name] for name in signature.parameters))
    monkeypatch.setattr(handles, "reduce_tensor", lambda tensor: reduced)
    monkeypatch.setattr(handles, "rebuild_cuda_tensor", rebuild)
    assert open_exported(export({"weight": tensor.as_subclass(OnGpu)}))["weight"] is tensor
    assert heard == [said]
