"""Seconds of one update, trees packed against paths padded: same episodes, same model, one process.

python benchmarks/update.py                        a random model of SmolLM2-135M's shape
python benchmarks/update.py --model FOLDER         any causal LM; "quickstart" is the policy inside the package

An update is forward, backward and one AdamW step. The two layouts take turns, and each one's fastest turn is reported,
so that a busy machine disturbs both alike; CPU seconds (of all threads) tell whether it was. Prints one JSON line per
measurement, and the speed-up of each shape. The padded layout of the random model needs about 12 GB.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from agentrl.policies.loading import model_path
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.packing import PackedTrees, pack_trees, pad_paths
from agentrl.trajectory import Leaf, StopReason, Tree

LAYOUTS: dict[str, Callable[[Sequence[Tree]], PackedTrees]] = {"padded": pad_paths, "packed": pack_trees}


@dataclass(frozen=True)
class Shape:
    """Episodes of one task that share only their prompt; lengths in tokens."""

    text: str
    prompt: int
    samples: int
    turns: int
    turn: int
    tool_result: tuple[int, int] = (2, 10)
    """Shortest and longest."""


SHAPES = {
    "agent": Shape("prompt 600, 8 samples, 3 turns of 40, tool results of 2 to 10", 600, samples=8, turns=3, turn=40),
    "plain": Shape("prompt 300, 8 samples of 100", 300, samples=8, turns=1, turn=100),
}


def make_tree(shape: Shape, vocab_size: int, rng: random.Random) -> Tree:
    """Random episodes of a shape; the last turn is an answer, so no tool result follows it."""

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    tree = Tree(shape.text)
    tree.add(None, "prompt", 0, tokens(shape.prompt))
    for sample in range(shape.samples):
        last = tree.add(0, "assistant", 0, tokens(shape.turn))
        for turn in range(1, shape.turns):
            result = tree.add(last.id, "environment", turn - 1, tokens(rng.randint(*shape.tool_result)))
            last = tree.add(result.id, "assistant", turn, tokens(shape.turn))
        tree.leaves.append(Leaf(last.id, StopReason.ANSWERED, float(sample % 2), bool(sample % 2)))
    return tree


def load_model(name: str | None) -> PreTrainedModel:
    """The model in a folder, or random weights in the shape of SmolLM2-135M."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def update(
    scorer: TokenScorer, optimizer: torch.optim.Optimizer, trees: list[Tree], layout: str
) -> tuple[float, float]:
    """One update; returns its seconds, and the CPU seconds of all threads."""
    start, cpu_start = time.perf_counter(), time.process_time()
    batch = lay_out_paths(trees)
    scores = scorer.score_packed(LAYOUTS[layout](trees))
    logprobs = scores.logprobs[batch.token_index]
    advantages = (batch.rewards - batch.rewards.mean())[:, None]
    loss = -(logprobs * advantages)[batch.mask].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start, time.process_time() - cpu_start


def main() -> None:
    """Measures every shape in both layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder, or 'quickstart'; default: random weights")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", type=int, help="use only the first layers of the model, for a quick look")
    parser.add_argument("--turns", type=int, default=3, help="measured updates per layout, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = load_model(arguments.model).train()
    if arguments.layers is not None:
        del model.base_model.layers[arguments.layers :]
        model.config.num_hidden_layers = arguments.layers
    scorer = TokenScorer(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for shape in (SHAPES[name] for name in arguments.shapes):
        trees = [make_tree(shape, model.config.vocab_size, random.Random(0))]
        seconds: dict[str, list[tuple[float, float]]] = {layout: [] for layout in LAYOUTS}
        for _ in range(arguments.turns + 1):
            for layout, times in seconds.items():
                times.append(update(scorer, optimizer, trees, layout))
        fastest = {layout: min(times[1:]) for layout, times in seconds.items()}
        for layout, (best, cpu) in fastest.items():
            computed = LAYOUTS[layout](trees).token_ids.numel()
            print(
                json.dumps(
                    {
                        "benchmark": "update",
                        "model": arguments.model or "random weights, SmolLM2-135M shape",
                        "parameters": sum(p.numel() for p in model.parameters()),
                        "shape": shape.text,
                        "layout": layout,
                        "seconds": round(best, 3),
                        "cpu_seconds": round(cpu, 3),
                        "computed_tokens": computed,
                        "computed_tokens_per_s": round(computed / best, 1),
                        "trained_tokens_per_s": round(int(lay_out_paths(trees).mask.sum()) / best, 1),
                        "threads": arguments.threads,
                    }
                ),
                flush=True,
            )
        speedup, cpu_speedup = (round(a / b, 2) for a, b in zip(fastest["padded"], fastest["packed"], strict=True))
        summary = {"benchmark": "update", "shape": shape.text, "speedup": speedup, "cpu_speedup": cpu_speedup}
        print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
