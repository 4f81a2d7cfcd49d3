"""What a back end claims is worth nothing: the level is that of the attacks that it held."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

import agentrl.sandbox
from agentrl.cli.sandbox import sandbox_app
from agentrl.sandbox import Limits, Sandbox, SecurityLevel, UnsafeSubprocess, selftest
from agentrl.sandbox.attacks import ATTACKS, Attack, Bare
from agentrl.sandbox.attacks.attack import BUSY, OUT_OF_MEMORY, error, ok
from agentrl.sandbox.selftest import self_test
from agentrl.sandbox.session import RunnerSession

LEAK = next(attack for attack in ATTACKS if attack.bare is Bare.REACHES)
ACCIDENT = next(attack for attack in ATTACKS if attack.id == 41)
GROWS = Attack(
    id=900,
    group="memory",
    name="takes 300 MB of the 200 that it may",
    code="blocks = b'x' * (300 << 20)\nprint(len(blocks))",
    expect=OUT_OF_MEMORY | error("MemoryError"),
)


class Pretender(UnsafeSubprocess):
    """Claims walls that it does not have."""

    name = "pretender"
    security_level = SecurityLevel.CONTAINER


class Spendthrift(Pretender):
    """Gives every program more memory than it may have."""

    name = "spendthrift"

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> RunnerSession:
        return super().open(limits=dataclasses.replace(limits, memory_mb=2000), files=files)


@pytest.fixture
def attack_with(monkeypatch: pytest.MonkeyPatch) -> "AttackWith":
    return AttackWith(monkeypatch)


class AttackWith:
    """Runs the command with a short list against a back end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, sandbox: Sandbox, attacks: Iterable[Attack]) -> tuple[int, list[str]]:
        self._monkeypatch.setattr(selftest, "ATTACKS", tuple(attacks))
        self._monkeypatch.setattr(agentrl.sandbox, "open_sandbox", lambda name: {sandbox.name: sandbox}[name])
        result = CliRunner().invoke(sandbox_app, ["selftest", "--sandbox", sandbox.name])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output.splitlines()


def test_a_back_end_that_leaks_has_no_level(attack_with: AttackWith) -> None:
    code, lines = attack_with(Pretender(), [ACCIDENT, LEAK])
    assert code == 1
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert failed.startswith(f"FAILED {LEAK.id} {LEAK.group}: {LEAK.name}: it got out")
    assert f"{ACCIDENT.group:<8}   1 of 1 held" in lines
    assert f"{LEAK.group:<8}   0 of 1 held" in lines
    assert lines[-1] == "pretender: level 0 (none): accidents only, no isolation"


def test_memory_that_grows_is_told_apart_from_getting_out(attack_with: AttackWith) -> None:
    code, lines = attack_with(Spendthrift(), [ACCIDENT, GROWS])
    assert code == 1
    assert any(line.startswith(f"FAILED 900 memory: {GROWS.name}") for line in lines)
    assert any(line.startswith("spendthrift: level 2 (container)") for line in lines)
    assert lines[-1] == "The memory of all processes together is not limited here: that needs control groups."


def test_memory_that_is_kept_is_not_complained_about(attack_with: AttackWith) -> None:
    """The control of the test before: with its limit the same program is stopped."""
    code, lines = attack_with(Pretender(), [ACCIDENT, GROWS])
    assert code == 0
    assert lines[-1].startswith("pretender: level 2 (container)")


def test_without_isolation_nothing_harmful_runs(attack_with: AttackWith, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    harm = dataclasses.replace(
        LEAK, id=901, code=f"open({str(touched)!r}, 'w')", bare=Bare.DANGEROUS, expect=ok(), limits=BUSY
    )
    code, lines = attack_with(UnsafeSubprocess(), [ACCIDENT, LEAK, harm])
    assert not touched.exists()
    assert (code, lines) == (
        0,
        [f"{ACCIDENT.group:<8}   1 of 1 held", "unsafe_subprocess: level 0 (none): accidents only, no isolation"],
    )


def test_without_isolation_all_harmless_ones_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Attack] = []
    monkeypatch.setattr(selftest, "run_attacks", lambda _, attacks: iter([seen.extend(attacks)][:0]))
    self_test(UnsafeSubprocess())
    assert seen == [attack for attack in ATTACKS if attack.bare is Bare.HOLDS]
    seen.clear()
    self_test(Pretender())
    assert seen == list(ATTACKS)
