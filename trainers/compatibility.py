"""Settings that do not fit the recipe or the environment, found before a model is loaded."""

from collections.abc import Callable

import gymnasium

from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.examples import read_examples
from agentrl.trainers.imitation import ImitationRecipe, SelfTaughtRecipe
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.settings import CriticSettings, GroupSettings, TrainSettings


def check(
    recipe: Algorithm, plan: GroupPlan, settings: TrainSettings, make_env: Callable[[], gymnasium.Env[str, str]]
) -> None:
    """Refuses a run that could not work, or in which a setting would be without effect.

    Args:
        recipe: As it is in the table.
        plan: Its sampling plan with the run's overrides.
        settings: Of the run.
        make_env: Makes a training environment; called only if the answer lies there.

    Raises:
        ConfigError: Saying what was given, what was expected, and what to do.
        DataError: The file of examples has a row that cannot be used.
    """
    _check_critic(recipe, settings)
    if settings.data is not None:
        _check_data(recipe, settings)
    else:
        _check_groups(recipe, plan)
        _check_environment(recipe, make_env)
    if isinstance(recipe, PreferenceRecipe) and recipe.loss.needs_reference_point:
        _check_mini_batches(recipe, settings)


def _check_critic(recipe: Algorithm, settings: TrainSettings) -> None:
    if not recipe.needs_critic and settings.critic != CriticSettings():
        raise ConfigError(
            f"Settings of a critic were given, but recipe {recipe.name!r} has none. Leave out the section critic, or "
            "use a recipe with a critic, such as ppo."
        )


def _check_data(recipe: Algorithm, settings: TrainSettings) -> None:
    assert settings.data is not None, "only called with data"
    if not recipe.learns_from_files:
        raise ConfigError(
            f"data.path={str(settings.data.path)!r} was given, but recipe {recipe.name!r} learns from fresh episodes "
            "only. Leave out the section data, or use a recipe for recorded examples, such as dpo or sft."
        )
    if settings.group != GroupSettings():
        raise ConfigError(
            "Settings of the section group say how episodes are sampled, but with data.path none are. Leave out one of "
            "the sections group and data."
        )
    if settings.rollout.temperature != 1.0:
        raise ConfigError(
            f"Recorded examples were not sampled at rollout.temperature={settings.rollout.temperature}, and would get "
            "the log-probabilities of another policy than the one that wrote them. Leave it at 1 with data.path."
        )
    read_examples(settings.data.path, settings.data.split, recipe.row_kinds)


def _check_groups(recipe: Algorithm, plan: GroupPlan) -> None:
    if plan.size < recipe.min_group_size:
        file = " or give data.path, a file of recorded examples," if recipe.learns_from_files else ""
        raise ConfigError(
            f"Recipe {recipe.name!r} compares trajectories of one task and needs groups of at least "
            f"{recipe.min_group_size}, got group.size={plan.size}. Raise it,{file} or use a recipe that does not "
            "compare, such as reinforce or kto."
        )
    branches = isinstance(recipe, PreferenceRecipe) and recipe.builder.needs_branches
    if branches and plan.rule is BranchRule.NONE:
        raise ConfigError(
            f"Recipe {recipe.name!r} compares trajectories that branched, got group.rule='none'. Leave group.rule out, "
            "or use dpo."
        )


def _check_environment(recipe: Algorithm, make_env: Callable[[], gymnasium.Env[str, str]]) -> None:
    """Whether the environment gives what the recipe takes from it."""
    rationalises = isinstance(recipe, SelfTaughtRecipe) and recipe.hint is not None
    if not (recipe.needs_states or rationalises or isinstance(recipe, ImitationRecipe)):
        return
    env = make_env()
    try:
        inner = env.unwrapped
        known = isinstance(inner, ToolEnv)
        name = type(inner).__name__
        if recipe.needs_states and not (isinstance(inner, ToolEnv) and inner.gives_state_keys):
            raise ConfigError(
                f"Recipe {recipe.name!r} compares turns taken in the same state, but {name} does not name its states. "
                "Override ToolEnv.state_key, or use a recipe that needs no state keys, such as grpo."
            )
        if isinstance(recipe, ImitationRecipe) and not (known and type(inner).oracle is not ToolEnv.oracle):
            raise ConfigError(
                f"Recipe {recipe.name!r} imitates demonstrations, but data.path was not given and {name} defines no "
                "oracle. Give data.path, or override ToolEnv.oracle."
            )
        if rationalises and not known:
            raise ConfigError(
                f"Recipe {recipe.name!r} hints at the answers of tasks, and {name} is no ToolEnv whose tasks have any. "
                "Use a ToolEnv, or a recipe with hint=None."
            )
    finally:
        env.close()


def _check_mini_batches(recipe: Algorithm, settings: TrainSettings) -> None:
    tasks, parts = settings.rollout.tasks_per_update, settings.optimizer.mini_batches
    if tasks // parts < 2:
        raise ConfigError(
            f"Recipe {recipe.name!r} estimates its reference point from completions of other tasks, so each mini-batch "
            f"needs at least two tasks; got rollout.tasks_per_update={tasks} in optimizer.mini_batches={parts}. Raise "
            "the first or lower the second."
        )
