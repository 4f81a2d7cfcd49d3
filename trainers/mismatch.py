"""How far the engine that samples is from the network that is trained."""

import torch
from torch import Tensor

from agentrl.trainers.masking import masked_mean, zero_outside


@torch.no_grad()
def mismatch_metrics(trainer_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Compares the log-probabilities of sampled tokens before the first step of an update.

    Args:
        trainer_logprobs: [B, L] by the trainer's forward pass.
        sampler_logprobs: [B, L] as the engine reported them.
        mask: [B, L] bool: the sampled tokens.

    Returns:
        Of d = log pi_trainer - log pi_sampler over the tokens: "mismatch_mean" and "mismatch_max" of |d|;
        "mismatch_kl", the mean of exp(d) - 1 - d, which estimates KL(sampler || trainer) without bias and is never
        negative (Schulman's k3); and "mismatch_ess", the effective sample size (sum w)^2 / (n * sum w^2) of the
        weights w = exp(d), a share of 1 (Kong, 1992).
    """
    if not mask.any():
        return {}
    difference = zero_outside((trainer_logprobs - sampler_logprobs).double(), mask)
    weights = difference.exp().masked_fill(~mask, 0.0)
    return {
        "mismatch_mean": float(masked_mean(difference.abs(), mask)),
        "mismatch_max": float(difference.abs().max()),
        "mismatch_kl": float(masked_mean(weights - 1.0 - difference, mask)),
        "mismatch_ess": float(weights.sum() ** 2 / (mask.sum() * (weights**2).sum())),
    }
