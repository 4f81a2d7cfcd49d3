"""Bad combinations are refused when the config is read: what was given, what was expected, what to do."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from tree_cases import random_tree, tiny_model

from agentrl.config import load_config
from agentrl.envs import Episode, ToolEnv, make
from agentrl.errors import ConfigError, DataError
from agentrl.rollout.plan import GroupPlan
from agentrl.tasks import Task
from agentrl.trainers import RECIPES, TrainSettings
from agentrl.trainers.assembly import resolve_recipe
from agentrl.trainers.compatibility import check
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.imitation import SelfTaughtRecipe
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater

PAIR = {"prompt": "6 * 7?", "chosen": "42", "rejected": "41"}
GOOD = {"prompt": "6 * 7?", "completion": "42", "label": True}
BAD = {"prompt": "5 * 7?", "completion": "36", "label": False}


class Bare(ToolEnv):
    """No oracle, no state keys, no answers, one task."""

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task("t", "x")]

    def reward(self, task: Task, episode: Episode) -> float:
        return 0.0


class Foreign(gymnasium.Env[str, str]):
    """Not a `ToolEnv`."""


def settings_of(recipe: str, *overrides: str) -> TrainSettings:
    return load_config(TrainSettings, overrides=["env.id=agentrl/Arithmetic-v0", f"recipe={recipe}", *overrides])


def rows(path: Path, *examples: Any) -> str:
    """Writes a file, and returns the override that names it."""
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return f"data.path={path}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_with_its_own_settings(recipe: str) -> None:
    """In an environment that has all they ask for."""
    entry = RECIPES[recipe]
    settings = settings_of(recipe)

    class Complete(Bare):
        def tasks(self, split: str) -> Sequence[Task]:
            return [Task(name, name, "1") for name in "ab"]

        def oracle(self, task: Task, episode: Episode) -> str:
            return "1"

        def state_key(self) -> str:
            return "s"

        def turn_reward(self, task: Task, episode: Episode) -> float:
            return 0.5

    check(entry, entry.sampling, settings, Complete)


@pytest.mark.parametrize(
    ("recipe", "overrides", "given", "expected", "remedy"),
    [
        ("grpo", ["group.size=1"], "got group.size=1", "needs groups of at least 2", "use a recipe that does not comp"),
        ("rloo", ["group.size=1"], "got group.size=1", "needs groups of at least 2", "such as reinforce or kto"),
        ("dpo", ["group.size=1"], "got group.size=1", "needs groups of at least 2", "or give data.path"),
        ("orpo", ["group.size=1"], "got group.size=1", "needs groups of at least 2", "Raise it"),
        ("dpo_siblings", ["group.rule=none"], "got group.rule='none'", "trajectories that branched", "or use dpo"),
        ("sft", ["group.size=4"], "the section group", "the environment's oracle play one", "Leave the section out"),
        ("grpo", ["critic.kind=head"], "Settings of a critic were given", "'grpo' has none", "such as ppo"),
        ("dpo", ["critic.warmup_updates=3"], "Settings of a critic", "'dpo' has none", "Leave out the section critic"),
        ("ppo", ["critic=null"], "critic:", "expected an object", "got None"),
        ("ppo", ["model.lora.rank=8"], "critic.kind='model'", "model.lora is there to avoid", "Set critic.kind=head"),
        ("star", ["optimizer.epochs=2"], "optimizer.epochs=2", "in 40 steps of 8 trajectories", "Set both to 1"),
        ("star", ["optimizer.mini_batches=4"], "mini_batches=4", "in 40 steps of 8 trajectories", "Set both to 1"),
        ("reinforce", ["optimizer.epochs=2"], "optimizer.epochs=2", "'reinforce' has no ratio", "Leave it at 1"),
        ("remax", ["optimizer.epochs=3"], "optimizer.epochs=3", "'remax' has no ratio", "such as grpo or ppo"),
        ("kto", ["optimizer.mini_batches=5"], "mini_batches=5", "at least two tasks", "Raise the first or lower"),
        ("kto", ["rollout.tasks_per_update=1"], "tasks_per_update=1", "at least two tasks", "Raise the first or lower"),
        ("reinforce", ["extras.replay.groups=2"], "extras.replay", "does not correct for that", "such as grpo or bapo"),
        ("trpo", ["extras.replay.groups=2"], "extras.replay", "'trpo' does not correct", "Leave it out"),
        ("trpo", ["extras.two_sided_clip=4"], "extras.two_sided_clip", "'trpo' has Clip(low=inf", "such as grpo"),
        ("star", ["extras.replay.groups=2"], "extras.replay", "'star' learns without", "use an on-policy recipe"),
        ("dpo", ["extras.top_entropy=0.2"], "extras.top_entropy", "'dpo' learns without", "Leave it out"),
        ("kto", ["rewards.weights={a: 2}"], "`rewards` combines", "'kto' does not learn from that", "Leave it out"),
    ],
)
def test_settings_that_do_not_fit_the_recipe(
    recipe: str, overrides: list[str], given: str, expected: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_recipe(settings_of(recipe, *overrides))
    for part in (given, expected, remedy):
        assert part in str(refused.value)


@pytest.mark.parametrize("recipe", ["bapo", "grpo", "star", "dpo_siblings", "gapo"])
def test_files_are_for_recipes_that_can_use_them(tmp_path: Path, recipe: str) -> None:
    """BAPO among them: a file has no behaviour log-probabilities."""
    with pytest.raises(ConfigError) as refused:
        resolve_recipe(settings_of(recipe, rows(tmp_path / "a.jsonl", PAIR)))
    given = f"a.jsonl' was given, but recipe {recipe!r} learns from fresh episodes only"
    for part in (given, "no log-probabilities of", "dpo or sft"):
        assert part in str(refused.value)


def test_bapo_refuses_what_nobody_sampled() -> None:
    """Trees of demonstrations, if somebody hands them over: it says why, and what would learn from them."""
    recipe, model = RECIPES["bapo"], tiny_model()
    assert isinstance(recipe, Recipe)
    learner = Updater(recipe, OptimizerSettings(), TokenScorer(model), temperature=1.0, total_updates=1)
    tree = random_tree(0)
    with pytest.raises(DataError, match=r"by the policy that sampled them, .* demonstrations and logs\. .* sft or kto"):
        learner.update([tree], number=0, seed=0)
    for segment in tree.segments:  # negative control
        segment.logprobs = [-1.0] * len(segment.token_ids) if any(segment.action_mask) else []
    assert "loss" in learner.update([tree], number=0, seed=0)


@pytest.mark.parametrize("recipe", ["dpo", "ipo", "ipo_token_mean", "orpo", "kto", "sft"])
def test_recipes_that_learn_from_pairs(tmp_path: Path, recipe: str) -> None:
    other = {**PAIR, "prompt": "5 * 7?"}
    assert resolve_recipe(settings_of(recipe, rows(tmp_path / "a.jsonl", PAIR, other))).name == recipe


@pytest.mark.parametrize(
    ("recipe", "examples", "overrides", "parts"),
    [
        ("dpo", [PAIR], ["group.size=4"], ["the section group", "with data.path=", "Leave out one of the sections"]),
        ("dpo", [PAIR], ["extras.replay.groups=1"], ["extras.replay", "it plays none", "Leave out one of the two"]),
        ("dpo", [PAIR], ["rollout.temperature=0.7"], ["rollout.temperature=0.7", "another policy", "Leave it at 1"]),
        ("sft", [BAD, BAD], [], ["'sft' imitates what was good", "all 2 rows", "label false", "or use kto"]),
        ("kto", [GOOD, {**GOOD, "label": False}], [], ["other prompts", "all 2 rows", "have the same", "dpo"]),
    ],
)
def test_settings_that_do_not_fit_a_file(
    tmp_path: Path, recipe: str, examples: list[Any], overrides: list[str], parts: list[str]
) -> None:
    data = rows(tmp_path / "a.jsonl", *examples)
    with pytest.raises(ConfigError) as refused:
        resolve_recipe(settings_of(recipe, data, *overrides))
    for part in parts:
        assert part in str(refused.value)


def test_files_of_the_wrong_kind(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", GOOD, BAD)
    with pytest.raises(DataError, match="row 1 holds prompt, completion and label; this recipe learns from chosen"):
        resolve_recipe(settings_of("dpo", data))
    assert resolve_recipe(settings_of("kto", data)).name == "kto"
    assert resolve_recipe(settings_of("sft", data)).name == "sft"  # one good row will do
    with pytest.raises(DataError, match="does not exist"):
        resolve_recipe(settings_of("dpo", f"data.path={tmp_path / 'nothing.jsonl'}"))


@pytest.mark.parametrize(
    ("recipe", "env", "parts"),
    [
        ("gigpo", Bare, ["'gigpo' compares turns taken in the same state", "Bare does not name", "ToolEnv.state_key"]),
        ("gigpo", Foreign, ["Foreign does not name its states", "such as grpo"]),
        ("mt_grpo", Bare, ["'mt_grpo' gives the first turn", "Bare rewards no turns", "ToolEnv.turn_reward"]),
        ("arpo", Foreign, ["'arpo' copies half-finished", "Foreign cannot be forked", "ToolEnv", "such as grpo"]),
        ("prm_monte_carlo", Foreign, ["'prm_monte_carlo' copies", "Foreign cannot be forked"]),
        ("sft", Bare, ["'sft' imitates demonstrations", "Bare defines no oracle", "Give data.path, or override"]),
        ("sft", Foreign, ["data.path was not given", "Foreign defines no oracle"]),
        ("star", Bare, ["'star' hints at the answers", "Bare names none", "agentrl.tasks.Task", "hint=None"]),
        ("star", Foreign, ["Foreign names none", "hint=None"]),
        ("kto", Bare, ["'kto' estimates its reference point", "Bare has one task only", "or use dpo"]),
    ],
)
def test_environments_that_do_not_give_what_a_recipe_needs(recipe: str, env: Any, parts: list[str]) -> None:
    entry = RECIPES[recipe]
    with pytest.raises(ConfigError) as refused:
        check(entry, entry.sampling, settings_of(recipe), env)
    for part in parts:
        assert part in str(refused.value)


def test_without_a_hint_no_answer_is_needed() -> None:
    star = RECIPES["star"]
    assert isinstance(star, SelfTaughtRecipe)
    for env in (Bare, Foreign):
        check(replace(star, hint=None), star.sampling, settings_of("star"), env)


def test_no_environment_is_made_if_the_answer_does_not_lie_there(tmp_path: Path) -> None:
    def explode() -> Any:
        raise AssertionError("made")

    for recipe in ("grpo", "dpo", "ppo"):
        check(RECIPES[recipe], RECIPES[recipe].sampling, settings_of(recipe), explode)
    data = rows(tmp_path / "a.jsonl", PAIR)
    check(RECIPES["sft"], RECIPES["sft"].sampling, settings_of("sft", data), explode)


def test_without_branches_any_environment_will_do() -> None:
    check(RECIPES["arpo"], GroupPlan(size=4), settings_of("arpo"), Foreign)


def test_the_environment_is_closed() -> None:
    closed: list[bool] = []

    class Closing(Bare):
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(ConfigError):
        check(RECIPES["sft"], RECIPES["sft"].sampling, settings_of("sft"), Closing)
    check(RECIPES["sft"], RECIPES["sft"].sampling, settings_of("sft"), lambda: make("agentrl/Arithmetic-v0"))
    assert closed == [True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.max_staleness=1"], r"policy.max_staleness is for an engine beside the trained network"),
        (["policy.servers=[http://localhost:8000]"], r"policy.servers is for an engine beside"),
        (["policy.engine=vllm", "rollout.top_p=0.9"], r"rollout.top_p=0.9 .* cut the distribution"),
        (["policy.engine=vllm", "rollout.top_k=5"], r"rollout.top_k=5 cut the distribution"),
        (["policy.engine=vllm", "policy.sleep=true", "policy.servers=[http://a]"], r"policy.servers have theirs"),
        (["policy.engine=vllm", "policy.gpu_memory=0.5", "policy.servers=[http://a]"], r"policy.gpu_memory is about"),
        (
            ["policy.engine=vllm", "policy.servers=[http://a,http://b,http://a]"],
            r"names a server twice: http://a, http",
        ),
        (["policy.engine=vllm", "rollout.temperature=3"], r"temperature 0 \(greedy\) or from 0\.\d+ to .*, got 3\.0"),
        (["policy.engine=vllm", "policy.sleep=true", "policy.max_staleness=1"], r"lets it sample"),
        (["policy.engine=vllm", "policy.max_staleness=1", "recipe=reinforce"], r"does not correct for that by a ratio"),
        (["policy.engine=vllm", "policy.max_staleness=1", "recipe=dpo"], r"does not correct for that by a ratio"),
        (["policy.engine=vllm", "policy.max_staleness=1", "recipe=sft"], r"this run has none"),
        (["policy.engine=vllm", "policy.max_staleness=1", "extras.replay.groups=2"], r"extras.replay keeps"),
        (["policy.engine=vllm", "policy.max_staleness=1", "recipe=prm_model"], r"its reward model plays"),
    ],
)
def test_an_engine_that_cannot_do_what_is_asked_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_recipe(settings_of("grpo", *overrides))


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_fit_together(path: Path) -> None:
    assert resolve_recipe(load_config(TrainSettings, path)).name


def test_there_are_examples_for_gpus() -> None:
    assert len(EXAMPLES) >= 5
