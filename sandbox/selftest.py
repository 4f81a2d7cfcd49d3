"""What a back end really holds against on this machine: the attack list is run, not assumed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agentrl.sandbox.attacks.attack import Bare
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.check import AttackOutcome, run_attacks
from agentrl.sandbox.core import Limits, Sandbox, SecurityLevel, Session


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What came of the attacks.

    Example:
        SelfTest(name="docker", claimed=SecurityLevel.CONTAINER, outcomes=(...))
    """

    name: str
    claimed: SecurityLevel
    outcomes: tuple[AttackOutcome, ...]

    @property
    def failed(self) -> tuple[AttackOutcome, ...]:
        """Attacks after which something did not hold."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    @property
    def level(self) -> SecurityLevel:
        """What the back end holds against: the level that it claims, or none if a single attack says otherwise.

        Taking more memory than allowed is not getting out; `binds_memory` tells of that.
        """
        got_out = any(outcome.attack.group != "memory" for outcome in self.failed)
        return SecurityLevel.NONE if got_out else self.claimed

    @property
    def binds_memory(self) -> bool:
        """Whether no program got more memory than its limit."""
        return all(outcome.attack.group != "memory" for outcome in self.failed)

    def by_group(self) -> dict[str, tuple[int, int]]:
        """Group to the number of attacks that were held and of all."""
        held = Counter(outcome.attack.group for outcome in self.outcomes if outcome.passed)
        everything = Counter(outcome.attack.group for outcome in self.outcomes)
        return {group: (held[group], number) for group, number in everything.items()}


def self_test(sandbox: Sandbox, report: Callable[[AttackOutcome], None] = lambda _: None) -> SelfTest:
    """Runs the attacks against a back end, which takes about a minute.

    Without isolation only those programs are run that do no harm.

    Args:
        sandbox: The back end.
        report: Gets every outcome as it comes.

    Raises:
        SandboxUnavailableError: The back end cannot run here.
        InfrastructureError: It fails.
    """
    isolates = sandbox.security_level > SecurityLevel.NONE
    attacks = [attack for attack in ATTACKS if isolates or attack.bare is Bare.HOLDS]

    def open_session(limits: Limits) -> Session:
        return sandbox.open(limits=limits)

    outcomes = []
    for outcome in run_attacks(open_session, attacks):
        report(outcome)
        outcomes.append(outcome)
    return SelfTest(sandbox.name, sandbox.security_level, tuple(outcomes))
