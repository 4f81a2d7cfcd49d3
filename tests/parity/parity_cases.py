"""Random episodes that both libraries can read: groups of equal size, tool results in the middle, float64.

TRL's rows hold everything after the prompt, tool results included, and a mask of 0 over them; ours have the same
columns here and a mask of False. What the masked positions hold must not matter: TRL gets finite noise there (it
multiplies by the mask), agentrl gets NaN.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from comparison import Result
from tiny_models import SPECIAL
from torch import Tensor

from agentrl.trainers.batch import PathBatch
from agentrl.trainers.objective import compute_advantages, compute_weights, policy_loss
from agentrl.trainers.recipe import Recipe

GROUPS, SIZE = 3, 4
EDGES = (0.8, 1.2, 1.28, 3.0)
"""Ratios at which a clip bites: GRPO's and DAPO's bounds, and the dual clip."""
END = SPECIAL.index("<|im_end|>")


@dataclass(frozen=True)
class Episodes:
    token_ids: list[list[int]]
    """Sampled tokens and tool results of each trajectory, group after group."""
    tool_mask: list[list[int]]
    """1 for a sampled token, 0 for a tool result."""
    rewards: Tensor
    """[B, K]: K reward functions."""
    new: Tensor
    """[B, L] log-probabilities, as `old`, `ref` and `sampler`; noise in the padding."""
    old: Tensor
    ref: Tensor
    sampler: Tensor
    entropies: Tensor
    truncated: Tensor
    """[B] bool: cut by a limit, so that the last token is not the end token."""

    @property
    def mask(self) -> Tensor:
        """[B, L] bool: sampled tokens."""
        rows = [torch.tensor(row, dtype=torch.bool) for row in self.tool_mask]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    @property
    def batch(self) -> PathBatch:
        """agentrl's view of them, with the sum of the reward functions as the outcome."""
        mask = self.mask
        rewards = self.rewards.sum(dim=1)
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        return PathBatch(
            token_index=(mask.flatten().cumsum(0) - 1).view(mask.shape).where(mask, 0),
            mask=mask,
            rewards=rewards,
            group=torch.arange(GROUPS).repeat_interleave(SIZE),
            turn=torch.zeros(mask.shape, dtype=torch.int64),
            logprobs=hidden(self.sampler, mask),
            entropies=hidden(self.entropies, mask),
            truncated=self.truncated,
            success=rewards > 0,
            root=torch.arange(SIZE).repeat(GROUPS),
            turn_rewards=rewards[:, None] * last,
            states=torch.full(mask.shape, -1),
            greedy_rewards=torch.full_like(rewards, math.nan),
            reward_parts=self.rewards,
            part_names=tuple(f"part_{k}" for k in range(self.rewards.shape[1])),
        )


def make_episodes(seed: int, *, tools: bool = True, parts: int = 1) -> Episodes:
    """Three groups of four; the rewards of the second are all equal. Numbers that TRL keeps in float32 are exact there.

    Args:
        seed: Of everything.
        tools: Whether tool results lie between the sampled tokens.
        parts: Number of reward functions.
    """
    rng = random.Random(seed)
    rows = GROUPS * SIZE
    tool_mask = [_tool_mask(rng, rng.randint(3, 12), tools) for _ in range(rows)]
    truncated = [row % 5 == 1 for row in range(rows)]
    width = max(map(len, tool_mask))

    def column(draw: Callable[[], float]) -> Tensor:
        return torch.tensor([[draw() for _ in range(width)] for _ in range(rows)], dtype=torch.float64)

    old = column(lambda: rng.uniform(-3.0, -0.05))
    rewards = torch.tensor([[rng.randint(-8, 8) / 8 for _ in range(parts)] for _ in range(rows)], dtype=torch.float64)
    rewards[SIZE : 2 * SIZE] = rewards[SIZE]
    rewards[0, 0], rewards[1, 0] = -0.25, 0.75  # one group has contrast for certain
    return Episodes(
        token_ids=[
            [*(rng.randint(10, 99) for _ in row[1:]), 10 if cut else END]
            for row, cut in zip(tool_mask, truncated, strict=True)
        ],
        tool_mask=tool_mask,
        rewards=rewards,
        new=old + column(lambda: math.log(_ratio(rng))),
        old=old,
        ref=old + column(lambda: rng.gauss(0.0, 0.3)),
        sampler=old + column(lambda: rng.gauss(0.0, 0.2)).float().double(),
        entropies=column(lambda: rng.uniform(0.0, 3.0)).float().double(),
        truncated=torch.tensor(truncated),
    )


def near_policy(episodes: Episodes, spread: float) -> Episodes:
    """The same, with ratios near 1: a product over a sequence of the others would leave every clip range."""
    return replace(episodes, new=episodes.old + spread * (episodes.new - episodes.old))


def _tool_mask(rng: random.Random, length: int, tools: bool) -> list[int]:
    mask = [1] * length
    if tools and length > 4 and rng.random() < 0.8:
        start = rng.randint(1, length - 3)
        stop = rng.randint(start + 1, length - 1)
        mask[start:stop] = [0] * (stop - start)
    return mask


def _ratio(rng: random.Random) -> float:
    if rng.random() < 0.5:
        return rng.choice(EDGES) * (1.0 + rng.choice((-1e-3, 1e-3)))
    return math.exp(rng.gauss(0.0, 0.6))


def hidden(values: Tensor, mask: Tensor) -> Tensor:
    """NaN wherever nothing was sampled."""
    return values.where(mask, math.nan)


def agentrl_step(recipe: Recipe, episodes: Episodes, *, micro_batches: int = 1) -> Result:
    """agentrl's optimizer step on the episodes, without the optimizer; the gradient is by the new log-probabilities."""
    batch = episodes.batch
    old, ref = hidden(episodes.old, batch.mask), hidden(episodes.ref, batch.mask)
    advantages = compute_advantages(recipe, batch, old_logprobs=old, ref_logprobs=ref)
    weights = compute_weights(recipe, batch, old_logprobs=old)
    new = hidden(episodes.new, batch.mask).requires_grad_()
    total = new.new_zeros(())
    for rows in torch.arange(len(batch.mask)).chunk(micro_batches):
        loss, _ = policy_loss(
            recipe,
            batch.rows(rows),
            new[rows],
            old_logprobs=old[rows],
            advantages=advantages[rows],
            weights=weights[rows],
            ref_logprobs=ref[rows],
            rows=rows,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    assert new.grad is not None
    return Result(advantages=advantages, loss=total, grad=new.grad)


def assert_some_clipped(step: Result) -> None:
    """Of the trajectories with an advantage some have lost their gradient, and some have not."""
    assert step.advantages is not None
    contrast = (step.advantages != 0).any(dim=1)
    moving = (step.grad != 0).any(dim=1)
    assert (contrast & ~moving).any()
    assert (contrast & moving).any()
