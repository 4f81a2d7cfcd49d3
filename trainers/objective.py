"""From a recipe and tensors to a loss: the three steps that every on-policy algorithm shares.

advantages = compute_advantages(recipe, batch)              # the whole batch, before the first update
weights = compute_weights(recipe, batch.rows(minibatch))    # all trajectories of one optimizer step
for rows in microbatches:                                   # losses and gradients of micro-batches add up
    loss, metrics = policy_loss(recipe, batch.rows(rows), logprobs, ..., weights=weights[rows])
    loss.backward()
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from agentrl.trainers.batch import PathBatch
from agentrl.trainers.feedback import Feedback
from agentrl.trainers.kl import k3
from agentrl.trainers.masking import masked_mean, require_paths, require_rows, zero_outside
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.surrogates import SurrogateInputs

Metrics: TypeAlias = dict[str, Tensor]
"""Scalars without gradient: means over the counted tokens, and `num_tokens`, how many those are."""


def loss_mask(recipe: Recipe, batch: PathBatch) -> Tensor:
    """[B, L] bool: the tokens that count in the loss."""
    return batch.mask & ~batch.truncated[:, None] if recipe.mask_truncated else batch.mask


def gather_feedback(
    recipe: Recipe,
    batch: PathBatch,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    values: Tensor | None = None,
) -> Feedback:
    """What the recipe's advantage gets to see: rewards with the shaping terms and the KL penalty of the recipe.

    Args:
        recipe: The algorithm.
        batch: All trajectories that were sampled for this batch: groups must not be torn apart, and a token's other
            trajectories must be there.
        old_logprobs: [B, L] under the policy before the update; only for a KL penalty in the reward.
        ref_logprobs: [B, L] under the reference policy; likewise.
        values: [B, L] of the critic, if the recipe needs one.

    Raises:
        ValueError: A reward that is not finite, or log-probabilities or values missing that the recipe needs.
    """
    require_rows(batch.rewards, batch.group)
    bad = (~torch.isfinite(batch.rewards)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"Rewards must be finite; trajectory {bad[0]} has {batch.rewards[bad[0]].item()}.")
    if recipe.needs_critic and values is None:
        raise ValueError(f"Recipe {recipe.name!r} needs a critic: pass values.")
    rewards = batch.rewards
    for term in recipe.shaping:
        rewards = rewards + term(batch)
    token_rewards = rewards.new_zeros(batch.mask.shape)
    if recipe.kl_in_reward is not None:
        if old_logprobs is None or ref_logprobs is None:
            raise ValueError(f"Recipe {recipe.name!r} puts KL in the reward: pass old_logprobs and ref_logprobs.")
        token_rewards = -recipe.kl_in_reward(old_logprobs, ref_logprobs, batch.mask).detach()
    if values is not None:
        values = zero_outside(values, batch.mask).detach()
    return Feedback(batch=batch, rewards=rewards, token_rewards=token_rewards, values=values)


def compute_advantages(
    recipe: Recipe,
    batch: PathBatch,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """The advantage of every token, from complete groups; arguments and errors as `gather_feedback`.

    Returns:
        [B, L] without gradient, 0 outside the mask.
    """
    feedback = gather_feedback(recipe, batch, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, values=values)
    return assign_credit(recipe, feedback)


def assign_credit(recipe: Recipe, feedback: Feedback) -> Tensor:
    """[B, L]: the recipe's advantages, without gradient and 0 outside the mask."""
    return zero_outside(recipe.advantage(feedback), feedback.batch.mask).detach()


def compute_weights(recipe: Recipe, batch: PathBatch, *, old_logprobs: Tensor | None = None) -> Tensor:
    """The weight of every token in the loss of one optimizer step.

    Args:
        recipe: The algorithm.
        batch: The whole mini-batch; a micro-batch uses its rows of the result.
        old_logprobs: [B, L] under the trainer's policy before the update; those of the sampler if None.

    Returns:
        [B, L], 0 for tokens that do not count.
    """
    mask = loss_mask(recipe, batch)
    weights = recipe.aggregation(mask)
    for factor in recipe.token_weights:
        weights = weights * factor(batch, batch.logprobs if old_logprobs is None else old_logprobs)
    return zero_outside(weights, mask).detach()


def surrogate_inputs(
    recipe: Recipe,
    batch: PathBatch,
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    rows: Tensor | None = None,
    seed: int = 0,
) -> SurrogateInputs:
    """What the recipe's surrogate gets to see; arguments as `policy_loss`."""
    mask = loss_mask(recipe, batch)
    new, old = zero_outside(logprobs, mask), zero_outside(old_logprobs, mask).detach()
    return SurrogateInputs(
        log_ratio=zero_outside(recipe.ratio(new - old, mask), mask),
        advantages=zero_outside(advantages, mask).detach(),
        mask=mask,
        logprobs=new,
        old_logprobs=old,
        rows=torch.arange(len(mask), device=mask.device) if rows is None else rows,
        seed=seed,
    )


def policy_loss(
    recipe: Recipe,
    batch: PathBatch,
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor | None = None,
    rows: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Metrics]:
    """The loss of some trajectories of a mini-batch: sum of weights * (surrogate + KL penalty) over their tokens.

    Outside the mask every tensor may hold anything.

    Args:
        recipe: The algorithm; where its surrogate `needs_fit`, with the surrogate fitted to the mini-batch.
        batch: The trajectories (a micro-batch).
        logprobs: [B, L] under the policy being trained, with gradient.
        old_logprobs: [B, L] under the policy at the start of the update; the ratio is exp(logprobs - old_logprobs).
        advantages: [B, L], these rows of `compute_advantages`.
        weights: [B, L], these rows of `compute_weights`.
        ref_logprobs: [B, L] under the reference policy, if the recipe needs one.
        rows: [B] int64, which trajectories of the mini-batch these are; None: all of them.
        seed: Of the optimizer step.

    Returns:
        The loss, a scalar to be summed over micro-batches, and metrics, to be joined by `average_metrics`: the
        surrogate's, `kl_old` (how far the update has moved the policy: KL(old || new) by k3) and, with a reference,
        `kl_reference` (KL(new || reference) by k3).

    Raises:
        TypeError, ValueError: Wrong dtype or shape, or a missing `ref_logprobs`.
    """
    mask = loss_mask(recipe, batch)
    require_paths(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, weights=weights)
    if recipe.kl_in_loss is not None and ref_logprobs is None:
        raise ValueError(f"Recipe {recipe.name!r} puts KL in the loss: pass ref_logprobs.")
    inputs = surrogate_inputs(
        recipe, batch, logprobs, old_logprobs=old_logprobs, advantages=advantages, rows=rows, seed=seed
    )
    losses, token_metrics = recipe.surrogate(inputs)
    new = inputs.logprobs
    token_metrics = {**token_metrics, "kl_old": k3(inputs.old_logprobs - new.detach())}
    if ref_logprobs is not None:
        token_metrics["kl_reference"] = k3(new.detach() - ref_logprobs)
        if recipe.kl_in_loss is not None:
            losses = losses + recipe.kl_in_loss(new, ref_logprobs, mask)
    metrics = {name: masked_mean(values.detach(), mask) for name, values in token_metrics.items()}
    metrics["num_tokens"] = mask.sum()
    return zero_outside(weights * losses, mask).sum(), metrics


def average_metrics(parts: Sequence[Metrics]) -> dict[str, float]:
    """The metrics of a mini-batch from those of its micro-batches: means weighted by tokens, and all tokens.

    Args:
        parts: One per micro-batch, at least one, all of one recipe.

    >>> a = {"clip_fraction_low": torch.tensor(0.5), "num_tokens": torch.tensor(2)}
    >>> b = {"clip_fraction_low": torch.tensor(0.0), "num_tokens": torch.tensor(6)}
    >>> average_metrics([a, b])
    {'clip_fraction_low': 0.125, 'num_tokens': 8.0}
    """
    counts = torch.stack([part["num_tokens"] for part in parts]).double()
    total = counts.sum()
    means = {
        name: float((torch.stack([part[name] for part in parts]).double() * counts).sum() / total.clamp(min=1))
        for name in parts[0]
        if name != "num_tokens"
    }
    return {**means, "num_tokens": float(total)}
