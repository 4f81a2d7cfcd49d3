"""From the settings of a run to its parts: the recipe as overridden, where episodes come from, what learns."""

from collections.abc import Callable
from dataclasses import replace

import gymnasium

from agentrl.envs import ToolEnv, make
from agentrl.policies.loading import LoadedModel
from agentrl.rollout.collector import Collector
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.critic import Critic
from agentrl.trainers.extras import with_extras
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import Learner
from agentrl.trainers.models import reference_scores
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipes import find_recipe
from agentrl.trainers.replay import ReplayedRollouts
from agentrl.trainers.reward_models.core import RewardModel
from agentrl.trainers.rollouts import EpisodeSource, TaskOrder, TrainingRollouts
from agentrl.trainers.settings import EnvSettings, GroupSettings, TrainSettings
from agentrl.trainers.trust_region_update import TrustRegionUpdater
from agentrl.trainers.update import Updater
from agentrl.trainers.value_models import value_network

_NUM_SEEDS = 1_000_000
"""Tasks of an environment that has no set of them: as many as can be shuffled in a moment."""


def resolve_recipe(settings: TrainSettings) -> Algorithm:
    """The recipe of a run with the run's overrides.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: The recipe does not work with these settings.
    """
    recipe = find_recipe(settings.recipe)
    return with_extras(replace(recipe, sampling=plan_of(recipe, settings.group)), settings.extras)


def build_source(
    recipe: Algorithm, settings: TrainSettings, collector: Collector, make_env: Callable[[], gymnasium.Env[str, str]]
) -> EpisodeSource:
    """Where the episodes of a run come from.

    Args:
        recipe: As resolved.
        settings: Of the run.
        collector: Plays training episodes.
        make_env: Makes a training environment.
    """
    rollouts = TrainingRollouts(
        collector,
        TaskOrder(num_tasks(make_env), settings.seed),
        recipe,
        tasks_per_update=settings.rollout.tasks_per_update,
        sampling=settings.rollout.sampling,
    )
    replay = settings.extras.replay
    return rollouts if replay is None else ReplayedRollouts(rollouts, groups=replay.groups, max_age=replay.max_age)


def build_learner(recipe: Algorithm, settings: TrainSettings, loaded: LoadedModel) -> Learner:
    """What changes the weights of a run."""
    match recipe:
        case Recipe():
            scorer = TokenScorer(loaded.model)
            build = Updater if recipe.trust_region is None else TrustRegionUpdater
            return build(
                recipe,
                settings.optimizer,
                scorer,
                temperature=settings.rollout.temperature,
                total_updates=settings.updates,
                reference=reference_scores(loaded, settings) if recipe.needs_reference else None,
                critic=_build_critic(settings, scorer) if recipe.needs_critic else None,
            )
    raise TypeError(f"No learner is known for a {type(recipe).__name__}.")


def _build_critic(settings: TrainSettings, scorer: TokenScorer) -> Critic:
    return Critic(value_network(settings.critic, scorer), settings.critic, settings.optimizer)


def build_rewards(recipe: Algorithm, settings: TrainSettings, loaded: LoadedModel) -> RewardModel | None:
    """What judges episodes in place of the environment; None if the recipe leaves that to the environment."""
    if isinstance(recipe, Recipe) and recipe.reward is not None:
        return recipe.reward.build(loaded, seed=settings.seed)
    return None


def plan_of(recipe: Algorithm, overrides: GroupSettings) -> GroupPlan:
    """The recipe's sampling plan with a run's overrides."""
    changes = {name: value for name, value in overrides.model_dump().items() if value is not None}
    plan = recipe.sampling
    if changes.get("rule") is BranchRule.NONE:
        changes |= {"initial": None, "dynamic": False}
    elif "initial" in changes:
        changes.setdefault("dynamic", False)
    elif changes.get("dynamic"):
        changes["initial"] = None
    elif "size" in changes and plan.initial is not None:
        changes["initial"] = max(1, changes["size"] * plan.initial // plan.size)  # keep the recipe's share
    return replace(plan, **changes)


def env_maker(settings: EnvSettings, split: str) -> Callable[[], gymnasium.Env[str, str]]:
    """A function that makes environments of one split."""
    return lambda: make(settings.id, **{"split": split, **settings.arguments})


def num_tasks(make_env: Callable[[], gymnasium.Env[str, str]]) -> int:
    """Size of an environment's split; a number of seeds where it is no `ToolEnv`."""
    env = make_env()
    try:
        return len(env.unwrapped.task_set()) if isinstance(env.unwrapped, ToolEnv) else _NUM_SEEDS
    finally:
        env.close()
