"""KTO: Kahneman-Tversky Optimization (arXiv:2402.01306)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.preference.builders import BySuccess
from agentrl.trainers.preference.parts import KTO
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import recipe


@recipe
def kto() -> PreferenceRecipe:
    """Single trajectories that were good or not, no pairs; gains and losses count from a reference point z0.

    z0 is the mean log-ratio of trajectories after the prompts of other tasks, action tokens only, over the whole
    mini-batch; TRL takes it over the batch of one device. So a mini-batch needs two tasks with different prompts.
    """
    return PreferenceRecipe(
        name="kto",
        paper="2402.01306",
        idea="learn from single trajectories labelled good or bad, no pairs",
        sampling=GroupPlan(size=8),
        builder=BySuccess(),
        loss=KTO(beta=0.1, weight_desirable=1.0, weight_undesirable=1.0),
    )
