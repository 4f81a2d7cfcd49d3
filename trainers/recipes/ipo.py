"""IPO: Identity Preference Optimization (arXiv:2310.12036)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.preference.builders import BestAgainstWorst
from agentrl.trainers.preference.parts import IPO
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import recipe


@recipe
def ipo() -> PreferenceRecipe:
    """The gap between the log-ratios of two trajectories is fitted to 1 / (2 tau), instead of growing without end.

    Sums over action tokens, as in the paper. TRL divides by the number of tokens first: `ipo_token_mean`.
    """
    return PreferenceRecipe(
        name="ipo",
        paper="2310.12036",
        idea="DPO with a finite target, so that certain preferences do not push forever",
        sampling=GroupPlan(size=8),
        builder=BestAgainstWorst(),
        loss=IPO(tau=0.1),
    )


@recipe
def ipo_token_mean() -> PreferenceRecipe:
    """IPO on log-ratios per token, as TRL has it: a long trajectory then counts no more than a short one."""
    return replace(
        ipo(), name="ipo_token_mean", idea="IPO on log-ratios per token (TRL's)", loss=IPO(tau=0.1, token_mean=True)
    )
