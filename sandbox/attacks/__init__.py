"""Programs that attack a sandbox, and the check of what came of them."""

from agentrl.sandbox.attacks.attack import Attack, Bare, Cell, Ending, Expectation
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.check import AttackOutcome, run_attack, run_attacks
from agentrl.sandbox.attacks.surroundings import Surroundings

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackOutcome",
    "Bare",
    "Cell",
    "Ending",
    "Expectation",
    "Surroundings",
    "run_attack",
    "run_attacks",
]
