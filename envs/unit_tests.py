"""Unit tests as a reward: a solution runs in a sandbox of its own, what it returns is compared outside of it.

The session of the model is never used, since the model could have prepared it. And no expected value ever enters the
sandbox: the solution is given a call, and its answer is read as a plain value and compared here. A program that ends
the interpreter, replaces `print`, returns an object that equals everything, or looks for the tests in the frames above
it, gains nothing by it. What a program can do to the machine around it is a matter of the sandbox.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentrl.envs.episode import Episode
from agentrl.errors import ConfigError, DataError, InfrastructureError
from agentrl.sandbox import (
    SANDBOXES,
    ExecResult,
    Limits,
    Sandbox,
    SandboxUnavailableError,
    SecurityLevel,
    open_sandbox,
)
from agentrl.tasks import Task

LIMITS = Limits(cpu_s=5.0, wall_s=15.0, output_bytes=200_000)
"""Of the solution, and of every test."""

_FENCED = re.compile(r"^```[ \t]*(?:python|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_FORMS = 'Write {"call": "add(2, 3)", "expected": 5} or "assert add(2, 3) == 5".'


@dataclass(frozen=True, slots=True)
class UnitTest:
    """A call and the plain value that it must return.

    Example:
        UnitTest(call="add(2, 3)", expected=5)
    """

    call: str
    expected: Any


class UnitTestReward:
    """The share of unit tests that the code of the final turn passes.

    Args:
        sandbox: Where the code runs, in a fresh session for every episode.
        limits: Of that session.

    Raises:
        ConfigError: The sandbox keeps no names from cell to cell, so that no test could call the solution.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits = LIMITS) -> None:
        if not sandbox.keeps_state:
            raise ConfigError(f"Unit tests need a sandbox that keeps names from cell to cell; {sandbox.name} does not.")
        self._sandbox = sandbox
        self._limits = limits

    def __call__(self, task: Task, episode: Episode) -> float:
        """Judges an episode.

        Raises:
            DataError: The reference answer of the task is not a list of tests.
            InfrastructureError: The sandbox failed.
        """
        tests = read_tests(task.answer)
        if episode.answer is None:
            return 0.0
        return self.num_passed(solution_code(episode.answer), tests) / len(tests)

    def check(self, gold: Any) -> None:
        """Checks that a reference answer is one to judge by.

        Raises:
            DataError: It is not a list of tests.
        """
        read_tests(gold)

    def num_passed(self, code: str, tests: Iterable[UnitTest]) -> int:
        """How many tests a program passes; none if it fails by itself, none after one that had to be killed.

        A sandbox that fails is replaced once, and the tests begin anew, if it isolates: what a program did is gone with
        it.

        Raises:
            InfrastructureError: The sandbox failed, and so did its replacement, or it does not isolate.
        """
        tests = tuple(tests)
        try:
            return self._judge(code, tests)
        except SandboxUnavailableError:
            raise
        except InfrastructureError:
            if self._sandbox.security_level > SecurityLevel.NONE:
                return self._judge(code, tests)
            raise

    def _judge(self, code: str, tests: Iterable[UnitTest]) -> int:
        session = self._sandbox.open(limits=self._limits)
        try:
            if session.run(code).status != "ok":
                return 0
            passed = 0
            for test in tests:
                result = session.run(f"print(repr({test.call}))")
                if result.status in ("timeout", "killed"):
                    break
                passed += _returned(result, test.expected)
            return passed
        finally:
            session.close()


def unit_tests(*, sandbox: str | None = None) -> UnitTestReward:
    """The reward by the name of its sandbox, for configs.

    Raises:
        ConfigError: No sandbox is named.
        UnknownNameError: No back end has this name.
    """
    if sandbox is None:
        raise ConfigError(f"Say which sandbox runs the model's code: sandbox={' | '.join(map(repr, SANDBOXES))}.")
    return UnitTestReward(open_sandbox(sandbox))


def solution_code(text: str) -> str:
    """The last fenced block of Python in a text; the whole text if there is none."""
    blocks = _FENCED.findall(text)
    return str(blocks[-1]) if blocks else text


def read_tests(answer: Any) -> tuple[UnitTest, ...]:
    """The tests in the reference answer of a task.

    Args:
        answer: A list of `{"call": ..., "expected": ...}`, or of `assert` statements that compare a call with a
            literal; the latter may also be one text.

    Raises:
        DataError: There is none, or one cannot be read.
    """
    items = answer if isinstance(answer, list | tuple) else [answer]
    tests = tuple(test for item in items for test in _tests(item))
    if not tests:
        raise DataError(f"The task has no unit test. {_FORMS}")
    return tests


def _tests(item: Any) -> list[UnitTest]:
    if isinstance(item, dict) and item.keys() == {"call", "expected"} and isinstance(item["call"], str):
        return [UnitTest(_expression(item["call"]), item["expected"])]
    if not isinstance(item, str):
        raise DataError(f"Not a unit test: {item!r}. {_FORMS}")
    try:
        statements = ast.parse(item).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"A unit test is not valid Python ({error}): {item!r}. {_FORMS}") from error
    return [_from_assert(statement, item) for statement in statements]


def _expression(call: str) -> str:
    try:
        ast.parse(call, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"The call of a unit test is not an expression ({error}): {call!r}. {_FORMS}") from error
    return call


def _from_assert(statement: ast.stmt, text: str) -> UnitTest:
    match statement:
        case ast.Assert(test=ast.Compare(left=call, ops=[ast.Eq() | ast.Is()], comparators=[value])):
            pass
        case ast.Assert(test=ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call)):
            return UnitTest(f"bool({ast.unparse(call)})", False)
        case ast.Assert(test=ast.Call() as call):
            return UnitTest(f"bool({ast.unparse(call)})", True)
        case _:
            raise DataError(f"This is no test of a call against a literal: {text!r}. {_FORMS}")
    try:
        return UnitTest(ast.unparse(call), ast.literal_eval(value))
    except ValueError as error:
        raise DataError(f"What {text!r} expects is not a literal. {_FORMS}") from error


def _returned(result: ExecResult, expected: Any) -> bool:
    """Whether the value that was printed last is the expected one."""
    if result.status != "ok" or result.truncated:
        return False
    lines = result.output.splitlines()
    try:
        value = ast.literal_eval(lines[-1]) if lines else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return bool(lines) and bool(value == expected)
