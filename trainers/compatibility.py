"""Settings that do not fit the recipe or the environment, found before a model is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import gymnasium

from agentrl.envs import ToolEnv
from agentrl.errors import ConfigError
from agentrl.policies.vllm.orders import check_sampling
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.demonstrations import answer_text
from agentrl.trainers.examples import Example, read_examples
from agentrl.trainers.imitation import ImitationRecipe, SelfTaughtRecipe
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import CriticSettings, GroupSettings, PolicySettings, TrainSettings

_DEFAULT_POLICY = PolicySettings().model_dump()


def check(
    recipe: Algorithm, plan: GroupPlan, settings: TrainSettings, make_env: Callable[[], gymnasium.Env[str, str]]
) -> None:
    """Refuses a run that could not work, or not do what its settings say.

    What a run adds to a recipe is checked where it is added (`with_extras`, `with_combined_rewards`).

    Args:
        recipe: As it is in the table.
        plan: Its sampling plan with the run's overrides.
        settings: Of the run.
        make_env: Makes a training environment; called only if the answer lies there.

    Raises:
        ConfigError: Saying what was given, what was expected, and what to do.
        DataError: The file of examples has a row that cannot be used.
    """
    _check_engine(recipe, settings)
    _check_critic(recipe, settings)
    _check_steps(recipe, settings)
    if settings.data is not None:
        _check_data(recipe, settings)
    else:
        _check_groups(recipe, plan, settings)
        _check_environment(replace(recipe, sampling=plan), make_env)


def _check_engine(recipe: Algorithm, settings: TrainSettings) -> None:
    """Whether the engine that samples can do what is asked of it."""
    policy, rollout = settings.policy, settings.rollout
    if policy.engine == "transformers":
        changed = [name for name in PolicySettings.model_fields if getattr(policy, name) != _DEFAULT_POLICY[name]]
        if changed:
            raise ConfigError(
                f"policy.{changed[0]} is for an engine beside the trained network, but policy.engine='transformers' "
                "samples from that network itself. Leave it out, or set policy.engine=vllm."
            )
        return
    if rollout.top_p < 1.0 or rollout.top_k > 0:
        raise ConfigError(
            f"rollout.top_p={rollout.top_p} and rollout.top_k={rollout.top_k} cut the distribution that is sampled "
            "from, and vLLM then does not report the log-probabilities of the whole one, which training needs. Leave "
            "both out, or use policy.engine=transformers."
        )
    check_sampling(rollout.sampling)
    own = [name for name in ("sleep", "gpu_memory") if getattr(policy, name) != _DEFAULT_POLICY[name]]
    if policy.servers and own:
        raise ConfigError(
            f"policy.{own[0]} is about the memory of an engine on the trainer's own GPU; policy.servers have theirs. "
            "Leave one of them out."
        )
    if len(set(policy.servers)) < len(policy.servers):
        raise ConfigError(f"policy.servers names a server twice: {', '.join(policy.servers)}. Name each once.")
    if policy.max_staleness and policy.sleep:
        raise ConfigError(
            "policy.sleep stops the engine during updates, in which policy.max_staleness lets it sample. Leave one of "
            "them out."
        )
    if policy.max_staleness:
        _check_staleness(recipe, settings)


def _check_staleness(recipe: Algorithm, settings: TrainSettings) -> None:
    """Whether episodes of older weights can be trained on."""
    given = f"policy.max_staleness={settings.policy.max_staleness}"
    if settings.data is not None or isinstance(recipe, ImitationRecipe):
        raise ConfigError(f"{given} is about episodes that the policy plays, and this run has none. Leave it out.")
    if not isinstance(recipe, Recipe) or not recipe.allows_replay:
        raise ConfigError(
            f"{given} trains on episodes of an earlier policy, but recipe {recipe.name!r} does not correct for that by "
            "a ratio. Leave it at 0, or use a recipe that does, such as arpo or grpo."
        )
    if recipe.reward is not None or settings.extras.replay is not None:
        what = "its reward model plays" if recipe.reward is not None else "extras.replay keeps"
        raise ConfigError(
            f"{given} samples while an update is made, but {what} episodes between sampling and training. Leave it "
            "at 0."
        )


def _check_critic(recipe: Algorithm, settings: TrainSettings) -> None:
    if not recipe.needs_critic and settings.critic != CriticSettings():
        raise ConfigError(
            f"Settings of a critic were given, but recipe {recipe.name!r} has none. Leave out the section critic, or "
            "use a recipe with a critic, such as ppo."
        )
    if recipe.needs_critic and settings.critic.kind == "model" and settings.model.lora is not None:
        raise ConfigError(
            "critic.kind='model' trains a second model of the policy's size, which is what model.lora is there to "
            "avoid. Set critic.kind=head, which learns values on the hidden states of the policy."
        )


def _check_steps(recipe: Algorithm, settings: TrainSettings) -> None:
    """How an update is cut into optimizer steps."""
    optimizer, tasks = settings.optimizer, settings.rollout.tasks_per_update
    if isinstance(recipe, SelfTaughtRecipe) and (optimizer.epochs, optimizer.mini_batches) != (1, 1):
        raise ConfigError(
            f"Recipe {recipe.name!r} fits the model in {recipe.steps} steps of {recipe.batch} trajectories and more "
            f"later, whatever optimizer.epochs={optimizer.epochs} and optimizer.mini_batches={optimizer.mini_batches} "
            "say. Set both to 1, or use a recipe with other steps."
        )
    if isinstance(recipe, Recipe) and not recipe.surrogate.uses_ratio and optimizer.epochs > 1:
        raise ConfigError(
            f"optimizer.epochs={optimizer.epochs} trains again on the same episodes, but recipe {recipe.name!r} has no "
            "ratio that corrects for what the policy has learned from them. Leave it at 1, or use a recipe with a "
            "ratio, such as grpo or ppo."
        )
    if _needs_prompts(recipe) and tasks // optimizer.mini_batches < 2:
        raise ConfigError(
            f"Recipe {recipe.name!r} estimates its reference point from completions of other tasks, so each mini-batch "
            f"needs at least two tasks; got rollout.tasks_per_update={tasks} in "
            f"optimizer.mini_batches={optimizer.mini_batches}. Raise the first or lower the second."
        )


def _needs_prompts(recipe: Algorithm) -> bool:
    """Whether tasks are compared with each other, for KTO's reference point."""
    return isinstance(recipe, PreferenceRecipe) and recipe.loss.needs_reference_point


def _check_data(recipe: Algorithm, settings: TrainSettings) -> None:
    assert settings.data is not None, "only called with data"
    path = str(settings.data.path)
    if not recipe.learns_from_files:
        raise ConfigError(
            f"data.path={path!r} was given, but recipe {recipe.name!r} learns from fresh episodes only: recorded "
            "examples have no branches, no rewards, and no log-probabilities of the policy that wrote them. Leave out "
            "the section data, or use a recipe for recorded examples, such as dpo or sft."
        )
    if settings.group != GroupSettings():
        raise ConfigError(
            f"Settings of the section group say how episodes are sampled, but with data.path={path!r} none are. Leave "
            "out one of the sections group and data."
        )
    if settings.extras.replay is not None:
        raise ConfigError(
            f"extras.replay trains again on the policy's own episodes, but with data.path={path!r} it plays none. "
            "Leave out one of the two; a file is read as often as the updates need it."
        )
    if settings.rollout.temperature != 1.0:
        raise ConfigError(
            f"Recorded examples were not sampled at rollout.temperature={settings.rollout.temperature}, and would get "
            "the log-probabilities of another policy than the one that wrote them. Leave it at 1 with data.path."
        )
    _check_examples(recipe, read_examples(settings.data.path, settings.data.split, recipe.row_kinds), path)


def _check_examples(recipe: Algorithm, examples: Sequence[Example], path: str) -> None:
    """Whether there is something to learn in rows that are right one by one."""
    completions = [completion for example in examples for completion in example.completions]
    if isinstance(recipe, ImitationRecipe) and not any(completion.good for completion in completions):
        raise ConfigError(
            f"Recipe {recipe.name!r} imitates what was good, but all {len(examples)} rows of {path} have the label "
            "false. Give it good ones, or use kto, which also learns from what was not."
        )
    if _needs_prompts(recipe) and all(example.prompt == examples[0].prompt for example in examples):
        raise ConfigError(
            f"Recipe {recipe.name!r} estimates its reference point from completions of other prompts, but all "
            f"{len(examples)} rows of {path} have the same. Give rows with several prompts, or pairs and dpo."
        )


def _check_groups(recipe: Algorithm, plan: GroupPlan, settings: TrainSettings) -> None:
    if isinstance(recipe, ImitationRecipe) and settings.group != GroupSettings():
        raise ConfigError(
            f"Settings of the section group say how the policy samples episodes, but recipe {recipe.name!r} has the "
            "environment's oracle play one per task. Leave the section out."
        )
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
    hints = isinstance(recipe, SelfTaughtRecipe) and recipe.hint is not None
    for_rewards = (recipe.needs_forks, recipe.needs_states, recipe.needs_turn_rewards)
    if not any((*for_rewards, hints, _needs_prompts(recipe), isinstance(recipe, ImitationRecipe))):
        return
    env = make_env()
    try:
        inner = env.unwrapped
        tool_env = inner if isinstance(inner, ToolEnv) else None
        name = type(inner).__name__
        if recipe.needs_forks and not tool_env:
            raise ConfigError(
                f"Recipe {recipe.name!r} copies half-finished episodes, but {name} cannot be forked. Derive it from "
                "agentrl.ToolEnv, or use a recipe without branching, such as grpo."
            )
        if recipe.needs_states and not (tool_env and tool_env.gives_state_keys):
            raise ConfigError(
                f"Recipe {recipe.name!r} compares turns taken in the same state, but {name} does not name its states. "
                "Override ToolEnv.state_key, or use a recipe that needs no state keys, such as grpo."
            )
        if recipe.needs_turn_rewards and tool_env and not tool_env.rewards_turns:
            raise ConfigError(
                f"Recipe {recipe.name!r} gives the first turn credit for a reward of its own, but {name} rewards no "
                "turns. Override ToolEnv.turn_reward, or use a recipe that needs outcomes only, such as grpo."
            )
        if isinstance(recipe, ImitationRecipe) and not (tool_env and type(tool_env).oracle is not ToolEnv.oracle):
            raise ConfigError(
                f"Recipe {recipe.name!r} imitates demonstrations, but data.path was not given and {name} defines no "
                "oracle. Give data.path, or override ToolEnv.oracle."
            )
        if hints and not (tool_env and _has_answers(tool_env)):
            raise ConfigError(
                f"Recipe {recipe.name!r} hints at the answers of tasks, but {name} names none. Give its tasks an "
                "answer (agentrl.tasks.Task), or use a recipe with hint=None."
            )
        if _needs_prompts(recipe) and tool_env and len(tool_env.task_set()) < 2:
            raise ConfigError(
                f"Recipe {recipe.name!r} estimates its reference point from completions of other tasks, but {name} has "
                "one task only. Give it more tasks, or use dpo."
            )
    finally:
        env.close()


def _has_answers(env: ToolEnv) -> bool:
    """Whether some task can be hinted at."""
    return any(answer_text(task.answer) is not None for task in env.task_set())
