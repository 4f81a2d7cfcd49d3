"""Fine-tuning on demonstrations against TRL's SFTTrainer, on one real model: loss and gradient by its parameters.

TRL's language-model head works in float32 whatever the model, hence the tolerance of 1e-5.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import Result, assert_same
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl_harness import Dataset, common_settings, trl

from agentrl.trainers import fine_tune
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Leaf, StopReason, Tree

IGNORED = -100


def demonstrate(rng: random.Random) -> Tree:
    """Prompt, tool call, tool result, answer."""
    tree = Tree(task_id=str(rng.random()))
    parent: int | None = None
    for turn, origin in enumerate(("prompt", "assistant", "tool", "assistant")):
        ids = [rng.randint(10, 99) for _ in range(rng.randint(2, 7))]
        parent = tree.add(parent, origin, turn // 2, ids).id  # type: ignore[arg-type]
    assert parent is not None
    tree.leaves.append(Leaf(segment=parent, stop_reason=StopReason.ANSWERED, reward=1.0, success=True))
    return tree


def trl_inputs(trees: list[Tree]) -> dict[str, Tensor]:
    """As TRL's collator lays token ids and a mask of what was sampled out."""
    rows = [tree.path(tree.leaves[0].segment) for tree in trees]
    ids = [torch.tensor([token for segment in row for token in segment.token_ids]) for row in rows]
    sampled = [torch.tensor([bit for segment in row for bit in segment.action_mask]) for row in rows]
    labels = [row.where(mask.bool(), IGNORED) for row, mask in zip(ids, sampled, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED),
    }


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.usefixtures("gradients_stay")
@pytest.mark.parametrize("seed", range(2))
def test_equals_trl(model_dir: Path, seed: int) -> None:
    rng = random.Random(seed)
    trees = [demonstrate(rng) for _ in range(4)]
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64),
        args=trl.SFTConfig(**common_settings(model_dir)),
        train_dataset=Dataset.from_list([{"text": "a"}]),
    )

    theirs = trainer.compute_loss(trainer.model, trl_inputs(trees))
    theirs.backward()
    settings = OptimizerSettings(max_grad_norm=1e9, max_tokens_per_micro_batch=40)  # two trajectories or one at a time
    (ours,) = fine_tune(model, iter([trees]), settings, steps=1)

    assert_same(
        Result(loss=torch.tensor(ours, dtype=torch.float64), grad=gradient(model)),
        Result(loss=theirs.detach(), grad=gradient(trainer.model)),
        tolerance=1e-5,
    )
