"""`agentrl/DeepResearch-v0`: every question needs several facts and a calculation, and the reward is ARPO's."""

import re
from collections.abc import Collection
from fractions import Fraction

import pytest
from numpy.random import Generator
from world_reading import readings

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import DeepResearchEnv, deep_research
from agentrl.envs.chains import Chain, draw_chain
from agentrl.envs.world import QUANTITIES, World, world
from agentrl.messages import ToolCall
from agentrl.seeding import generator
from agentrl.tasks import Task
from agentrl.tools.calculator import calculate

LEVELS = range(1, 4)
NUM_TASKS = 100
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def tasks(level: int, split: str = "train") -> list[Task]:
    return list(DeepResearchEnv(level=level, split=split).task_set()[:NUM_TASKS])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_those_of_the_calculator(level: int, split: str) -> None:
    for task in tasks(level, split):
        assert Fraction(calculate(task.metadata["expression"])) == Fraction(task.answer), task


def read(task: Task, split: str) -> Fraction:
    """The answer by the words of the question alone."""

    def value(phrase: str) -> Fraction:
        (number,) = readings(world(0, split), phrase)
        return Fraction(number)

    exact = None
    for pattern, formula in QUESTIONS.items():
        match = re.fullmatch(pattern, str(task.prompt))
        if match:
            assert exact is None, f"two readings of {task.prompt}"
            exact = formula(*map(value, match.groups()))
    assert exact is not None, f"no reading of {task.prompt}"
    return Fraction(exact)


QUESTIONS = {
    r"What is the sum of (.*) and (.*)\?": lambda a, b: a + b,
    r"What is (.*) minus (.*)\?": lambda a, b: a - b,
    r"What percentage of (.*) is (.*)\? Round to two decimals\.": lambda a, b: 100 * b / a,
    r"What is the average of (.*), (.*) and (.*)\? Round to two decimals\.": lambda a, b, c: (a + b + c) / 3,
    r"Take the sum of (.*) and (.*)\. How much is left if you subtract (.*)\?": lambda a, b, c: a + b - c,
    r"Take the sum of (.*) and (.*)\. What percentage of it is (.*)\? Round to two decimals\.": (
        lambda a, b, c: 100 * c / (a + b)
    ),
}


@pytest.mark.parametrize("level", LEVELS)
def test_the_words_give_the_answer(level: int) -> None:
    for task in tasks(level, "test")[:40]:
        assert abs(read(task, "test") - Fraction(task.answer)) <= Fraction(1, 200), task  # rounded to two decimals


@pytest.mark.parametrize(("level", "num_facts", "num_documents"), [(1, 2, 2), (2, 2, 4), (3, 3, 6)])
def test_facts_come_from_as_many_documents_as_the_level_says(level: int, num_facts: int, num_documents: int) -> None:
    texts = {document.title: document.text for document in world(0, "train").documents}
    for task in tasks(level):
        path = task.metadata["path"]
        assert len(path) == num_documents
        facts = [n for n in _NUMBER.findall(task.metadata["expression"].removesuffix(", 2)")) if n not in ("100", "3")]
        assert len(facts) == num_facts
        assert all(len(fact) >= 3 for fact in facts), "quantities have at least three digits"
        for fact in facts:
            holders = [title for title in path if re.search(rf"\b{fact}\b", texts[title])]
            assert holders, f"{fact} is in none of the documents of {task}"


@pytest.mark.parametrize("level", LEVELS)
def test_the_question_tells_none_of_the_facts(level: int) -> None:
    for task in tasks(level):
        assert not _NUMBER.findall(str(task.prompt)), task


def test_all_questions_speak_of_one_quantity() -> None:
    """One can add people to people, not to kilometers."""
    words = ("population", "altitude", "of employees", "students at", "of pages", "length")
    assert len(words) == len(QUANTITIES)
    for level in LEVELS:
        for task in tasks(level):
            assert sum(word in str(task.prompt) for word in words) == 1


def test_no_number_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that begin differently can end in one document; such a one is drawn again."""
    drawn: list[Chain] = []

    def draw_same(world: World, rng: Generator, hops: int, *, last: Collection[str] | None = None) -> Chain:
        drawn.append(draw_chain(world, generator(0, "same") if len(drawn) < 3 else rng, hops, last=last))
        return drawn[-1]

    monkeypatch.setattr(deep_research, "draw_chain", draw_same)
    task = deep_research._generate(world(0, "train"), generator(0, "question"), 1)
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert sorted(task.metadata["path"]) == sorted([*drawn[0].path, *drawn[3].path])


def test_kinds_of_calculations_are_spread() -> None:
    kinds = {re.sub(_NUMBER, "n", task.metadata["expression"]) for level in LEVELS for task in tasks(level)}
    assert kinds >= {"n + n", "n - n", "round(n / n * n, n)", "n + n - n", "round((n + n + n) / n, n)"}
    assert any(kind.startswith("round(n / (n + n)") for kind in kinds)


def play(env: DeepResearchEnv, *tools: str, final: str) -> tuple[float, bool]:
    """Calls each tool once as the oracle would, then answers."""
    env.reset(options={"task": 5})
    calls = {
        "search": {"query": env.task.metadata["path"][0]},
        "calculator": {"expression": env.task.metadata["expression"]},
        "broken": {"expression": "1 +"},
    }
    reward = 0.0
    for name in tools:
        reward += env.step(format_tool_call(ToolCall("calculator" if name == "broken" else name, calls[name])))[1]
    *_, info = env.step(final.format(answer=env.task.answer))
    return sum(info["result"]["turn_rewards"]), info["result"]["success"]


@pytest.mark.parametrize(
    ("tools", "final", "reward", "success"),
    [
        (("search", "calculator"), "\\boxed{{{answer}}}", 1.1, True),
        (("search",), "\\boxed{{{answer}}}", 1.0, True),
        (("search", "broken"), "\\boxed{{{answer}}}", 1.0, True),  # the call failed, so it earns nothing
        (("search", "broken", "calculator"), "\\boxed{{{answer}}}", 1.1, True),
        ((), "\\boxed{{{answer}}} </search> </python>", 1.0, True),  # tools are mentioned, not used
        (("search", "calculator"), "\\boxed{{1}}", 0.0, False),
        (("search", "calculator"), "Answer: {answer}", -1.0, True),  # right, in the wrong format
        (("search", "calculator"), "I do not know.", -1.0, False),
        ((), "", -1.0, False),
    ],
)
def test_reward_counts_executed_calls(tools: tuple[str, ...], final: str, reward: float, success: bool) -> None:
    assert play(DeepResearchEnv(), *tools, final=final) == (pytest.approx(reward, abs=1e-12), success)


def test_wrong_arguments_are_bad_format() -> None:
    env = DeepResearchEnv()
    env.reset(options={"task": 0})
    env.step(format_tool_call(ToolCall("search", {"question": "who?"})))
    assert env.step(f"\\boxed{{{env.task.answer}}}")[1] == -1.0


def test_truncated_episode_is_bad_format() -> None:
    env = DeepResearchEnv()
    env.reset(options={"task": 0})
    *_, info = env.truncate("\\boxed{1")
    assert info["result"]["turn_rewards"] == [-1.0]
    assert info["result"]["success"] is False


def test_turn_limit_leaves_room_for_the_longest_question() -> None:
    longest = max(len(task.metadata["path"]) for task in tasks(3))
    assert longest + 2 <= DeepResearchEnv.max_turns  # the searches, the calculation and the answer
