"""Sampled tokens per second of full multi-turn rollouts on vLLM: what this framework costs, and against transformers.

    .venv-vllm/bin/python benchmarks/engines.py
    .venv-vllm/bin/python benchmarks/engines.py --shape 135m --tasks 2 --group 8 --check

Every episode has the same shape: a prompt, then turns of a fixed number of sampled tokens, a tool result after each.
"rollout" plays them through the framework: environment, tools, chat format, trees. "generate" gives the very same
prompts, turn by turn and all episodes of a turn at a time, to the same engine's own `generate`, without anything else.
Both take turns, `--repeat` times, each time with an empty prefix cache and other seeds; medians are printed. With
`--check` it fails if the framework costs more than a tenth.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from rollout import FixedLength, FixedShape
from transformers import AutoTokenizer
from update import load_model as random_model

from agentrl.policies.core import Policy, Sampling
from agentrl.policies.loading import LoadedModel, load_model, model_path
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.policies.vllm.engine import Engine, Order
from agentrl.policies.vllm.in_process import InProcessEngine
from agentrl.policies.vllm.orders import sampling_fields
from agentrl.policies.vllm.policy import VllmPolicy
from agentrl.policies.vllm.weights import WeightFiles
from agentrl.rollout.collector import Collector, RolloutLimits
from agentrl.rollout.plan import GroupPlan
from agentrl.seeding import derive
from agentrl.trajectory import Leaf, Tree

MAX_COST = 0.10


class Bench:
    """One model, and the shape of its episodes."""

    def __init__(self, arguments: argparse.Namespace, model: str) -> None:
        self.arguments = arguments
        self.model = model
        self.loaded: LoadedModel = load_model(model)
        self.num_episodes = arguments.tasks * arguments.group
        self.engine: Engine | None = None

    def vllm(self) -> VllmPolicy:
        """A policy on an engine in this process."""

        async def engines() -> Sequence[Engine]:
            self.engine = await InProcessEngine.open(
                self.model,
                context_length=self.loaded.context_length,
                max_in_flight=self.num_episodes,
                num_top=20,
                gpu_memory=self.arguments.gpu_memory,
            )
            return [self.engine]

        return VllmPolicy(
            engines,
            tokenizer=self.loaded.tokenizer,
            end_of_turn_ids=(),
            vocab_size=self.loaded.vocab_size,
            context_length=self.loaded.context_length,
            weights=WeightFiles(self.loaded.model),
        )

    def rollout(self, policy: Policy, seed: int) -> tuple[list[Tree], float]:
        """Trees and seconds."""
        arguments = self.arguments
        prompt = "Find what is asked for, step by step, with the tool. " * (arguments.prompt_words // 11)
        collector = Collector(
            FixedLength(policy, forget=False),
            self.loaded.chat,
            lambda: FixedShape(split="train", prompt=prompt, num_turns=arguments.turns),
            vocab_size=self.loaded.vocab_size,
            limits=RolloutLimits(max_turn_tokens=arguments.turn_tokens, max_episode_tokens=2000),
        )
        begun = time.perf_counter()
        trees = collector.collect(range(arguments.tasks), GroupPlan(size=arguments.group), seed=seed)
        return trees, time.perf_counter() - begun

    def generate(self, policy: VllmPolicy, trees: Sequence[Tree], seed: int) -> float:
        """Seconds that the engine takes for the turns of these trees alone."""
        orders = [_orders(tree, leaf, seed, policy.version) for tree in trees for leaf in tree.leaves]
        begun = time.perf_counter()
        policy._loop.run(_plain(self.engine, orders))
        return time.perf_counter() - begun


def _orders(tree: Tree, leaf: Leaf, seed: int, version: int) -> list[Order]:
    """The turns of one episode as orders."""
    path = tree.path(leaf.segment)
    tokens = [pair for segment in path for pair in zip(segment.token_ids, segment.action_mask, strict=True)]
    orders: list[Order] = []
    position = 0
    for is_sampled, run in groupby(tokens, key=itemgetter(1)):
        num_tokens = len(list(run))
        if is_sampled:
            orders.append(
                Order(
                    token_ids=[token for token, _ in tokens[:position]],
                    max_tokens=num_tokens,
                    stop=(),
                    stop_token_ids=(),
                    seed=derive(seed, leaf.segment, position),
                    sampling=Sampling(),
                    num_top=20,
                    version=version,
                )
            )
        position += num_tokens
    return orders


async def _plain(engine: Any, episodes: Sequence[Sequence[Order]]) -> None:
    """The engine's own `generate`, without what `InProcessEngine` does around it."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    inner = engine._engine

    async def one(order: Order, name: str) -> None:
        params = SamplingParams(**sampling_fields(order), output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = TokensPrompt(prompt_token_ids=order.token_ids, cache_salt=str(order.version))
        async for _ in inner.generate(prompt, params, name):
            pass

    for turn in range(max(map(len, episodes))):
        due = [orders[turn] for orders in episodes if turn < len(orders)]
        await asyncio.gather(*(one(order, f"plain-{turn}-{i}") for i, order in enumerate(due)))


def write_shape(folder: Path) -> str:
    """A model of SmolLM2-135M's shape with random weights, and the embedded policy's tokenizer."""
    torch.manual_seed(0)
    model = random_model(None)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("quickstart")).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Measures, prints JSON lines, and checks if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quickstart")
    parser.add_argument("--shape", choices=["135m"], help="random weights of this shape instead of a model")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--turn-tokens", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=220)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--gpu-memory", type=float, default=0.4)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, write_shape(Path(folder)) if arguments.shape else arguments.model)
        raise SystemExit(_measure(bench, arguments))


def _measure(bench: Bench, arguments: argparse.Namespace) -> int:
    seconds: dict[str, list[float]] = {"rollout": [], "generate": [], "transformers": []}
    num_tokens = bench.num_episodes * arguments.turns * arguments.turn_tokens
    with bench.vllm() as policy:
        bench.rollout(policy, seed=0)  # the first requests are slow
        for number in range(1, arguments.repeat + 1):
            policy.weights_changed()  # empties the prefix cache
            trees, took = bench.rollout(policy, seed=number)
            seconds["rollout"].append(took)
            policy.weights_changed()
            seconds["generate"].append(bench.generate(policy, trees, seed=number))
    own = TransformersPolicy(bench.loaded.model, bench.loaded.tokenizer, end_of_turn_ids=())
    for number in range(2):
        seconds["transformers"].append(bench.rollout(own, seed=number)[1])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cost = median["rollout"] / median["generate"] - 1.0
    shape = {name: getattr(arguments, name) for name in ("tasks", "group", "turns", "turn_tokens")}
    for name, value in median.items():
        rate = {"seconds": round(value, 2), "sampled_tokens_per_s": round(num_tokens / value, 1)}
        print(json.dumps({"benchmark": "engines", "way": name, "model": arguments.shape or arguments.model} | rate))
    result = {
        "framework_cost": round(cost, 3),
        "vllm_over_transformers": round(median["transformers"] / median["rollout"], 2),
    }
    print(json.dumps({"benchmark": "engines", "threads": torch.get_num_threads(), **shape, **result}))
    if arguments.check and cost > MAX_COST:
        print(f"The framework costs {100 * cost:.0f} % of the engine's time; {100 * MAX_COST:.0f} % is the target.")
        return 1
    return 0


if __name__ == "__main__":
    main()
