"""Dr. GRPO: GRPO done right (Understanding R1-Zero-Like Training, arXiv:2503.20783)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.advantages import GroupCentered
from agentrl.trainers.aggregation import Constant
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo


@recipe
def dr_grpo() -> Recipe:
    """GRPO without its two normalizers: 1 / std favors tasks that are nearly solved, 1 / length favors long failures.

    The mean still includes the trajectory itself (leaving it out would be RLOO). 3000 is the token budget of the
    authors' scripts; set it to that of your episodes. No KL. In TRL, `loss_type="dr_grpo"` changes the aggregation
    only, `scale_rewards="none"` belongs to it; in verl, the constant is the padded width of the batch unless fixed.
    """
    return replace(
        grpo(),
        name="dr_grpo",
        paper="2503.20783",
        idea="GRPO without dividing by the group's spread and by each trajectory's length",
        sampling=GroupPlan(size=8),
        advantage=GroupCentered(),
        aggregation=Constant(3000),
        kl=None,
    )
