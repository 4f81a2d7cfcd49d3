"""RLOO against TRL's RLOOTrainer, which clips the ratio of whole trajectories; the paper's recipe has no ratio."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import assert_same
from parity_cases import agentrl_step, assert_some_clipped, make_episodes, near_policy
from trl_harness import trl_rloo

from agentrl.trainers.recipes.library_presets import rloo_trl
from agentrl.trainers.recipes.rloo import rloo


@pytest.mark.parametrize("seed", range(3))
def test_equals_trl(model_dir: Path, seed: int) -> None:
    """Defaults of TRL: beta 0.05 in the reward, epsilon 0.2, nothing normalized. It knows no tool results."""
    episodes = near_policy(make_episodes(seed, tools=False), spread=0.2)

    ours = agentrl_step(rloo_trl(), episodes)

    assert_same(ours, trl_rloo(model_dir, episodes))
    assert_some_clipped(ours)


def test_without_kl(model_dir: Path) -> None:
    episodes = near_policy(make_episodes(3, tools=False), spread=0.2)

    assert_same(agentrl_step(replace(rloo_trl(), kl=None), episodes), trl_rloo(model_dir, episodes, beta=0.0))


def test_the_paper_has_no_ratio(model_dir: Path) -> None:
    """Before the first step all ratios are 1: recipe and TRL have one gradient then, if not one value."""
    episodes = near_policy(make_episodes(4, tools=False), spread=0.0)

    ours, theirs = agentrl_step(rloo(), episodes), trl_rloo(model_dir, episodes)

    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    with pytest.raises(AssertionError, match="loss differs"):
        assert_same(ours, theirs)
