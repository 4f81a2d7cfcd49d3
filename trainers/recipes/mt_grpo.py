"""MT-GRPO: Multi-Turn GRPO with turn-level credit (arXiv:2505.11821)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.step_advantages import FirstTurn


@recipe
def mt_grpo() -> Recipe:
    """The first turn, in which a tool is chosen and called, answers for its own reward as well as for the outcome.

    It takes an environment with rewards before the end (`ToolEnv.turn_reward`): without them it is GRPO with a token
    mean. The paper has two turns, one call and one answer; with more, the rewards of all but the first count as
    outcome, as `ProcessNormalized` would not have it. The group size is today's usual one.
    """
    return replace(
        grpo(),
        name="mt_grpo",
        paper="2505.11821",
        idea="give the first turn credit for its own reward beside the outcome",
        sampling=GroupPlan(size=8),
        advantage=FirstTurn(weight=1.0),
        aggregation=TokenMean(),
    )
