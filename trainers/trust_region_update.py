"""One update of an on-policy algorithm by a step in a trust region instead of gradient steps."""

from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from agentrl.errors import ConfigError
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.masking import zero_outside
from agentrl.trainers.mini_batches import Experience, Part
from agentrl.trainers.objective import Metrics, average_metrics
from agentrl.trainers.on_policy import OnPolicyLearner, Surroundings
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.trust_region import distribution_kl, trust_region_step

MAX_PROBABILITIES = 2**30
"""Largest number of probabilities [U, V] of old distributions that an update keeps: 4 GiB in float32."""


class TrustRegionUpdater(OnPolicyLearner):
    """Takes one step on all episodes of an update; for adapters and small models.

    The KL is that of whole distributions, with the mask and the weights of the loss, so the old distributions of all
    sampled tokens are kept: [U, V]. Hessian-vector products differentiate twice, which fused attention kernels cannot;
    attention is computed step by step instead, with scores [heads, T, T] of each micro-batch in memory.

    `optimizer.learning_rate` has no meaning here, and epochs and mini-batches are the critic's alone: the bound is on
    the distance from the policy that sampled, and a second step would start somewhere else.

    Args:
        recipe: With a trust region.
        settings: Memory bound; the rest is for the critic.
        scorer: Forward pass of the policy that is trained.
        surroundings: By keyword; the schedule is the critic's.

    Raises:
        ConfigError: Weights that are not float32 or float64.
    """

    def __init__(
        self, recipe: Recipe, settings: OptimizerSettings, scorer: TokenScorer, **surroundings: Unpack[Surroundings]
    ) -> None:
        super().__init__(recipe, settings, scorer, **surroundings)
        assert recipe.trust_region is not None, "this learner is built for recipes that have one"
        self._region = recipe.trust_region
        dtypes = {parameter.dtype for parameter in scorer.model.parameters()}
        if dtypes & {torch.bfloat16, torch.float16}:
            raise ConfigError(
                f"Recipe {recipe.name!r} compares distributions that differ by {self._region.max_kl} nats, which "
                "16-bit weights round away. Set model.dtype=float32."
            )

    def _improve(self, known: Experience, factor: float, seed: int) -> dict[str, float]:
        parts = known.parts(list(range(len(known.groups))), self._recipe, self._split)
        self._scorer.model.eval()  # gradient checkpointing, which is on in training mode, is not twice differentiable
        with sdpa_kernel(SDPBackend.MATH):
            old, metrics = self._start(parts, seed)
            total = sum(float(part.weights.sum()) for part in parts)

            def evaluate() -> Iterator[tuple[Tensor, Tensor]]:
                for part, before in zip(parts, old, strict=True):
                    new, logprobs = self._distributions(part)
                    kl = distribution_kl(before, new)[part.batch.token_index]
                    loss, _ = self._loss(self._recipe, part, logprobs, seed)
                    yield loss, zero_outside(part.weights * kl, part.batch.mask).sum() / total

            report = trust_region_step(self.parameters, evaluate, self._region)
        return {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            **average_metrics(metrics),
            "kl_old": report.kl,
            "surrogate_gain": report.gain,
            "step_fraction": report.fraction,
        }

    @torch.no_grad()
    def _start(self, parts: list[Part], seed: int) -> tuple[list[Tensor], list[Metrics]]:
        """Distributions and metrics before the step."""
        old: list[Tensor] = []
        metrics: list[Metrics] = []
        for part in parts:
            distributions, logprobs = self._distributions(part)
            old.append(distributions)
            metrics.append(self._loss(self._recipe, part, logprobs, seed)[1])
            if sum(d.numel() for d in old) > MAX_PROBABILITIES:
                raise ConfigError(
                    f"Recipe {self._recipe.name!r} has to keep the whole distribution of every sampled token, more "
                    f"than {MAX_PROBABILITIES:.1e} probabilities for this batch with a vocabulary of "
                    f"{distributions.shape[1]}. Lower rollout.tasks_per_update or group.size, or train with 'ppo'."
                )
        return old, metrics

    def _distributions(self, part: Part) -> tuple[Tensor, Tensor]:
        """Log-probabilities [U, V] of the whole vocabulary, and [B, L] of the sampled tokens."""
        distributions, drawn = self._scorer.distributions(part.trees, temperature=self._temperature)
        return distributions, distributions.gather(-1, drawn[:, None])[:, 0][part.batch.token_index]
