"""GiGPO: Group-in-Group Policy Optimization (arXiv:2505.10978)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.kl import KLEstimator, KLPenalty
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.step_advantages import StateGroups


@recipe
def gigpo() -> Recipe:
    """Trajectories are compared with their group, and turns with the turns that were taken in the same state.

    The environment has to name states (`ToolEnv.state_key`). Numbers are those of the authors' ALFWorld runs; their
    search runs put the KL coefficient at 0.001. Differences from verl-agent:
    - it writes a prompt of its own for every turn, with a summary of what came before; here a trajectory is one row,
      and each of its turns is compared all the same;
    - its group statistics count long episodes more often (`StateGroups`);
    - it can take similar observations for equal; that belongs into `state_key` here;
    - it fines invalid actions by 0.1, which belongs into the environment's `turn_reward`.
    """
    return replace(
        grpo(),
        name="gigpo",
        paper="2505.10978",
        idea="also compare turns that were taken in the same state",
        sampling=GroupPlan(size=8),
        advantage=StateGroups(weight=1.0, gamma=0.95, scale=False),
        aggregation=TokenMean(),
        kl=KLPenalty(coef=0.01, estimator=KLEstimator.K3),
    )
