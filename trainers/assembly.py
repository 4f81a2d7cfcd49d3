"""From the settings of a run to its parts: the recipe as overridden, where episodes come from, what learns."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import gymnasium

from agentrl.envs import ToolEnv, make
from agentrl.policies.loading import LoadedModel
from agentrl.rollout.collector import Collector
from agentrl.rollout.continuation import Continuer
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.compatibility import check
from agentrl.trainers.critic import Critic
from agentrl.trainers.demonstrations import OracleEpisodes, SelfTaughtRollouts, answers_in
from agentrl.trainers.examples import read_examples
from agentrl.trainers.extras import with_extras
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.imitation import ImitationLearner, ImitationRecipe, SelfTaughtLearner, SelfTaughtRecipe
from agentrl.trainers.learner import Learner
from agentrl.trainers.models import initial_weights, reference_scores
from agentrl.trainers.multi_reward import with_combined_rewards
from agentrl.trainers.preference.learner import PreferenceLearner
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipes import find_recipe
from agentrl.trainers.recorded import RecordedEpisodes, Surroundings
from agentrl.trainers.replay import ReplayedRollouts
from agentrl.trainers.reward_models.core import RewardModel
from agentrl.trainers.rollouts import EpisodeSource, TaskOrder, TrainingRollouts
from agentrl.trainers.settings import CorrectionSettings, DataSettings, EnvSettings, GroupSettings, TrainSettings
from agentrl.trainers.trust_region_update import TrustRegionUpdater
from agentrl.trainers.update import Updater
from agentrl.trainers.value_models import value_network

_NUM_SEEDS = 1_000_000
"""Tasks of an environment that has no set of them: as many as can be shuffled in a moment."""


def resolve_recipe(settings: TrainSettings) -> Algorithm:
    """The recipe of a run with the run's overrides.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: The recipe does not work with these settings, or in this environment.
        DataError: It learns from a file, and the file is wrong.
    """
    recipe = find_recipe(settings.recipe)
    plan = plan_of(recipe, settings.group)
    check(recipe, plan, settings, env_maker(settings.env, "train"))
    recipe = with_combined_rewards(replace(recipe, sampling=plan), settings.rewards)
    extras = settings.extras
    if isinstance(recipe, Recipe) and settings.policy.engine != "transformers" and extras.correction is None:
        extras = extras.model_copy(update={"correction": CorrectionSettings()})
    return with_extras(recipe, extras)


def build_source(
    recipe: Algorithm,
    settings: TrainSettings,
    loaded: LoadedModel,
    collector: Collector,
    make_env: Callable[[], gymnasium.Env[str, str]],
) -> EpisodeSource:
    """Where the episodes of a run come from.

    Args:
        recipe: As resolved.
        settings: Of the run.
        loaded: The model that is trained.
        collector: Plays training episodes.
        make_env: Makes a training environment.
    """
    if settings.data is not None:
        return _recorded(recipe, settings, settings.data, loaded, make_env)
    order = TaskOrder(num_tasks(make_env), settings.seed)
    tasks_per_update, sampling = settings.rollout.tasks_per_update, settings.rollout.sampling
    match recipe:
        case ImitationRecipe():
            return OracleEpisodes(make_env, loaded.chat, order, tasks_per_update=tasks_per_update)
        case SelfTaughtRecipe():
            answers = answers_in(make_env)
            return SelfTaughtRollouts(
                collector,
                order,
                recipe,
                loaded.chat,
                answers,
                tasks_per_update=tasks_per_update,
                sampling=sampling,
            )
    rollouts = TrainingRollouts(collector, order, recipe, tasks_per_update=tasks_per_update, sampling=sampling)
    replay = settings.extras.replay
    return rollouts if replay is None else ReplayedRollouts(rollouts, groups=replay.groups, max_age=replay.max_age)


def _recorded(
    recipe: Algorithm,
    settings: TrainSettings,
    data: DataSettings,
    loaded: LoadedModel,
    make_env: Callable[[], gymnasium.Env[str, str]],
) -> EpisodeSource:
    examples = read_examples(data.path, data.split, recipe.row_kinds)
    return RecordedEpisodes(
        examples,
        TaskOrder(len(examples), settings.seed),
        loaded.chat,
        Surroundings.of(make_env),
        rows_per_update=settings.rollout.tasks_per_update,
        max_tokens=min(settings.rollout.max_episode_tokens, loaded.context_length),
    )


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
        case PreferenceRecipe():
            return PreferenceLearner(
                recipe,
                settings.optimizer,
                TokenScorer(loaded.model),
                temperature=settings.rollout.temperature,
                total_updates=settings.updates,
                context_length=loaded.context_length,
                reference=reference_scores(loaded, settings) if recipe.needs_reference else None,
            )
        case ImitationRecipe():
            return ImitationLearner(settings.optimizer, TokenScorer(loaded.model), total_updates=settings.updates)
        case SelfTaughtRecipe():
            base = initial_weights(settings)
            return SelfTaughtLearner(recipe, settings.optimizer, TokenScorer(loaded.model), base=base)
    raise TypeError(f"No learner is known for a {type(recipe).__name__}.")


def _build_critic(settings: TrainSettings, scorer: TokenScorer) -> Critic:
    return Critic(value_network(settings.critic, scorer), settings.critic, settings.optimizer)


def build_rewards(
    recipe: Algorithm, settings: TrainSettings, loaded: LoadedModel, continuer: Continuer
) -> RewardModel | None:
    """What judges episodes in place of the environment; None if the recipe leaves that to the environment.

    Args:
        recipe: As resolved.
        settings: Of the run.
        loaded: The model that is trained.
        continuer: Plays training episodes on from the middle.
    """
    if isinstance(recipe, Recipe) and recipe.reward is not None:
        complete = partial(continuer.continue_from, sampling=settings.rollout.sampling)
        return recipe.reward.build(loaded, complete, seed=settings.seed)
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
