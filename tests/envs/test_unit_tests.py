"""Unit tests as a reward: what counts, and that a program cannot pass them but by being right."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from agentrl.envs import Episode, make_reward
from agentrl.envs.unit_tests import UnitTest, UnitTestReward, read_tests, solution_code
from agentrl.errors import DataError, InfrastructureError
from agentrl.sandbox import ExecResult, Limits, SecurityLevel, Session, open_sandbox
from agentrl.tasks import Task

TESTS = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0", {"call": "add('a', 'b')", "expected": "ab"}]
RIGHT = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def reward() -> UnitTestReward:
    limits = Limits(cpu_s=1.0, wall_s=60.0, output_bytes=20_000)
    return UnitTestReward(open_sandbox("unsafe_subprocess"), limits)


def judged(reward: UnitTestReward, code: str, tests: Any = TESTS) -> float:
    return reward(Task("t", "Write add.", tests), Episode(answer=f"Here it is:\n```python\n{code}\n```\n"))


@pytest.mark.parametrize(
    ("code", "share"),
    [
        (RIGHT, 1.0),
        ("def add(a, b):\n    return abs(a) + b if a != 'a' else 'ab'", 2 / 3),  # wrong for add(-1, 1)
        ("def add(a, b):\n    return 5", 1 / 3),
        ("def add(a, b):\n    print('noise', a, b)\n    return a + b", 1.0),  # output of its own does not disturb
        ("def add(a, b) return a + b", 0.0),
        ("def sub(a, b):\n    return a - b", 0.0),
        ("def add(a, b):\n    raise ValueError(a)", 0.0),
        (RIGHT + "1 / 0", 0.0),  # the program itself fails
        ("", 0.0),
    ],
)
def test_share_of_passed_tests(reward: UnitTestReward, code: str, share: float) -> None:
    assert judged(reward, code) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def add(a, b):\n    import os\n    print('5')\n    os._exit(0)",
        "class Any:\n    def __eq__(self, other):\n        return True\n\ndef add(a, b):\n    return Any()",
        "class Any:\n    def __repr__(self):\n        return 'True'\n\ndef add(a, b):\n    return Any()",
        "import builtins\nbuiltins.repr = builtins.str = lambda x: 'expected'\n\ndef add(a, b):\n    return 0",
        "import builtins\nbuiltins.print = lambda *a, **k: None\n\ndef add(a, b):\n    return a + b",
        "def add(a, b):\n    import sys\n    return max(str(sys._getframe(n).f_locals) for n in range(3))",
        "def add(a, b):\n    while True:\n        pass",
    ],
)
def test_cheating_gains_nothing(reward: UnitTestReward, code: str) -> None:
    assert judged(reward, code) == 0.0


class RecordingSandbox:
    """The real sandbox, with a list of all that goes into it."""

    name = "recording"
    security_level = SecurityLevel.NONE
    keeps_state = True

    def __init__(self) -> None:
        self.given: list[Any] = []

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Session:
        self.given += [limits, files]
        session = open_sandbox("unsafe_subprocess").open(limits=limits, files=files)
        run = session.run
        session.run = lambda code: (self.given.append(code), run(code))[1]  # type: ignore[method-assign]
        return session


def test_expected_values_never_enter_the_sandbox() -> None:
    sandbox = RecordingSandbox()
    tests = [{"call": "add(40000, 8151)", "expected": 48151}, "assert add('se', 'cret') == 'secret'"]
    assert judged(UnitTestReward(sandbox), RIGHT, tests) == 1.0
    assert len(sandbox.given) == 5  # limits, files, the solution, two calls
    assert "add(40000, 8151)" in str(sandbox.given)
    assert "48151" not in str(sandbox.given)
    assert "secret" not in str(sandbox.given)


class FailingSandbox(RecordingSandbox):
    """Fails after the cells of these numbers, counted from 1 over all sessions."""

    def __init__(self, level: SecurityLevel, *fails_after: int) -> None:
        super().__init__()
        self.security_level = level  # type: ignore[misc]
        self.fails_after = fails_after
        self.ran: list[str] = []

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> Session:
        session = super().open(limits=limits, files=files)
        run = session.run

        def run_or_fail(code: str) -> ExecResult:
            result = run(code)
            self.ran.append(code)
            if len(self.ran) in self.fails_after:
                raise InfrastructureError("hung up")
            return result

        session.run = run_or_fail  # type: ignore[method-assign]
        return session


def test_a_sandbox_that_fails_is_replaced_once_and_judges_from_the_start() -> None:
    sandbox = FailingSandbox(SecurityLevel.CONTAINER, 3)
    tests = (UnitTest(f"add({n}, 1)", n + 1) for n in range(3))
    assert UnitTestReward(sandbox).num_passed(RIGHT, tests) == 3
    # The solution and two tests; then, in a new session, the solution and all three.
    assert [code == RIGHT for code in sandbox.ran] == [True, False, False, True, False, False, False]
    with pytest.raises(InfrastructureError, match="hung up"):
        judged(UnitTestReward(FailingSandbox(SecurityLevel.CONTAINER, 3, 5)), RIGHT)


def test_without_isolation_no_solution_runs_twice() -> None:
    sandbox = FailingSandbox(SecurityLevel.NONE, 1)
    with pytest.raises(InfrastructureError, match="hung up"):
        judged(UnitTestReward(sandbox), RIGHT)
    assert len(sandbox.ran) == 1


@pytest.mark.parametrize("fatal", ["while True:\n            pass", "os.kill(os.getpid(), 9)"])
def test_a_killed_test_fails_the_ones_after_it(reward: UnitTestReward, fatal: str) -> None:
    code = f"import os\n\ndef f(n):\n    if n == 2:\n        {fatal}\n    return n"
    tests = [{"call": f"f({n})", "expected": n} for n in (1, 2, 3, 4)]
    assert judged(reward, code, tests) == 0.25


def test_sessions_are_fresh(reward: UnitTestReward) -> None:
    """What one graded program leaves behind, the next does not find."""
    judged(reward, RIGHT)
    assert judged(reward, "pass") == 0.0


def test_truncated_episode_passes_nothing(reward: UnitTestReward) -> None:
    assert reward(Task("t", "", TESTS), Episode(answer=None)) == 0.0


def test_reward_by_name_runs_code() -> None:
    named = make_reward("unit_tests", {"sandbox": "unsafe_subprocess"})
    assert named(Task("t", "", "assert double(4) == 8"), Episode(answer="def double(x): return 2 * x")) == 1.0


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ("assert f(1) == 2\nassert f(2) == [3, 'x']", [UnitTest("f(1)", 2), UnitTest("f(2)", [3, "x"])]),
        ("assert f(1) is None", [UnitTest("f(1)", None)]),
        ("assert f(1)", [UnitTest("bool(f(1))", True)]),
        ("assert not f(1)", [UnitTest("bool(f(1))", False)]),
        ("assert f(1) == -1.5, 'message'", [UnitTest("f(1)", -1.5)]),
        ([{"call": "f(1)", "expected": {"a": 1}}], [UnitTest("f(1)", {"a": 1})]),
    ],
)
def test_forms_of_tests(answer: Any, tests: list[UnitTest]) -> None:
    assert list(read_tests(answer)) == tests


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "no unit test"),
        ("", "no unit test"),
        (7, "Not a unit test: 7"),
        ({"call": "f(1)"}, "Not a unit test"),
        ({"call": "f(", "expected": 1}, "not an expression"),
        ({"call": "import os", "expected": 1}, "not an expression"),
        ("assert f(", "not valid Python"),
        ("f(1) == 2", "no test of a call against a literal"),
        ("assert f(1) < 2", "no test of a call against a literal"),
        ("assert f(1) == g(1)", "is not a literal"),
        ("import os", "no test of a call against a literal"),
    ],
)
def test_what_is_no_test_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_tests(answer)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("First\n```py\nx = 1\n```\nbetter\n```Python\nx = 2\n```\ndone", "x = 2\n"),
        ("```text\nhello\n```", "```text\nhello\n```"),
    ],
)
def test_code_is_the_last_fenced_block(text: str, code: str) -> None:
    assert solution_code(text) == code
