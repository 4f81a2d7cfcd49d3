"""GRPO and its heirs against TRL's GRPOTrainer: advantages, loss, and gradient by the new log-probabilities."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_same
from parity_cases import agentrl_step, assert_some_clipped, make_episodes, near_policy
from trl_harness import MAX_LENGTH, GMPOConfig, GMPOTrainer, get_soft_overlong_punishment, trl_grpo

from agentrl.trainers.advantages import GroupNormalized
from agentrl.trainers.aggregation import Constant, SeqMeanTokenSum
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipes.arpo import arpo
from agentrl.trainers.recipes.cispo import cispo
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.recipes.dr_grpo import dr_grpo
from agentrl.trainers.recipes.gmpo import gmpo
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.gspo import gspo, gspo_token
from agentrl.trainers.recipes.library_presets import grpo_trl
from agentrl.trainers.recipes.sapo import sapo
from agentrl.trainers.shaping import OverlongPenalty, overlong_penalty
from agentrl.trainers.soft_surrogates import DetachedRatio
from agentrl.trainers.surrogates import Clip

TRL_STD = GroupNormalized(eps=1e-4)
"""TRL adds 1e-4 to the standard deviation, our recipes 1e-6."""

PRESETS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "grpo_trl": (grpo_trl(), {}),
    "grpo": (
        replace(grpo(), advantage=TRL_STD),
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    ),
    "arpo on its paths": (replace(arpo(), advantage=TRL_STD), {"loss_type": "grpo"}),
    "dr_grpo": (
        replace(dr_grpo(), aggregation=Constant(MAX_LENGTH)),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "dapo": (replace(dapo(), advantage=TRL_STD, shaping=()), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo without truncated": (
        replace(dapo(), advantage=TRL_STD, shaping=(), mask_truncated=True),
        {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    ),
    "two-sided clip": (replace(grpo_trl(), surrogate=Clip(dual=3.0)), {"delta": 3.0}),
    "sapo": (replace(sapo(), advantage=TRL_STD), {"loss_type": "sapo"}),
    "cispo": (
        replace(cispo(), advantage=TRL_STD, surrogate=DetachedRatio(high=1.5)),
        {"loss_type": "cispo", "epsilon_high": 2.5},  # TRL's is the largest ratio, ours its distance from 1
    ),
    "gmpo": (replace(gmpo(), advantage=TRL_STD), {"trainer": GMPOTrainer, "config": GMPOConfig}),
}

SEQUENCE_PRESETS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "gspo": (replace(gspo(), advantage=TRL_STD), {"loss_type": "grpo"}),
    "gspo_token": (replace(gspo_token(), advantage=TRL_STD), {"loss_type": "grpo"}),
    "luspo": (replace(gspo(), advantage=TRL_STD, aggregation=SeqMeanTokenSum()), {"loss_type": "luspo"}),
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_trl(model_dir: Path, name: str, seed: int) -> None:
    recipe, settings = PRESETS[name]
    episodes = make_episodes(seed)

    assert_same(agentrl_step(recipe, episodes), trl_grpo(model_dir, episodes, **settings))


@pytest.mark.parametrize("name", SEQUENCE_PRESETS)
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_sequence_ratios_equal_trl(model_dir: Path, name: str, seed: int) -> None:
    """LUSPO is GSPO times the length. GSPO-token is GSPO where a trajectory has one advantage; TRL has it no more."""
    recipe, settings = SEQUENCE_PRESETS[name]
    episodes = near_policy(make_episodes(seed), spread=1e-2)
    settings = {**settings, "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}

    ours = agentrl_step(recipe, episodes)

    assert_same(ours, trl_grpo(model_dir, episodes, **settings))
    assert_some_clipped(ours)


@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_add_up_as_in_trl(model_dir: Path, name: str) -> None:
    recipe, settings = PRESETS[name]
    episodes = make_episodes(3)

    theirs = trl_grpo(model_dir, episodes, micro_batches=3, **settings)

    assert_same(agentrl_step(recipe, episodes, micro_batches=4), theirs)


def test_a_mean_per_micro_batch_is_another_loss(model_dir: Path) -> None:
    """TRL's `bnpo` divides by the tokens of each micro-batch: TokenMean only as long as there is one."""
    episodes = make_episodes(3)
    ours = agentrl_step(grpo_trl(), episodes)

    assert_same(ours, trl_grpo(model_dir, episodes, loss_type="bnpo"))
    with pytest.raises(AssertionError, match="loss differs"):
        assert_same(ours, trl_grpo(model_dir, episodes, loss_type="bnpo", micro_batches=3))


def test_the_recipes_keep_the_papers_epsilon(model_dir: Path) -> None:
    """The presets above do exchange something: at a spread s the factors are 1 / (s + 1e-4) and 1 / (s + 1e-6)."""
    episodes = make_episodes(0)

    with pytest.raises(AssertionError, match="advantages differs"):
        assert_same(agentrl_step(replace(grpo(), kl=None), episodes), trl_grpo(model_dir, episodes, loss_type="grpo"))


def test_trl_multiplies_the_kl_penalty_by_the_ratio(model_dir: Path) -> None:
    """TRL's default is DeepSeek-V3.2's k3 * r; the paper of GRPO, our recipe and TRL's other setting have k3."""
    episodes = make_episodes(4)
    coef, mask = 0.04, episodes.mask
    new = episodes.new.clone().requires_grad_()
    d, r = new - episodes.ref, (new - episodes.old).exp()
    difference = ((-d).exp() - 1 + d) * (r - 1)  # k3 r - k3
    excess = coef * ((difference * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    excess.backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None

    theirs = trl_grpo(model_dir, episodes, loss_type="grpo", beta=coef)
    ours = agentrl_step(replace(grpo(), advantage=TRL_STD), episodes)

    assert_same(replace(ours, loss=ours.loss + excess.detach(), grad=ours.grad + new.grad), theirs)
    assert excess.abs() > 1e-4


def test_trl_counts_trajectories_without_a_token(model_dir: Path) -> None:
    """Means over trajectories: TRL divides by all 12, we by the 9 that have a token left."""
    episodes = make_episodes(5)
    assert episodes.truncated.sum() == 3  # rows 1, 6, 11 of 12

    theirs = trl_grpo(model_dir, episodes, loss_type="grpo", mask_truncated_completions=True)
    ours = agentrl_step(replace(grpo(), advantage=TRL_STD, kl=None, mask_truncated=True), episodes)

    assert_same(replace(ours, loss=ours.loss * 9 / 12, grad=ours.grad * 9 / 12), theirs)


class TestOverlongPenalty:
    def test_values(self) -> None:
        lengths = [0, 5, 6, 7, 9, 10, 11, 200]

        theirs = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
        ours = overlong_penalty(torch.tensor(lengths), max_length=10, cache=4)

        assert ours.tolist() == theirs(completion_ids=[[7] * length for length in lengths])

    def test_in_the_reward(self, model_dir: Path) -> None:
        episodes = make_episodes(6, tools=False)
        recipe = replace(dapo(), advantage=TRL_STD, shaping=(OverlongPenalty(max_length=10, cache=4),))
        theirs = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)

        assert_same(
            agentrl_step(recipe, episodes), trl_grpo(model_dir, episodes, epsilon_high=0.28, more_rewards=[theirs])
        )

    def test_trl_counts_tool_results(self, model_dir: Path) -> None:
        """It sees all tokens after the prompt; ours counts sampled ones, since a long search result is no fault."""
        episodes = make_episodes(6, tools=True)
        recipe = replace(dapo(), advantage=TRL_STD, shaping=(OverlongPenalty(max_length=10, cache=4),))
        theirs = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)

        with pytest.raises(AssertionError, match="advantages differs"):
            assert_same(
                agentrl_step(recipe, episodes), trl_grpo(model_dir, episodes, epsilon_high=0.28, more_rewards=[theirs])
            )
