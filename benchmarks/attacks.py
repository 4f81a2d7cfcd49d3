"""Every attack against every isolating back end: what came of it, as a Markdown table.

    python benchmarks/attacks.py --image agentrl-sandbox

`agentrl sandbox selftest` does the same for one back end and prints only what failed.
"""

import argparse

from agentrl.sandbox import Sandbox, open_sandbox
from agentrl.sandbox.attacks.catalog import ATTACKS
from agentrl.sandbox.attacks.check import AttackOutcome
from agentrl.sandbox.selftest import self_test


def describe(outcome: AttackOutcome) -> str:
    """How an attack ended, in a few words."""
    if not outcome.passed:
        return f"**FAILED**: {outcome.detail[:80]}"
    result = outcome.result
    if result is None:
        return "held"
    reason = f" ({result.reason})" if result.reason else ""
    return f"{result.status}{reason}" + (", reset" if result.state == "reset" else "")


def main() -> None:
    """Runs all attacks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="agentrl-sandbox", help="for docker")
    arguments = parser.parse_args()
    back_ends: dict[str, Sandbox] = {
        "docker": open_sandbox("docker", image=arguments.image),
        "bubblewrap": open_sandbox("bubblewrap"),
    }
    found = {name: {o.attack.id: o for o in self_test(sandbox).outcomes} for name, sandbox in back_ends.items()}
    print(f"| id | group | case | {' | '.join(found)} |")
    print(f"| ---: | --- | --- |{' --- |' * len(found)}")
    for attack in ATTACKS:
        cells = [describe(outcomes[attack.id]) for outcomes in found.values()]
        print(f"| {attack.id} | {attack.group} | {attack.name} | {' | '.join(cells)} |")
    for name, outcomes in found.items():
        num_held = sum(outcome.passed for outcome in outcomes.values())
        print(f"\n{name}: {num_held} of {len(outcomes)} held")


if __name__ == "__main__":
    main()
