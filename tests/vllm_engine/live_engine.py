"""A running engine for tests, and what the trainer's model says about the same tokens."""

import asyncio
import os
import random
from collections.abc import Coroutine, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from process_tree import descendants, left_after, name_of
from torch import Tensor

from agentrl.policies.core import Completion, Request, Sampling
from agentrl.policies.loading import LoadedModel
from agentrl.policies.vllm.engine import Order, Sampled
from agentrl.policies.vllm.in_process import InProcessEngine
from agentrl.policies.vllm.weights import WeightFiles

NUM_TOP = 20


def vllm_is_installed() -> bool:
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None


class LiveEngine:
    """An `InProcessEngine` with the embedded policy and a loop to call it from."""

    def __init__(self, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        before = process_state()
        self.engine = self.runner.run(
            InProcessEngine.open(
                "quickstart", context_length=1024, max_in_flight=32, num_top=NUM_TOP, dtype="float32", **settings
            )
        )
        self.changed = [name for name, value in process_state().items() if value != before[name]]
        self.version = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        below = {pid for pid in descendants(os.getpid()) if name_of(pid).startswith("VLLM")}
        self.run(self.engine.close())
        self.runner.close()
        assert left_after(below, 120.0) == set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def sample(self, *orders: Order) -> list[Sampled]:
        async def all_at_once() -> list[Sampled]:
            return await asyncio.gather(*(self.engine.generate(order) for order in orders))

        return self.runner.run(all_at_once())

    def load(self, path: Path) -> int:
        """Gives it the weights of a file under the next version."""
        self.run(self.engine.load_weights(path, self.version + 1))
        self.version += 1
        return self.version

    def follow(self, model: Any) -> int:
        """Gives it the weights of a model under the next version."""
        with WeightFiles(model) as files, files.write(self.version + 1) as path:
            return self.load(path)

    @property
    def vllm(self) -> Any:
        """vLLM's own engine."""
        return self.engine._engine


def process_state() -> dict[str, Any]:
    """What starting an engine must leave as it is."""
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
    }


def make_order(token_ids: Sequence[int], **changes: Any) -> Order:
    fields: dict[str, Any] = {"max_tokens": 16, "stop": (), "stop_token_ids": (), "seed": 1, "num_top": NUM_TOP}
    fields |= {"sampling": Sampling(), "version": 0} | changes
    return Order(token_ids=list(token_ids), **fields)


def questions(loaded: LoadedModel, number: int) -> list[list[int]]:
    """Short prompts in the embedded policy's chat format."""
    draw = random.Random(0)
    texts = [f"What is {draw.randint(10, 99)} * {draw.randint(10, 99)} + {draw.randint(1, 9)}?" for _ in range(number)]
    render = partial(loaded.tokenizer.apply_chat_template, add_generation_prompt=True)
    return [list(render([{"role": "user", "content": text}])["input_ids"]) for text in texts]


@torch.no_grad()
def exact_distribution(model: Any, prompt: Sequence[int], token_ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Log-probabilities [n, V] of the trainer's model at the n sampled tokens."""
    ids = torch.tensor([[*prompt, *token_ids]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def largest_gap(model: Any, prompt: Sequence[int], sampled: Sampled, temperature: float = 1.0) -> float:
    """The largest |difference| of a sampled token's log-probability between engine and trainer."""
    exact = exact_distribution(model, prompt, sampled.token_ids, temperature)
    chosen = exact[range(len(sampled.token_ids)), sampled.token_ids]
    return float((chosen - torch.tensor(sampled.logprobs)).abs().max())


@torch.no_grad()
def perturb(model: Any, size: float = 0.05, *, only: str = "", seed: int = 0) -> None:
    """Changes the parameters whose names hold `only`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if only in name and parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def by_transformers(loaded: LoadedModel, requests: Sequence[Request]) -> list[Completion]:
    """What the transformers engine makes of requests, in their order."""
    policy = loaded.policy()
    for request in requests:
        policy.submit(request)
    done: dict[int, Completion] = {}
    while len(done) < len(requests):
        done |= {completion.sequence: completion for completion in policy.poll()}
    return [done[request.sequence] for request in requests]
