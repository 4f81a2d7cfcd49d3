"""Where episodes to imitate come from: the oracle, and the policy itself, told the answer where it failed (STaR)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import gymnasium
import pytest
from test_recorded import Instructing
from transformers import PreTrainedModel

from agentrl.chat.template import ChatFormat
from agentrl.envs import Episode, ToolEnv, make
from agentrl.errors import ConfigError
from agentrl.messages import user
from agentrl.policies.core import Request, Sampling
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.rollout.collector import Collector
from agentrl.rollout.plan import GroupPlan
from agentrl.tasks import Task
from agentrl.tools import tool
from agentrl.trainers.demonstrations import OracleEpisodes, SelfTaughtRollouts, answer_text, answers_in
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.imitation import SelfTaughtLearner, SelfTaughtRecipe
from agentrl.trainers.rollouts import Harvest, TaskOrder
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree

RECIPE = SelfTaughtRecipe(
    name="star", paper="", idea="", sampling=GroupPlan(size=1), hint="Psst, hint: it is {answer}!", steps=2, batch=2
)
LOOK = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
ANSWERS: tuple[Any, ...] = ("10", ["11", "eleven"], 12, "13", None, "15")


@tool(inline=True)
def look() -> str:
    """Looks into the vault."""
    return "Something glitters."


class Vault(ToolEnv):
    """A number is to be told after a look. Keeps all that it is told and all that it says."""

    tools = (look,)
    heard: ClassVar[list[str]] = []

    def tasks(self, split: str) -> Sequence[Task]:
        ending = {5: " Give a hint of it."}
        return [Task(f"t{i}", f"{i}: What is in it?{ending.get(i, '')}", answer) for i, answer in enumerate(ANSWERS)]

    def reward(self, task: Task, episode: Episode) -> float:
        return float((episode.answer or "").endswith(f"{10 + int(task.id[1:])}") and bool(episode.results("look")))

    def reset(self, **arguments: Any) -> Any:
        outcome = super().reset(**arguments)
        self.heard.append(repr((arguments, outcome)))
        return outcome

    def step(self, action: str) -> Any:
        outcome = super().step(action)
        self.heard.append(repr((action, outcome, self.episode)))
        return outcome


@pytest.fixture(scope="module")
def chat(byte_tokenizer: Any) -> ChatFormat:
    return ChatFormat(byte_tokenizer)


@dataclass
class World:
    """STaR over the vault, with a policy that knows the answer of task 0 and otherwise believes what it is told."""

    chat: ChatFormat
    replies: dict[int, Callable[[str], str]] = field(default_factory=dict)
    """By task: from the answer it was told to what it says; others repeat it."""
    requests: list[Request] = field(default_factory=list)

    def script(self, request: Request, text: str) -> Reply:
        self.requests.append(request)
        if "<tool_response>" not in text:
            return Reply(LOOK)
        task = int(text.split(": What is in")[0][-1])
        if task == 0:
            return Reply("It is 10")
        if "Psst" not in text:
            return Reply("I do not know")
        told = text.split("hint: it is ")[1].split("!")[0]
        return Reply(self.replies.get(task, lambda answer: f"It is {answer}")(told))

    def sample(self, tasks: int = 6, plan: GroupPlan | None = None, **changes: Any) -> Harvest:
        policy = ScriptedPolicy(self.chat.tokenizer, self.script, end_of_turn_id=self.chat.end_of_turn_id)
        recipe = replace(RECIPE, **changes, sampling=plan or RECIPE.sampling)
        source = SelfTaughtRollouts(
            Collector(policy, self.chat, Vault, vocab_size=1000),
            TaskOrder(6, seed=0),
            recipe,
            self.chat,
            answers_in(Vault),
            tasks_per_update=tasks,
            sampling=Sampling(),
        )
        return source.sample(seed=1)


@pytest.fixture
def world(chat: ChatFormat) -> World:
    Vault.heard.clear()
    return World(chat)


def solved(harvest: Harvest) -> dict[str, int]:
    """Trajectories that are imitated, by task."""
    counts: dict[str, int] = {}
    for tree in harvest.kept:
        counts[tree.task_id] = counts.get(tree.task_id, 0) + len(tree.leaves)
    return counts


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(ids[i : i + len(part)]) == list(part) for i in range(len(ids) - len(part) + 1))


def paths(trees: Sequence[Tree]) -> list[list[int]]:
    return [tree.token_ids(leaf.segment) for tree in trees for leaf in tree.leaves]


# The hint ------------------------------------------------------------------------------------------------------------


def test_generate_filter_rationalise(world: World) -> None:
    """Task 0 is solved without help; 1, 2, 3 and 5 with it; task 4 has no answer to hint at."""
    harvest = world.sample()
    assert solved(harvest) == {"t0": 1, "t1": 1, "t2": 1, "t3": 1, "t5": 1}
    assert [tree.metadata.get("hinted", False) for tree in harvest.kept] == [False, True, True, True, True]
    assert len(harvest.trees) == 6  # what is reported is what the policy did by itself
    expected = {"success": 1 / 6, "kept_episodes": 1.0, "hinted_tasks": 4.0, "kept_hinted_episodes": 4.0}
    assert {name: harvest.metrics[name] for name in expected} == expected
    assert all(leaf.success for tree in harvest.kept for leaf in tree.leaves)


def test_no_token_of_a_hint_is_trained_on(world: World, chat: ChatFormat, tiny_llama: PreTrainedModel) -> None:
    """Every prompt is the plain one token by token, and what the model is given in the fit has the hint nowhere."""
    harvest = world.sample()
    env = Vault()
    schemas = [tool.schema for tool in env.tools]
    for tree in [*harvest.kept, *harvest.trees]:
        task = env.task_set()[int(tree.task_id[1:])]
        assert tree.segments[0].token_ids == chat.prompt_ids([user(str(task.prompt))], schemas)
        assert tree.segments[0].action_mask == [0] * len(tree.segments[0].token_ids)
    env.close()
    hints = [chat.tokenizer.encode(f"Psst, hint: it is {answer}!", add_special_tokens=False) for answer in (11, 12, 13)]
    psst = chat.tokenizer.encode("Psst", add_special_tokens=False)
    assert all(any(contains(request.token_ids, hint) for request in world.requests) for hint in hints)
    assert not any(contains(path, psst) for path in paths([*harvest.kept, *harvest.trees]))
    assert "Psst" not in str([tree.to_json() for tree in harvest.kept])

    model, fed = copy.deepcopy(tiny_llama), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: fed.append(args[0].flatten().tolist()))
    base = [parameter.detach().clone() for parameter in model.parameters()]
    learner = SelfTaughtLearner(RECIPE, OptimizerSettings(), TokenScorer(model), base=base)
    assert learner.update(harvest.kept, number=0, seed=0)["fit_steps"] == 2.0
    glitter = chat.tokenizer.encode("Something glitters", add_special_tokens=False)
    assert any(contains(row, glitter) for row in fed)  # so that what follows could be found
    assert not any(contains(row, psst) for row in fed)


def test_the_environment_never_hears_of_a_hint(world: World) -> None:
    """Nor does it give anything away: results come from calls that were made."""
    harvest = world.sample()
    assert len(Vault.heard) == 3 * (6 + 4)  # a reset and two steps of every episode, the hinted ones included
    assert "Psst" not in "".join(Vault.heard)
    for tree in harvest.kept:
        assert [segment.origin for segment in tree.path(tree.leaves[0].segment)][2] == "environment"
        assert tree.leaves[0].tool_calls == {"look": 1}


@pytest.mark.parametrize(
    "said",
    [
        "You said: psst, HINT: it is {}! So {}",  # the hint itself, in other letters
        "By the hint it is {}",
        "The answer is given, so {}",
        "The answer was given: {}",
        "My given answer is {}",
    ],
)
def test_solutions_that_speak_of_the_hint_are_thrown_away(world: World, said: str) -> None:
    world.replies = {2: lambda answer: said.format(*[answer] * said.count("{}"))}
    assert solved(world.sample()) == {"t0": 1, "t1": 1, "t3": 1, "t5": 1}
    if "hint: it is" not in said.lower():  # negative control: right but for those words
        assert solved(world.sample(giveaways=()))["t2"] == 1


def test_words_of_the_task_give_nothing_away(world: World) -> None:
    """Task 5 asks for a hint: saying so is no proof. The hint itself is."""
    world.replies = {5: lambda answer: f"My hint is {answer}", 3: lambda answer: f"My hint is {answer}"}
    assert solved(world.sample()) == {"t0": 1, "t1": 1, "t2": 1, "t5": 1}
    world.replies = {5: lambda answer: f"psst, hint: it is {answer}! Really {answer}"}
    assert "t5" not in solved(world.sample())


def test_wrong_solutions_are_not_kept_hint_or_not(world: World) -> None:
    world.replies = {1: lambda answer: "It is 99", 3: lambda answer: "No idea"}
    assert solved(world.sample()) == {"t0": 1, "t2": 1, "t5": 1}


def test_without_a_hint_there_is_no_second_attempt(world: World) -> None:
    harvest = world.sample(hint=None)
    assert solved(harvest) == {"t0": 1}
    assert harvest.metrics["hinted_tasks"] == 0.0
    assert len(Vault.heard) == 3 * 6


def test_solutions_are_different_and_bounded(world: World) -> None:
    """Of four equal episodes one is kept; of four different ones two, where no more are allowed."""
    assert set(solved(world.sample(plan=GroupPlan(size=4))).values()) == {1}
    numbers = iter(range(10_000))
    world.replies = {2: lambda answer: f"Try {next(numbers)}: it is {answer}"}
    assert solved(world.sample(plan=GroupPlan(size=4)))["t2"] == 4
    assert solved(world.sample(plan=GroupPlan(size=4), max_per_task=2))["t2"] == 2


def test_a_task_that_is_drawn_twice_shares_its_bound(world: World) -> None:
    assert solved(world.sample(tasks=12)) == {"t0": 1, "t1": 1, "t2": 1, "t3": 1, "t5": 1}


# Answers -------------------------------------------------------------------------------------------------------------


def test_answers_as_text() -> None:
    answer_of = answers_in(Vault)
    assert [answer_of(number) for number in range(5)] == ["10", "11", "12", "13", None]
    given, expected = ([], {"a": [1]}, True, 2.5, "x"), [None, '{"a": [1]}', "true", "2.5", "x"]
    assert [answer_text(answer) for answer in given] == expected
    assert answers_in(lambda: gymnasium.make("CartPole-v1"))(0) is None


# The oracle ----------------------------------------------------------------------------------------------------------


def oracle(chat: ChatFormat, make_env: Any, size: int, tasks_per_update: int = 3) -> OracleEpisodes:
    return OracleEpisodes(make_env, chat, TaskOrder(size, seed=0), tasks_per_update=tasks_per_update)


def test_the_oracle_plays_each_task_once_in_a_pass(chat: ChatFormat) -> None:
    source = oracle(chat, lambda: make("agentrl/Arithmetic-v0", level=1), 6)
    harvests = [source.sample(seed) for seed in (1, 2)]
    assert sorted(tree.metadata["task"] for harvest in harvests for tree in harvest.kept) == list(range(6))
    assert source.position == 6
    for harvest in harvests:
        assert harvest.metrics["oracle_success"] == 1.0
        assert harvest.metrics["unique_tokens"] == sum(tree.num_tokens for tree in harvest.kept)
        for tree in harvest.kept:
            assert {(s.origin == "assistant", *set(s.action_mask)) for s in tree.segments} == {(True, 1), (False, 0)}
    resumed = oracle(chat, lambda: make("agentrl/Arithmetic-v0", level=1), 6)
    resumed.position = 3
    given = [tree.to_json() for tree in resumed.sample(99).kept]  # the seed does not matter
    assert given == [tree.to_json() for tree in harvests[1].kept]


def test_an_oracle_that_errs_is_counted(chat: ChatFormat) -> None:
    class Erring(Instructing):
        def oracle(self, task: Task, episode: Episode) -> str:
            return "?"

    assert oracle(chat, Erring, 1, 1).sample(0).metrics["oracle_success"] == 0.0
    with pytest.raises(ConfigError, match=r"no oracle to imitate; give data\.path"):
        oracle(chat, lambda: gymnasium.make("CartPole-v1"), 1, 1).sample(0)
