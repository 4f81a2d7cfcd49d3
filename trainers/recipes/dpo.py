"""DPO: Direct Preference Optimization (arXiv:2305.18290)."""

from dataclasses import replace

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.preference.builders import BestAgainstWorst, Siblings
from agentrl.trainers.preference.parts import DPO
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import recipe


@recipe
def dpo() -> PreferenceRecipe:
    """Of two trajectories of a task the better one is to gain more on the reference than the worse one.

    The paper's loss with its beta of 0.1 on sums over action tokens, which is also TRL's default. The paper learns from
    people's choices in a file (`data.path`); without one, the best trajectory of each group is compared with the worst.
    Long trajectories have large log-ratios, at which the sigmoid saturates: lower beta, or compare per token
    (`ipo_token_mean`).
    """
    return PreferenceRecipe(
        name="dpo",
        paper="2305.18290",
        idea="raise the better of two trajectories over the worse, relative to the reference",
        sampling=GroupPlan(size=8),
        builder=BestAgainstWorst(),
        loss=DPO(beta=0.1),
    )


@recipe
def dpo_siblings() -> PreferenceRecipe:
    """DPO on the branches of ARPO's rollout: what two trajectories did before they parted cancels.

    Not from a paper. The rollout is that of `arpo`.
    """
    return replace(
        dpo(),
        name="dpo_siblings",
        idea="DPO between trajectories that branched at the same tool result",
        sampling=GroupPlan(
            size=16, initial=8, rule=BranchRule.PAPER, alpha=0.5, beta=0.2, tau=0.5, probe_tokens=20, max_branches=1
        ),
        builder=Siblings(),
    )
