"""Process rewards: every turn gets what it changed in the expected return (arXiv:2305.20050, arXiv:2312.08935)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.arpo import arpo
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.reward_models.step_model import StepModel
from agentrl.trainers.reward_models.step_values import BranchValues, MonteCarloValues
from agentrl.trainers.step_advantages import ProcessNormalized


@recipe
def prm() -> Recipe:
    """ARPO's tree tells what each turn was worth, and DeepSeekMath's process supervision makes advantages of it.

    The value of a turn is the mean return of the leaves below it (Math-Shepherd's automatic labels, with the branches
    as completions). Its reward is the difference to the value before, so that a trajectory earns its return, less the
    prompt's value, however many turns it takes; raw step scores would pay for every further step. Over a group these
    rewards add up to 0, so normalizing them only scales, and the advantage of a turn is what was still to come: its
    return minus the value before the turn.
    """
    return replace(
        grpo(),
        name="prm",
        paper="2312.08935",
        idea="reward each turn by how much it changed the expected return, read off a branching tree",
        sampling=arpo().sampling,
        advantage=ProcessNormalized(eps=1e-6),
        reward=BranchValues(),
    )


@recipe
def prm_monte_carlo() -> Recipe:
    """The same with values from eight completions of the episode after each turn, as in Math-Shepherd.

    Exact in the limit, and dear: nine episodes are played for each that is trained on, if episodes have two turns.
    """
    return replace(
        prm(),
        name="prm_monte_carlo",
        idea="reward each turn by how much it changed the success of completions from there",
        sampling=GroupPlan(size=8),
        reward=MonteCarloValues(num_completions=8),
    )


@recipe
def prm_model() -> Recipe:
    """The same with the values of a model that learns, from the tree's shares of solved leaves, to tell them itself."""
    return replace(
        prm(),
        name="prm_model",
        idea="reward each turn by how much it changed the success that a learned step model expects",
        reward=StepModel(labels=BranchValues()),
    )
