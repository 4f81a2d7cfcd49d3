"""Random token trees and tiny models for the tests of the forward pass, and its plain reference."""

import itertools
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentrl.trajectory import Leaf, StopReason, Tree

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,  # large, so that a wrong mask shows in the second digit
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0, attention_multiplier=0.3)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
}


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[family]().to(dtype).eval()


def random_tree(seed: int, *, ids: Iterator[int] | None = None, max_depth: int = 4, invalid: float = 0.2) -> Tree:
    """A tree with everything a rollout can produce.

    Branches at any node, also right after another branch; empty, one-token and longer segments; a forced ending
    (mask 0) in an assistant segment; trajectories that end inside the tree; invalid ones. The first leaf is valid.
    """
    rng = random.Random(seed)
    ids = ids or (rng.randrange(VOCAB) for _ in itertools.count())
    tree = Tree(f"tree-{seed}")
    tree.add(None, "prompt", 0, [next(ids) for _ in range(rng.randint(1, 7))])
    open_nodes = [(0, 0)]
    while open_nodes:
        node, depth = open_nodes.pop(rng.randrange(len(open_nodes)))
        for _ in range(rng.choice((1, 1, 2, 3)) if depth else rng.randint(2, 4)):
            turn = tree.add(node, "assistant", depth, [next(ids) for _ in range(rng.choice((1, 1, 2, 5)))])
            if rng.random() < 0.2:
                turn.action_mask[-1] = 0
            end = turn.id
            if rng.random() < 0.7:
                end = tree.add(turn.id, "environment", depth, [next(ids) for _ in range(rng.choice((0, 0, 1, 4)))]).id
            goes_on = depth + 1 < max_depth and rng.random() < 0.5
            if goes_on:
                open_nodes.append((end, depth + 1))
            if not goes_on or rng.random() < 0.1:
                bad = bool(tree.leaves) and rng.random() < invalid
                reason = StopReason.INVALID if bad else rng.choice((StopReason.ANSWERED, StopReason.MAX_TOKENS))
                tree.leaves.append(Leaf(end, reason, rng.random(), False))
    if not any(segment.action_mask.count(1) for leaf in tree.valid_leaves for segment in tree.path(leaf.segment)):
        tree.segments[1].action_mask = [1] * len(tree.segments[1].token_ids)
    return tree


def agent_tree(prompt: int = 24, samples: int = 6, turn: int = 10) -> Tree:
    """Samples that share a prompt; no two tokens of a path are alike for a mask to confuse."""
    rng = random.Random(prompt)
    tree = Tree("agent")
    tree.add(None, "prompt", 0, [rng.randrange(VOCAB) for _ in range(prompt)])
    for _ in range(samples):
        call = tree.add(0, "assistant", 0, [rng.randrange(VOCAB) for _ in range(turn)])
        result = tree.add(call.id, "environment", 0, [rng.randrange(VOCAB) for _ in range(3)])
        answer = tree.add(result.id, "assistant", 1, [rng.randrange(VOCAB) for _ in range(turn)])
        tree.leaves.append(Leaf(answer.id, StopReason.ANSWERED, 1.0, True))
    return tree


def plain_scores(model: torch.nn.Module, trees: list[Tree], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every sampled token of every valid trajectory, one trajectory at a time.

    One after the other without padding: the masked positions of the [B, L] layout in row-major order.
    """
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for tree in trees:
        for leaf in tree.leaves:
            if leaf.stop_reason is StopReason.INVALID:
                continue
            ids: list[int] = []
            sampled: list[int] = []
            for segment in tree.path(leaf.segment):
                sampled += [len(ids) + i for i, action in enumerate(segment.action_mask) if action]
                ids += segment.token_ids
            distribution = torch.log_softmax(model(torch.tensor([ids])).logits[0] / temperature, dim=-1)
            logprobs += [distribution[i - 1, ids[i]] for i in sampled]
            entropies += [-(distribution[i - 1].exp() * distribution[i - 1]).sum() for i in sampled]
    return torch.stack(logprobs), torch.stack(entropies)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter that has one."""
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(given: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Every parameter's gradient, relative to the length of the expected one (of the largest, where it is nearly 0)."""
    assert given.keys() == expected.keys()
    floor = 1e-3 * max(float(g.norm()) for g in expected.values())
    for name, gradient in expected.items():
        error = float((given[name] - gradient).norm()) / max(float(gradient.norm()), floor)
        assert error <= relative, f"{name}: {error}"
