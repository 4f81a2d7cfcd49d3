"""The whole list of attacks, those that mean harm included, against every back end that isolates."""

from collections import deque
from collections.abc import Callable, Iterator

import pytest
from engines import require_bubblewrap, require_docker

from agentrl.sandbox import RunnerSandbox
from agentrl.sandbox.attacks import ATTACKS, Attack, AttackOutcome, run_attacks
from agentrl.sandbox.bubblewrap.sandbox import Bubblewrap
from agentrl.sandbox.docker.sandbox import DockerSandbox


def _bubblewrap() -> RunnerSandbox:
    require_bubblewrap()
    return Bubblewrap()


BACK_ENDS: dict[str, Callable[[], RunnerSandbox]] = {
    "bubblewrap": _bubblewrap,
    "docker": lambda: DockerSandbox(require_docker()),
}


class Runner:
    """Runs attacks one by one as they are asked for, in sessions that serve as many of them as stay healthy."""

    def __init__(self, sandbox: RunnerSandbox) -> None:
        self._sandbox = sandbox
        self._wanted: deque[Attack] = deque()
        self._outcomes = self._start()

    def run(self, attack: Attack) -> AttackOutcome:
        self._wanted.append(attack)
        try:
            return next(self._outcomes)
        except BaseException:  # which ends a generator: the next attack needs a new one
            self._wanted.clear()
            self._outcomes = self._start()
            raise

    def close(self) -> None:
        self._outcomes.close()

    def _start(self) -> Iterator[AttackOutcome]:
        return run_attacks(lambda limits: self._sandbox.open(limits=limits), iter(self._wanted.popleft, None))


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(BACK_ENDS[request.param]())
    yield runner
    runner.close()


def _marks(attack: Attack) -> list[pytest.MarkDecorator]:
    """The published cases run by default; `agentrl sandbox selftest`, which CI runs too, has all of them."""
    return [] if attack.id <= 75 else [pytest.mark.slow]


def test_the_list_is_whole() -> None:
    assert {attack.id for attack in ATTACKS} >= set(range(1, 76))
    assert len(ATTACKS) >= 241


@pytest.mark.parametrize(
    ("runner", "attack"),
    [
        pytest.param(back_end, attack, id=f"{back_end}-{attack.id}-{attack.name}", marks=_marks(attack))
        for back_end in BACK_ENDS
        for attack in ATTACKS
    ],
    indirect=["runner"],
)
def test_it_holds_and_nobody_notices(runner: Runner, attack: Attack) -> None:
    outcome = runner.run(attack)
    assert outcome.passed, (outcome.detail, outcome.result)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_session_that_fails_to_open_spoils_no_later_attack(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the runner above: each test is about its own attack, whatever came of the ones before."""
    sandbox = BACK_ENDS[back_end]()
    runner = Runner(sandbox)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "open", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run(ATTACKS[0])
    try:
        assert runner.run(ATTACKS[0]).attack is ATTACKS[0]
    finally:
        runner.close()
