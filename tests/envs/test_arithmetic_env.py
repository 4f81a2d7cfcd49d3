"""`agentrl/Arithmetic-v0`: right answers by independent ways, readable problems, splits that share no numbers."""

import ast
import operator
import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs import ArithmeticEnv
from agentrl.envs.terms import Term, number, plain
from agentrl.tasks import Task, split_of
from agentrl.tools.calculator import calculate

LEVELS = range(1, 6)
NUM_TASKS = 150
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(expression: str) -> Fraction:
    """The exact value by Python's own grammar, which neither `Term` nor the calculator uses."""

    def walk(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(ast.get_source_segment(expression, node) or "")
            case ast.BinOp(left=left, op=op, right=right):
                return Fraction(_OPERATORS[type(op)](walk(left), walk(right)))
            case ast.Call(func=ast.Name(id="round"), args=[inner, ast.Constant(value=2)]):
                exact = walk(inner)
                decimal = Decimal(exact.numerator) / Decimal(exact.denominator)
                return Fraction(decimal.quantize(Decimal("0.01"), ROUND_HALF_UP))
        raise AssertionError(f"unexpected {ast.dump(node)}")

    return walk(ast.parse(expression, mode="eval").body)


def tasks(level: int, split: str = "train", count: int = NUM_TASKS) -> list[Task]:
    return list(ArithmeticEnv(level=level, split=split).task_set()[:count])


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_right_by_two_independent_evaluators(level: int) -> None:
    for task in tasks(level):
        last = task.metadata["steps"][-1]
        assert value_of(last) == Fraction(task.answer), task
        assert Fraction(calculate(last)) == Fraction(task.answer), task


@pytest.mark.parametrize("level", [1, 2, 3, 5])
def test_every_number_of_the_first_step_is_in_the_problem(level: int) -> None:
    """100, of percent, is the only one that is not; the numbers that do not matter are the problem's alone."""
    for task in tasks(level):
        assert set(_NUMBER.findall(task.metadata["steps"][0])) <= {*_NUMBER.findall(str(task.prompt)), "100"}, task


def test_later_steps_use_results_of_earlier_ones() -> None:
    for task in tasks(5):
        known = {*_NUMBER.findall(str(task.prompt)), "100"}
        for step in task.metadata["steps"]:
            assert set(_NUMBER.findall(step)) <= known, (task, step)
            known.add(plain(value_of(step)))


def test_level_1_is_short_and_simple() -> None:
    """Small enough for a tiny model: few words in all, at most 20 in a problem, one operation, 2 to 4 digits."""
    words = set()
    for task in tasks(1, count=1500):
        tokens = re.findall(r"\w+|[^\w\s]", str(task.prompt))
        assert len(tokens) <= 20, task
        words |= {token for token in tokens if not token.isdigit()}
        (step,) = task.metadata["steps"]
        left, sign, right = re.fullmatch(r"(\d{2,4}) ([-+*/]) (\d{2,4})", step).groups()  # type: ignore[union-attr]
        assert task.answer.isdigit(), "a whole number above zero"
        assert int(task.answer) >= 10
        assert sign in "+-*/"
        assert max(len(left), len(right)) >= 3 or sign == "*", task
    assert len(words) <= 70, f"{len(words)} words"


def test_level_1_has_all_operations_bare_and_as_stories() -> None:
    kinds = {
        (step.split()[1], str(task.prompt).startswith("What is"))
        for task in tasks(1, count=300)
        for step in task.metadata["steps"]
    }
    assert kinds == {(sign, bare) for sign in "+-*/" for bare in (True, False)}


@pytest.mark.parametrize(
    ("level", "fewest", "most"),
    [(1, 1, 1), (2, 2, 2), (3, 3, 5), (4, 1, 6)],
)
def test_number_of_operations_grows_with_the_level(level: int, fewest: int, most: int) -> None:
    for task in tasks(level):
        count = len(re.findall(r" [-+*/] ", task.metadata["steps"][-1]))
        assert fewest <= count <= most, task


def test_level_4_asks_to_round_exactly_where_it_has_to() -> None:
    asked = 0
    for task in tasks(4):
        rounds = "Round to two decimals." in str(task.prompt)
        assert rounds == task.metadata["steps"][-1].startswith("round("), task
        assert (Fraction(task.answer) * 100).denominator == 1 or not rounds
        asked += rounds
    assert 0 < asked < NUM_TASKS


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_set_of_numbers(level: int) -> None:
    """Stricter than sharing no text: another wording of a training problem is not in the test split either."""

    def numbers(task: Task) -> tuple[str, ...]:
        return tuple(sorted(_NUMBER.findall(task.metadata["steps"][0])))

    train = {numbers(task) for task in tasks(level, "train", 400)}
    test = {numbers(task) for task in tasks(level, "test", 200)}
    assert not train & test or level == 5  # of a long story the first step is a part only
    assert not {t.metadata["content"] for t in tasks(level, "train", 400)} & {
        t.metadata["content"] for t in tasks(level, "test", 200)
    }


@pytest.mark.parametrize("level", LEVELS)
def test_the_split_is_decided_by_the_numbers_alone(level: int) -> None:
    for task in tasks(level):
        numbers = [n for step in task.metadata["steps"] for n in _NUMBER.findall(step)]
        assert task.metadata["content"].split() == sorted(numbers)
        assert split_of(task.metadata["content"]) == "train"


def test_seed_names_other_problems_and_levels_mix() -> None:
    assert ArithmeticEnv(seed=1).task_set()[0] != ArithmeticEnv(seed=2).task_set()[0]
    assert ArithmeticEnv(seed=1).task_set()[7] == ArithmeticEnv(seed=1).task_set()[7]
    mixed = [task.metadata["level"] for task in ArithmeticEnv(level=range(1, 4)).task_set()[:300]]
    assert set(mixed) == {1, 2, 3}
    assert all(60 <= mixed.count(level) <= 140 for level in (1, 2, 3))  # 100 expected, standard deviation 8.2


def test_turn_limit_leaves_room_for_every_step() -> None:
    for level in LEVELS:
        env = ArithmeticEnv(level=level)
        assert env.max_turns == 3 + level
        assert max(len(task.metadata["steps"]) for task in tasks(level)) + 1 <= env.max_turns


def test_a_right_number_pays_wherever_it_came_from_and_a_wrong_one_does_not() -> None:
    env = ArithmeticEnv()
    answer = int(env.task_set()[3].answer)
    for text, reward in ((f"It is {answer:,}.", 1.0), (f"{answer}.0", 1.0), (str(answer + 1), 0.0), ("none", 0.0)):
        env.reset(options={"task": 3})
        assert env.step(text)[1] == reward, text


# Terms ---------------------------------------------------------------------------------------------------------------


def test_terms_write_no_more_brackets_than_needed() -> None:
    a, b, c = number(7), number(5), number("2.5")
    assert ((a + b) * c).text == "(7 + 5) * 2.5"
    assert (a + b - c).text == "7 + 5 - 2.5"
    assert (a - (b - c)).text == "7 - (5 - 2.5)"
    assert (a * b / c).text == "7 * 5 / 2.5"
    assert (a / (b * c)).text == "7 / (5 * 2.5)"
    assert (a + b * c).text == "7 + 5 * 2.5"
    assert (a - b).percent_of(a + b).text == "(7 + 5) * (7 - 5) / 100"
    assert str(a.percent_of(b)) == "5 * 7 / 100"


def test_rounding_is_half_away_from_zero_and_only_where_needed() -> None:
    assert (number("2.345") * number(1)).rounded().value == Fraction(235, 100)
    assert (number(0) - number("2.345")).rounded().value == Fraction(-235, 100)
    assert (number(1) / number(3)).rounded() == Term("round(1 / 3, 2)", Fraction(33, 100))
    exact = number("2.34") * number(1)
    assert exact.rounded() is exact


leaves = st.one_of(st.integers(1, 999).map(number), st.decimals(1, 99, places=2).map(lambda d: number(str(d))))
terms = st.recursive(
    leaves,
    lambda inner: st.builds(lambda op, x, y: op(x, y), st.sampled_from([*_OPERATORS.values()][:3]), inner, inner),
    max_leaves=8,
)


@given(terms)
def test_text_and_value_of_a_term_agree(term: Term) -> None:
    assert value_of(term.text) == term.value


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_plain_numbers_read_back(value: int, decimals: int) -> None:
    fraction = Fraction(value, 10**decimals)
    assert Fraction(plain(fraction)) == fraction
    assert "E" not in plain(fraction)
