"""Running attacks against a back end, and looking afterwards whether anything has suffered."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from agentrl.errors import ForkError
from agentrl.sandbox.attacks.attack import BUSY, Attack, Cell, fill
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.surroundings import Surroundings, leftovers
from agentrl.sandbox.core import ExecResult, Limits, SandboxFileError, Session

_MAX_AFTERSHOCKS = 3
_NOTICES = {"kept": "", "rolled_back": "names from before this cell are kept", "reset": "all names are lost"}


@dataclass(frozen=True, slots=True)
class AttackOutcome:
    """What came of one attack.

    Example:
        AttackOutcome(attack=ATTACKS[50], passed=False, detail="it got out: LEAKED answer b'42'", result=...)
    """

    attack: Attack
    passed: bool
    detail: str
    """What failed; empty if nothing did."""
    result: ExecResult | None
    """Of the attack's own cell, if it came to that."""


def run_attacks(
    open_session: Callable[[Limits], Session], attacks: Iterable[Attack] = ATTACKS
) -> Iterator[AttackOutcome]:
    """Runs attacks one after the other, each in a session that is as new or has proved to be healthy.

    Args:
        open_session: Opens a session of the back end under test.
        attacks: Which ones; those marked `Bare.DANGEROUS` harm this machine if the back end does not isolate.

    Raises:
        SandboxUnavailableError: The back end cannot run here.
        InfrastructureError: A session cannot be opened.
    """
    sessions: dict[Limits | None, Session] = {}
    try:
        with Surroundings() as surroundings:
            for attack in attacks:
                for limits in (None, attack.limits):
                    if limits not in sessions:
                        sessions[limits] = open_session(limits or BUSY)
                outcome = run_attack(sessions[attack.limits], sessions[None], attack, surroundings)
                if _is_spoilt(outcome):
                    sessions.pop(attack.limits).close()
                if not outcome.passed:
                    sessions.pop(None).close()
                yield outcome
    finally:
        for session in sessions.values():
            session.close()


def _is_spoilt(outcome: AttackOutcome) -> bool:
    """Whether the session is not fit for another attack: it failed, or has files, full memory or odd modules in it."""
    attack, result = outcome.attack, outcome.result
    if not outcome.passed or result is None or attack.group == "fs" or attack.aftershock:
        return True
    return attack.group in ("memory", "state") and result.state == "kept"


def run_attack(session: Session, neighbour: Session, attack: Attack, surroundings: Surroundings) -> AttackOutcome:
    """Runs one attack and checks that what it expects holds and that nobody else has noticed.

    Args:
        session: With the attack's limits.
        neighbour: Another session of the same back end.
        attack: What to run.
        surroundings: What it might reach.
    """
    check = _Check(session, neighbour, attack, surroundings)
    faults = []
    try:
        check.carry_out()
    except _Failure as failure:
        faults.append(str(failure))
    except Exception as error:  # whatever a back end raises under attack is a finding, and the next attack's turn
        faults.append(f"the session failed: {type(error).__name__}: {error}")
    if alive := leftovers(check.mark):
        faults.append(f"processes are left: {len(alive)}")
    if damage := surroundings.damage():
        faults.append(f"on the host it {damage}")
    return AttackOutcome(attack, not faults, "; ".join(faults), check.result)


class _Failure(Exception):
    """Something does not hold; the text says what."""


class _Check:
    """One attack on its way through a session."""

    def __init__(self, session: Session, neighbour: Session, attack: Attack, surroundings: Surroundings) -> None:
        self._session = session
        self._neighbour = neighbour
        self._attack = attack
        self._secret = surroundings.secret
        self.mark = secrets.token_hex(4)
        self._values = {**surroundings.values, "MARK": self.mark}
        self._token = secrets.token_hex(8)
        """Value of a variable that both sessions have from before the attack."""
        self._was_reset = False
        self.result: ExecResult | None = None

    def carry_out(self) -> None:
        """Runs the attack.

        Raises:
            _Failure: Something does not hold.
        """
        define = Cell(f"agentrl_canary = {self._token!r}", "")
        self._expect(self._session, define, "before the attack the session")
        self._expect(self._neighbour, define, "before the attack the neighbour")
        for code in self._attack.setup:
            if self._run(self._session, code).status != "ok":
                raise _Failure("the setup fails")
        self.result = self._run(self._session, self._attack.code)
        if fault := self._attack.expect.fault(self.result):
            raise _Failure(fault)
        self._was_reset = self.result.state == "reset"
        self._expect_health(self._session, "the session")
        self._read_back()
        if self._attack.fork:
            self._fork()
        if self._attack.neighbour is not None:
            self._expect(self._neighbour, self._attack.neighbour, "the neighbour")
        self._expect(self._neighbour, Cell("print(agentrl_canary)", f"{self._token}\n"), "the neighbour")

    def _run(self, session: Session, code: str) -> ExecResult:
        """Runs a cell and checks what holds for every result.

        Raises:
            _Failure: It does not hold.
        """
        result = session.run(fill(code, self._values))
        if self._secret in result.output:
            raise _Failure("it got out: the output holds the secret")
        if _NOTICES[result.state] not in result.output:
            raise _Failure(f"the output does not say that the names were {result.state}")
        num_bytes, limit = len(result.output.encode("utf-8", "surrogatepass")), self._attack.limits.output_bytes
        if num_bytes > limit:
            raise _Failure(f"the output has {num_bytes} bytes instead of at most {limit}")
        return result

    def _expect(self, session: Session, cell: Cell, who: str) -> None:
        """Checks that a cell prints what it should.

        Raises:
            _Failure: It does not.
        """
        result = self._run_through_aftershocks(session, cell.code)
        if result.status != "ok" or result.output != cell.output:
            raise _Failure(f"{who} answers {result.status} {result.output[:300]!r} instead of {cell.output!r}")

    def _run_through_aftershocks(self, session: Session, code: str) -> ExecResult:
        result = self._run(session, code)
        num_killed = 0
        while result.status == "killed" and self._attack.aftershock and session is not self._neighbour:
            num_killed += 1
            if num_killed > _MAX_AFTERSHOCKS:
                raise _Failure("the session is killed again and again")
            self._was_reset |= result.state == "reset"
            result = self._run(session, code)
        return result

    def _expect_health(self, session: Session, who: str) -> None:
        """Checks that a session prints and knows its names, unless it said that they are lost.

        Raises:
            _Failure: It does not.
        """
        self._expect(session, Cell("import sys; print('out'); print('err', file=sys.stderr)", "out\nerr\n"), who)
        for cell in self._attack.then:
            self._expect(session, cell, f"then {who}")
        names = self._run_through_aftershocks(session, "print(agentrl_canary)")
        if self._was_reset or self._attack.forgets:
            if "NameError" not in names.output:
                raise _Failure(f"{who} said that its names are lost, but answers {names.output[:300]!r}")
        elif names.output != f"{self._token}\n":
            raise _Failure(f"{who} has lost its names without a word: {names.output[:300]!r}")

    def _read_back(self) -> None:
        """Lets the host ask for files that the program has prepared.

        Raises:
            _Failure: It got what does not lie in the sandbox.
        """
        for path in self._attack.reads:
            data = b""
            with suppress(SandboxFileError):
                data = self._session.read(path, 1 << 16)
            if self._secret.encode() in data:
                raise _Failure(f"it got out: the file {path!r} holds the secret")
        if self._attack.reads:
            self._session.list_files()

    def _fork(self) -> None:
        """Checks a copy of the session, if there can be one.

        Raises:
            _Failure: It is not as healthy as the session.
        """
        try:
            copy = self._session.fork()
        except ForkError:
            return
        try:
            self._expect_health(copy, "a copy of the session")
        finally:
            copy.close()
