"""Log-probabilities and entropies of one real model: packed trees here, a padded row for every trajectory in TRL.

TRL's language-model head works in float32, hence a tolerance of 1e-5.
"""

import random
from pathlib import Path

import pytest
import torch
from comparison import Result, assert_same
from transformers import AutoModelForCausalLM
from trl_harness import Dataset, common_settings, trl

from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trajectory import Leaf, StopReason, Tree

PROMPT = 5


def branching(rng: random.Random) -> Tree:
    """A prompt and two calls; the result of one of them is answered twice."""
    tree = Tree(task_id=str(rng.random()))

    def add(parent: int | None, origin: str, turn: int, length: int) -> int:
        return tree.add(parent, origin, turn, [rng.randint(10, 99) for _ in range(length)]).id  # type: ignore[arg-type]

    root = add(None, "prompt", 0, PROMPT)
    calls = [add(root, "assistant", 0, rng.randint(2, 7)) for _ in range(2)]
    results = [add(call, "environment", 0, rng.randint(2, 7)) for call in calls]
    for result in (results[0], results[0], results[1]):
        answer = add(result, "assistant", 1, rng.randint(2, 7))
        tree.leaves.append(Leaf(segment=answer, stop_reason=StopReason.ANSWERED, reward=0.0, success=False))
    return tree


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores(model_dir: Path, seed: int, temperature: float) -> None:
    rng = random.Random(seed)
    trees = [branching(rng) for _ in range(3)]
    paths = [tree.path(leaf.segment) for tree in trees for leaf in tree.leaves]
    rows = [torch.tensor([token for segment in path for token in segment.token_ids]) for path in paths]
    sampled = [torch.tensor([bit for segment in path for bit in segment.action_mask]) for path in paths]
    trainer = trl.GRPOTrainer(
        model=str(model_dir),
        reward_funcs=len,
        args=trl.GRPOConfig(**common_settings(model_dir), temperature=temperature),
        train_dataset=Dataset.from_dict({"prompt": ["?"]}),
    )
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(rows, batch_first=True)
    attention = pad([torch.ones_like(row) for row in rows], batch_first=True)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    layout = lay_out_paths(trees)

    theirs = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, attention, ids.shape[1] - PROMPT, compute_entropy=True
    )
    ours = TokenScorer(model).score(trees, temperature=temperature)

    mask = pad(sampled, batch_first=True).bool()[:, PROMPT:]
    logprobs, entropies = (values[mask] for values in theirs[:2])  # row by row, as our columns without their padding
    mine, uncertainty = (values[layout.token_index[layout.mask]] for values in (ours.logprobs, ours.entropies))
    weights = torch.randn(len(mine), generator=torch.Generator().manual_seed(seed)) / len(mine)
    (weights * logprobs).sum().backward()
    (weights * mine).sum().backward()
    torch.testing.assert_close(mine, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(uncertainty, entropies, atol=1e-5, rtol=0)
    assert_same(
        Result(loss=(weights * mine).sum().detach(), grad=gradient(model)),
        Result(loss=(weights * logprobs).sum().detach(), grad=gradient(trainer.model)),
        tolerance=1e-5,
    )


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
