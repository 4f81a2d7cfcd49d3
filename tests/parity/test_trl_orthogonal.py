"""What goes with any algorithm, against TRL: sampler correction, high-entropy tokens, several rewards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_same
from parity_cases import agentrl_step, make_episodes
from trl_harness import trl_grpo

from agentrl.trainers.levels import CorrectionAction, CorrectionLevel
from agentrl.trainers.multi_reward import NormalizeThenSum, PartWeights
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.library_presets import grpo_trl
from agentrl.trainers.token_weights import SamplerCorrection, TopEntropy

DEFAULT = grpo_trl()


def correction(mode: str, **bounds: float | None) -> dict[str, Any]:
    """Settings of TRL's sampler correction."""
    named = {f"vllm_importance_sampling_clip_{end}": value for end, value in bounds.items()}
    return {"sampler_correction": True, "vllm_importance_sampling_mode": mode, **named}


class TestSamplerCorrection:
    @pytest.mark.parametrize("level", [CorrectionLevel.TOKEN, CorrectionLevel.SEQUENCE])
    @pytest.mark.parametrize("action", list(CorrectionAction))
    @pytest.mark.parametrize("low", [0.0, 0.8])
    def test_equals_trl(self, model_dir: Path, level: CorrectionLevel, action: CorrectionAction, low: float) -> None:
        episodes = make_episodes(1)
        ours = SamplerCorrection(level=level, action=action, low=low, high=1.3)

        theirs = trl_grpo(model_dir, episodes, **correction(f"{level}_{action}", min=low or None, max=1.3))

        assert_same(agentrl_step(replace(DEFAULT, token_weights=(ours,)), episodes), theirs)

    def test_it_changes_the_loss(self, model_dir: Path) -> None:
        episodes = make_episodes(1)

        with pytest.raises(AssertionError, match="loss differs"):
            assert_same(
                agentrl_step(DEFAULT, episodes), trl_grpo(model_dir, episodes, **correction("token_mask", max=1.3))
            )

    def test_trls_default(self, model_dir: Path) -> None:
        """Trajectories whose product of ratios exceeds 3 drop out; no lower bound."""
        episodes = make_episodes(2)
        episodes = replace(episodes, sampler=episodes.old + 3 * (episodes.sampler - episodes.old))
        products = ((episodes.old - episodes.sampler) * episodes.mask).sum(dim=1).exp()
        assert 0 < (products > 3).sum() < len(products)
        ours = SamplerCorrection(level=CorrectionLevel.SEQUENCE, action=CorrectionAction.MASK, high=3.0)

        assert_same(
            agentrl_step(replace(DEFAULT, token_weights=(ours,)), episodes),
            trl_grpo(model_dir, episodes, sampler_correction=True),
        )


class TestTopEntropy:
    @pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
    def test_equals_trl(self, model_dir: Path, share: float) -> None:
        episodes = make_episodes(3)

        assert_same(
            agentrl_step(replace(DEFAULT, token_weights=(TopEntropy(share),)), episodes),
            trl_grpo(model_dir, episodes, top_entropy_quantile=share),
        )

    def test_trl_ranks_within_a_micro_batch(self, model_dir: Path) -> None:
        """Ours ranks within the mini-batch, however it is split."""
        episodes = make_episodes(3)
        ours = agentrl_step(replace(DEFAULT, token_weights=(TopEntropy(0.2),)), episodes, micro_batches=3)

        assert_same(ours, trl_grpo(model_dir, episodes, top_entropy_quantile=0.2))
        with pytest.raises(AssertionError, match="loss differs"):
            assert_same(ours, trl_grpo(model_dir, episodes, top_entropy_quantile=0.2, micro_batches=3))


def test_trl_leaves_the_kl_penalty_unweighted(model_dir: Path) -> None:
    """Factors of TRL multiply the surrogate alone; ours also the KL penalty, which then vanishes where they are 0."""
    episodes = make_episodes(3)
    mask = episodes.mask
    bound = torch.quantile(episodes.entropies[mask], 0.8)
    new = episodes.new.clone().requires_grad_()
    d = (new - episodes.ref).where(mask & (episodes.entropies < bound), 0.0)
    dropped = 0.04 * ((-d).exp() - 1 + d).sum() / mask.sum()  # k3 of the other tokens; 0 where d is
    dropped.backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None

    recipe = replace(DEFAULT, kl=grpo().kl, token_weights=(TopEntropy(0.2),))
    theirs = trl_grpo(model_dir, episodes, top_entropy_quantile=0.2, beta=0.04, use_bias_correction_kl=False)
    ours = agentrl_step(recipe, episodes)

    assert_same(replace(ours, loss=ours.loss + dropped.detach(), grad=ours.grad + new.grad), theirs)
    assert dropped > 1e-4


class TestSeveralRewards:
    WEIGHTS = (1.0, 0.5, 2.0)
    NAMED = {f"part_{k}": weight for k, weight in enumerate(WEIGHTS)}  # noqa: RUF012

    @pytest.mark.parametrize("seed", range(3))
    def test_sum_then_normalize(self, model_dir: Path, seed: int) -> None:
        episodes = make_episodes(seed, parts=3)

        assert_same(
            agentrl_step(replace(DEFAULT, shaping=(PartWeights(weights=self.NAMED),)), episodes),
            trl_grpo(model_dir, episodes, reward_weights=list(self.WEIGHTS)),
        )

    @pytest.mark.parametrize("seed", range(3))
    def test_normalize_then_sum(self, model_dir: Path, seed: int) -> None:
        episodes = make_episodes(seed, parts=3)
        settings: dict[str, Any] = {
            "reward_weights": list(self.WEIGHTS),
            "multi_objective_aggregation": "normalize_then_sum",
        }

        assert_same(
            agentrl_step(replace(DEFAULT, advantage=NormalizeThenSum(weights=self.NAMED, eps=1e-4)), episodes),
            trl_grpo(model_dir, episodes, **settings),
        )
