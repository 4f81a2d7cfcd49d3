"""Everything that wants a GPU, in one go: is it right there, how fast is it, how much memory does it take.

    python benchmarks/gpu.py                                prints JSON lines; needs CUDA
    python benchmarks/gpu.py --device cpu --small           the same program in small, to see that it runs

- engine      the transformers engine: same greedy tokens and log-probabilities as on the CPU, in float32
- packing     token trees packed, by FlexAttention ("packed") and under a dense mask ("dense"), against padded paths:
              equal values and gradients in float32; then seconds and peak memory of forward and backward in bfloat16,
              at the shape of a model of 0.5B parameters with random weights
- vllm        vLLM in process against the transformers engine, both in bfloat16, and its weights after an update; left
              out where vLLM is not installed
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from update import LAYOUTS, SHAPES, make_tree

from agentrl.policies.core import Failure, Request, Sampling
from agentrl.policies.loading import load_model, model_path
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer

WAYS = ("padded", "packed", "dense")
_GB = 1e9
_PROMPTS = ("What is 17 * 23?", "Add 5 and 9, then take half.", "How many days have two weeks?")


def half_billion(small: bool, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights in the shape of Qwen2.5-0.5B, or something much smaller that is built alike."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048 if small else 151_936,
        hidden_size=448 if small else 896,
        intermediate_size=512 if small else 4864,
        num_hidden_layers=2 if small else 24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).to(dtype)


class Device:
    """Where it runs; on a CPU there is no peak to report."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cuda = name.startswith("cuda")

    def __str__(self) -> str:
        return torch.cuda.get_device_name(self.name) if self.is_cuda else "CPU"

    def wait(self) -> None:
        """For all that was started."""
        if self.is_cuda:
            torch.cuda.synchronize()

    @contextmanager
    def peak(self, figures: dict[str, Any], name: str) -> Iterator[None]:
        """Notes the most memory that was in use."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.is_cuda:
            figures[name] = round(torch.cuda.max_memory_allocated() / _GB, 2)

    def used(self) -> float:
        """GB that are taken on the device, whoever took them."""
        free, total = torch.cuda.mem_get_info() if self.is_cuda else (0, 0)
        return round((total - free) / _GB, 2)


def greedy(policy: Any, loaded: Any, max_tokens: int = 48) -> dict[int, tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of greedy decoding, by prompt."""
    for number, prompt in enumerate(_PROMPTS):
        ids = list(loaded.tokenizer.encode(prompt, add_special_tokens=False))
        request = Request(sequence=number, token_ids=ids, max_tokens=max_tokens, sampling=Sampling(temperature=0.0))
        policy.submit(request)
    found: dict[int, tuple[list[int], list[float]]] = {}
    while len(found) < len(_PROMPTS):
        for completion in policy.poll():
            if isinstance(completion, Failure):
                raise completion.error
            found[completion.sequence] = (completion.token_ids, completion.raw_logprobs)
            policy.release(completion.sequence)
    return found


def largest_gap(one: dict[int, Any], other: dict[int, Any]) -> float | None:
    """Of log-probabilities, where both chose the same tokens; None if they did not."""
    if any(one[key][0] != other[key][0] for key in one):
        return None
    return max(abs(a - b) for key in one for a, b in zip(one[key][1], other[key][1], strict=True))


def check_engine(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    """The transformers engine on this device and on the CPU."""
    results = []
    for where in ("cpu", device.name):
        loaded = load_model("quickstart", device=where, dtype="float32")
        results.append(greedy(TransformersPolicy(loaded.model, loaded.tokenizer, loaded.chat.end_ids), loaded))
    gap = largest_gap(*results)
    return {"same_tokens": gap is not None, "max_logprob_gap": gap}


def check_packing(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Equality in float32 and speed in bfloat16 of all ways through the same trees."""
    figures: dict[str, Any] = {}
    model = half_billion(arguments.small, torch.float32).to(device.name)
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    trees = [make_tree(SHAPES["agent"], model.config.vocab_size, random.Random(0))]
    scores, gradients = {}, {}
    for way in WAYS:
        logprobs = _logprobs(_scorer(model, way), trees, way)
        _loss(logprobs, trees).backward()  # type: ignore[no-untyped-call]
        scores[way] = logprobs.detach()
        gradients[way] = [p.grad for p in model.parameters() if p.grad is not None]
        figures[f"{way}_float32_attention"] = model.config._attn_implementation
        model.zero_grad(set_to_none=True)
    scale = max(float(g.abs().max()) for g in gradients["padded"])
    for way in WAYS[1:]:
        figures[f"{way}_logprob_gap"] = float((scores[way] - scores["padded"]).abs().max())
        gaps = [float((a - b).abs().max()) for a, b in zip(gradients[way], gradients["padded"], strict=True)]
        figures[f"{way}_relative_gradient_gap"] = max(gaps) / scale
    del model, gradients
    model = half_billion(arguments.small, torch.bfloat16).to(device.name).train()
    for name, shape in SHAPES.items():
        trees = [make_tree(shape, model.config.vocab_size, random.Random(0))]
        seconds = {}
        for way in WAYS:
            with device.peak(figures, f"{name}_{way}_peak_gb"):
                seconds[way] = _best(device, arguments.turns, model, trees, way)
            figures[f"{name}_{way}_s"] = round(seconds[way], 4)
            figures[f"{way}_bfloat16_attention"] = model.config._attn_implementation
        for way in WAYS[1:]:
            figures[f"{name}_{way}_speedup"] = round(seconds["padded"] / seconds[way], 2)
    return figures


def _scorer(model: PreTrainedModel, way: str) -> TokenScorer:
    model.set_attn_implementation("sdpa")
    scorer = TokenScorer(model)
    if way == "dense":
        model.set_attn_implementation("sdpa")  # as it was before the scorer saw it
    return scorer


def _logprobs(scorer: TokenScorer, trees: list[Any], way: str) -> torch.Tensor:
    return scorer.score_packed(LAYOUTS["padded" if way == "padded" else "packed"](trees)).logprobs


def _loss(logprobs: torch.Tensor, trees: list[Any]) -> torch.Tensor:
    batch = lay_out_paths(trees).to(logprobs.device)
    advantages = (batch.rewards - batch.rewards.mean())[:, None]
    return -(logprobs[batch.token_index] * advantages)[batch.mask].mean()


def _best(device: Device, turns: int, model: PreTrainedModel, trees: list[Any], way: str) -> float:
    scorer = _scorer(model, way)
    times = []
    for _ in range(turns + 2):  # the first compiles, the second may do so for other lengths
        device.wait()
        begun = time.perf_counter()
        _loss(_logprobs(scorer, trees, way), trees).backward()  # type: ignore[no-untyped-call]
        device.wait()
        times.append(time.perf_counter() - begun)
        model.zero_grad()
    return min(times[2:])


def check_vllm(device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine vLLM against transformers before and after updates by file and by handle, and what sleeping frees."""
    from agentrl.policies.vllm.in_process import InProcessEngine
    from agentrl.policies.vllm.policy import VllmPolicy
    from agentrl.policies.vllm.weights import WeightFiles

    figures: dict[str, Any] = {}
    dtype = "bfloat16" if device.is_cuda else "float32"
    opened: list[InProcessEngine] = []
    with tempfile.TemporaryDirectory() as folder:
        half_billion(arguments.small, getattr(torch, dtype)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_path("quickstart")).save_pretrained(folder)
        loaded = load_model(folder, device=device.name, dtype=dtype)
        own = TransformersPolicy(loaded.model, loaded.tokenizer, end_of_turn_ids=())
        weights = WeightFiles(loaded.model)

        async def engines() -> Any:
            options = {"context_length": 4096, "max_in_flight": 64, "num_top": 20, "dtype": dtype}
            engine = await InProcessEngine.open(folder, gpu_memory=0.4, can_sleep=device.is_cuda, **options)
            opened.append(engine)
            return opened

        begun = time.perf_counter()
        policy = VllmPolicy(
            engines,
            tokenizer=loaded.tokenizer,
            end_of_turn_ids=(),
            vocab_size=loaded.vocab_size,
            context_length=4096,
            weights=weights,
            sleeps=device.is_cuda,
        )
        figures["start_s"] = round(time.perf_counter() - begun, 1)
        with policy:
            figures["gap"] = largest_gap(greedy(own, loaded), greedy(policy, loaded))
            figures["awake_gb"] = device.used()
            with policy.yield_memory():
                figures["asleep_gb"] = device.used()
            for way in ("file", "handle"):
                if way == "handle":
                    policy._loop.run(weights.share(opened[0].rehearse))  # warns if it does not work here
                _change(loaded.model)
                own.weights_changed()
                begun = time.perf_counter()
                policy.weights_changed()
                figures[f"update_by_{way}_used_handles"] = weights._by_handle
                figures[f"update_by_{way}_s"] = round(time.perf_counter() - begun, 3)
                figures[f"gap_after_update_by_{way}"] = largest_gap(greedy(own, loaded), greedy(policy, loaded))
    return figures


@torch.no_grad()
def _change(model: PreTrainedModel) -> None:
    """So much that it shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=0.1 * float(parameter.std()))


PARTS: dict[str, Callable[[Device, argparse.Namespace], dict[str, Any]]] = {
    "engine": check_engine,
    "packing": check_packing,
    "vllm": check_vllm,
}


def main() -> None:
    """Runs every part, also if one before it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model instead of one of 0.5B parameters")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--skip", nargs="*", choices=sorted(PARTS), default=[])
    arguments = parser.parse_args()
    device = Device(arguments.device)
    failed = False
    for name, part in PARTS.items():
        if name in arguments.skip or (name == "vllm" and not find_spec("vllm")):
            continue
        try:
            figures = part(device, arguments)
        except Exception as error:  # the next part may well work
            failed = True
            figures = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"benchmark": "gpu", "device": str(device), "part": name, **figures}), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
