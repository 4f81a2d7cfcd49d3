"""`agentrl/CodeInterpreter-v0`: answers by two ways, state over turns, and a sandbox that has to be named."""

import contextlib
import inspect
import io
import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import CodeInterpreterEnv
from agentrl.envs.code_answers import (
    affine_power,
    largest_island,
    longest_rise,
    power_remainder,
    prime_sum,
    shortest_path,
)
from agentrl.envs.code_tasks import _LEVELS, CodeTask
from agentrl.errors import UnknownNameError
from agentrl.messages import ToolCall
from agentrl.seeding import generator

MAKERS = [pytest.param(make, id=make.__name__[1:]) for makers in _LEVELS.values() for make in makers]


def run_in_process(cells: tuple[str, ...]) -> str:
    """What the cells print, in one namespace, as an interpreter with state shows it."""
    names: dict[str, Any] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for cell in cells[:-1]:
            exec(cell, names)
        if "print(" in cells[-1]:
            exec(cells[-1], names)
        else:
            print(eval(cells[-1], names))
    return output.getvalue().strip()


@pytest.mark.parametrize("make", MAKERS)
def test_the_cells_find_the_answer(make: Any) -> None:
    """Question, answer and program are written apart; here 40 of each kind agree."""
    answers = set()
    for seed in range(40):
        task: CodeTask = make(generator(seed, "code"))
        assert run_in_process(task.cells) == str(task.answer), task
        answers.add(str(task.answer))
    assert len(answers) >= 20, f"the answers of {make.__name__} are too easy to guess: {answers}"


@pytest.mark.parametrize("make", MAKERS)
def test_the_question_holds_what_the_program_needs(make: Any) -> None:
    """Every number and word of data in the cells stands in the question, but for those of the method."""
    task: CodeTask = make(generator(3, "code"))
    words = set(re.findall(r"[A-Za-z]{3,}|\d{3,}", task.question))
    data = {text for cell in task.cells for text in re.findall(r"\d{3,}", cell)}
    assert data <= words | {"100"}, task


def test_variables_of_one_cell_are_there_in_the_next() -> None:
    env = CodeInterpreterEnv(sandbox="unsafe_subprocess")
    env.reset(seed=1)
    env.step(format_tool_call(ToolCall("python", {"code": "x = 20"})))
    assert env.step(format_tool_call(ToolCall("python", {"code": "x + 22"})))[0] == "42"
    env.reset(seed=1)
    observation = env.step(format_tool_call(ToolCall("python", {"code": "x"})))[0]
    assert "NameError" in observation, "another episode has its own interpreter"
    env.close()


def test_forks_share_what_was_before_and_nothing_after() -> None:
    env = CodeInterpreterEnv(sandbox="unsafe_subprocess")
    env.reset(seed=1)
    env.step(format_tool_call(ToolCall("python", {"code": "import random\nrandom.seed(1)\nlog = [1]"})))
    twin = env.fork()
    code = format_tool_call(ToolCall("python", {"code": "log.append(random.random())\nlog"}))
    assert twin.step(code)[0] == env.step(code)[0]
    twin.step(code)
    assert env.step(format_tool_call(ToolCall("python", {"code": "len(log)"})))[0] == "2"
    env.close()
    twin.close()


def test_failing_code_is_an_observation() -> None:
    env = CodeInterpreterEnv(sandbox="unsafe_subprocess")
    env.reset(seed=1)
    observation, reward, terminated, *_ = env.step(format_tool_call(ToolCall("python", {"code": "1 / 0"})))
    assert "ZeroDivisionError" in observation
    assert (reward, terminated) == (0.0, False)
    *_, info = env.step("Answer: 1")
    assert info["result"]["tool_errors"] == {"python": 1}


def test_the_sandbox_is_named_and_its_danger_is_told() -> None:
    assert inspect.signature(CodeInterpreterEnv).parameters["sandbox"].default == "auto"
    assert "NOT a security boundary" in (inspect.getdoc(CodeInterpreterEnv) or "")
    with pytest.raises(UnknownNameError, match="Did you mean 'unsafe_subprocess'"):
        CodeInterpreterEnv(sandbox="unsafe_subproces")


@pytest.mark.parametrize("level", [1, 2, 3])
def test_texts_must_match_exactly_and_numbers_by_value(level: int) -> None:
    env = CodeInterpreterEnv(level=level, sandbox="unsafe_subprocess")
    seen = set()
    for index in range(40):
        answer = env.task_set()[index].answer
        seen.add(type(answer))
        wrong = answer[:-1] if isinstance(answer, str) else answer + 1
        for text, reward in ((f"Answer: {answer}", 1.0), (f"Answer: {wrong}", 0.0), ("", 0.0)):
            env.reset(options={"task": index})
            assert env.step(text)[1] == reward, (text, answer)
    assert seen == ({int} if level == 3 else {int, str})


# The other ways to the answers, against the definition ---------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 1000))
def test_power_remainder(base: int, exponent: int, modulus: int) -> None:
    assert power_remainder(base, exponent, modulus) == base**exponent % modulus


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40), st.integers(1, 97), st.integers(0, 50))
def test_affine_power(a: int, c: int, n: int, m: int, x: int) -> None:
    factor, offset = affine_power(a, c, n, m)
    expected = x
    for _ in range(n):
        expected = (a * expected + c) % m
    assert (factor * x + offset) % m == expected % m


def test_prime_sum() -> None:
    assert prime_sum(10, 30) == 11 + 13 + 17 + 19 + 23 + 29
    assert prime_sum(2, 2) == 2
    assert prime_sum(24, 28) == 0


@given(st.lists(st.integers(0, 9), max_size=9))
def test_longest_rise(numbers: list[int]) -> None:
    rising = (
        len(part)
        for size in range(len(numbers) + 1)
        for part in itertools.combinations(numbers, size)
        if all(a < b for a, b in itertools.pairwise(part))
    )
    assert longest_rise(numbers) == max(rising)


def test_shortest_path() -> None:
    roads = [("A", "B", 5), ("B", "C", 5), ("A", "C", 11), ("C", "D", 1), ("A", "D", 100)]
    assert shortest_path(roads, "A", "D") == 5 + 5 + 1
    assert shortest_path(roads, "D", "A") == 11
    assert shortest_path(roads, "A", "A") == 0
    with pytest.raises(AssertionError, match="no way from A to E"):
        shortest_path(roads, "A", "E")


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (["##.", ".#.", "..#"], 3),  # a corner does not connect
        (["#.#", "###", "#.#"], 7),
        ([".", "."], 0),
        (["#####"], 5),
        (["#.##.", "#..#.", "####."], 9),  # joined at the bottom only
    ],
)
def test_largest_island(rows: list[str], size: int) -> None:
    assert largest_island(rows) == size
