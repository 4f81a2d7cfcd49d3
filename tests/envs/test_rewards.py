"""Rewards by name: golden values with their arithmetic, an independent F1, and what is refused."""

import re
import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs import Episode, make_reward
from agentrl.envs.rewards import (
    REWARDS,
    AnswerReward,
    boxed_match,
    exact_match,
    normalize,
    normalized_match,
    numeric_match,
    token_f1,
)
from agentrl.errors import ConfigError, DataError, UnknownNameError
from agentrl.tasks import Task


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Paris", "Paris", True),
        ("Answer: Paris.", "Paris", True),
        ("the   quick\tfox", "the quick fox", True),
        ("paris", "Paris", False),
        ("Paris, France", "Paris", False),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("B", ["A", "B"], True),
        ("C", ["A", "B"], False),
        ("7", 7, True),
        ("etc.", "etc.", True),  # both lose the full stop
        ("", "x", False),
    ],
)
def test_exact_match(text: str, gold: Any, expected: bool) -> None:
    assert exact_match(text, gold) is expected


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("Answer: the River Talvern!", "River Talvern", True),
        ("an  U.S. president", "us president", True),
        ("12,431", "12431", True),
        ("Talvern", ["River Talvern", "Talvern"], True),
        ("River", "River Talvern", False),
        ("-3.5", "35", True),  # why it is not for numbers
    ],
)
def test_normalized_match(text: str, gold: Any, expected: bool) -> None:
    assert normalized_match(text, gold) is expected


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("4821 * 37 = 178377", "178377", True),
        ("The answer is 178,377.", 178377, True),
        ("178377 pens in 37 crates", 178377, False),  # the last number counts
        ("The answer is 178377.\nThere were 37 crates.", 178377, True),  # in the line of the answer
        (r"\boxed{\frac{3}{4}}", 0.75, True),
        ("about 178376", 178377, False),
        ("one", 1, False),
        ("3", [1, 3], True),
    ],
)
def test_numeric_match(text: str, gold: Any, expected: bool) -> None:
    assert numeric_match(text, gold) is expected


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (r"\boxed{42}", "42", True),
        (r"\boxed{42.0}", 42, True),
        ("42", "42", False),  # no box
        (r"\boxed{41} then \boxed{42}", "42", True),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{ x^2 + 1 }", "x^2+1", True),
        (r"\boxed{\left(1, 2\right)}", "(1,2)", True),
        (r"\boxed{(1,3)}", "(1,2)", False),
        (r"\boxed{\text{Friday}}", "Friday", True),
        (r"\boxed{x^2}", "x^3", False),
        (r"\boxed{2}", "x^2", False),  # not compared by the last number of something else
    ],
)
def test_boxed_match(text: str, gold: Any, expected: bool) -> None:
    assert boxed_match(text, gold) is expected


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("the River Talvern", "River Talvern", 1.0),
        ("Talvern", "River Talvern", 2 / 3),  # precision 1/1, recall 1/2: 2 * 1 * 0.5 / 1.5
        ("old River Talvern", "River Talvern", 0.8),  # precision 2/3, recall 2/2: 2 * (2/3) / (5/3)
        ("a b b c", "b b d", 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # "a" is an article; common b, b: 2/3 and 2/3
        ("nothing", "River Talvern", 0.0),
        ("Talvern", ["River Talvern", "Talvern"], 1.0),
        ("yes", "yes", 1.0),
        ("yes it is", "yes", 0.0),  # only as the whole answer
        ("no", "no idea", 0.0),
        ("noanswer", "noanswer", 1.0),
        ("", "x", 0.0),
        ("the", "an", 1.0),  # nothing is left of either, which SQuAD counts as equal
    ],
)
def test_token_f1(text: str, gold: Any, expected: float) -> None:
    assert token_f1(text, gold) == pytest.approx(expected, abs=1e-12)


def squad_f1(prediction: str, ground_truth: str) -> float:
    """The formula as in the evaluation script of SQuAD, written down from its description."""

    def tokens(text: str) -> list[str]:
        kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    mine, theirs = tokens(prediction), tokens(ground_truth)
    if {" ".join(mine), " ".join(theirs)} & {"yes", "no", "noanswer"} or not mine or not theirs:
        return float(mine == theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


WORDS = st.lists(st.sampled_from(["a", "the", "river", "Town,", "of", "yes", "no", "x-y", "7", "..."]), max_size=6)


@given(WORDS, WORDS)
def test_token_f1_equals_the_formula_and_is_symmetric(mine: list[str], theirs: list[str]) -> None:
    text, gold = " ".join(mine), " ".join(theirs)
    assert token_f1(text, gold) == pytest.approx(squad_f1(text, gold), abs=1e-12)
    assert token_f1(text, gold) == pytest.approx(token_f1(gold, text), abs=1e-12)
    assert 0.0 <= token_f1(text, gold) <= 1.0
    assert normalized_match(text, gold) is (normalize(text) == normalize(gold))


def finished(answer: str | None) -> Episode:
    return Episode(answer=answer)


@pytest.mark.parametrize("name", ["exact_match", "normalized_match", "numeric", "token_f1"])
def test_rewards_by_name_judge_the_final_turn(name: str) -> None:
    reward = make_reward(name)
    task = Task("t", "?", "408")
    assert reward(task, finished("Answer: 408")) == 1.0
    assert reward(task, finished("Answer: 409")) == 0.0
    assert reward(task, finished(None)) == 0.0, "a truncated episode has no answer"
    assert type(reward(task, finished("408"))) is float


def test_boxed_by_name() -> None:
    reward = make_reward("boxed")
    assert reward(Task("t", "?", "408"), finished(r"\boxed{408}")) == 1.0
    assert reward(Task("t", "?", "408"), finished("408")) == 0.0


def test_names_are_the_documented_ones() -> None:
    expected = {"exact_match", "normalized_match", "numeric", "token_f1", "boxed", "unit_tests"}
    assert set(REWARDS) == expected


def by_length(task: Task, episode: Episode) -> float:
    """A reward as a user writes it."""
    return len(episode.answer or "") / task.metadata["length"]


def test_reward_by_import_path() -> None:
    reward = make_reward(f"{__name__}:by_length")
    assert reward(Task("t", "?", None, {"length": 4}), finished("ab")) == 0.5


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("numerc", {}, UnknownNameError, "Did you mean 'numeric'?"),
        ("numeric", {"digits": 3}, ConfigError, "refuses its options {'digits': 3}"),
        ("unit_tests", {}, ConfigError, "Say which sandbox"),
        ("unit_tests", {"sandbox": "unsafe_subproces"}, UnknownNameError, "Did you mean 'unsafe_subprocess'?"),
        ("no_such_module_here:f", {}, ConfigError, "cannot be imported"),
        ("math:no_such_function", {}, ConfigError, "has no function 'no_such_function'"),
        ("math:pi", {}, ConfigError, "has no function 'pi'"),
        ("math:sqrt", {"x": 1}, ConfigError, "takes no options"),
    ],
)
def test_wrong_reward_is_refused(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make_reward(name, options)


@pytest.mark.parametrize(
    ("score", "gold"),
    [
        (exact_match, None),
        (exact_match, []),
        (exact_match, [None]),
        (exact_match, {"x": 1}),
        (token_f1, None),
        (boxed_match, [[1]]),
        (numeric_match, "many"),
        (numeric_match, None),
    ],
)
def test_reference_answer_that_cannot_be_judged_by_is_refused(score: Any, gold: Any) -> None:
    with pytest.raises(DataError):
        AnswerReward(score).check(gold)


@pytest.mark.parametrize(("score", "gold"), [(exact_match, "x"), (token_f1, ["a", 1]), (numeric_match, [1, "2.5%"])])
def test_good_reference_answer_passes_the_check(score: Any, gold: Any) -> None:
    AnswerReward(score).check(gold)
