"""`agentrl replay`: every call compared, effects only when they are asked for, and an exit status for scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ledger_env import Ledger

from agentrl.call_records import Outcome
from agentrl.cli.replay import compare_outcomes
from agentrl.journal import Journal
from agentrl.messages import MalformedCall, ToolCall
from agentrl.runs import RunFolder
from agentrl.trainers.settings import TrainSettings

LOOK, WRITE, UNKNOWN = ToolCall("look", {"what": "all"}), ToolCall("write", {"text": "!"}), ToolCall("lok", {})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "world"
    path.write_text("as ever\n")
    monkeypatch.setenv("LEDGER_WORLD", str(path))
    return path


@pytest.fixture
def play(agentrl: Any, world: Path, tmp_path: Path) -> Callable[..., RunFolder]:
    """A run whose only episode, 4.0.0, makes the given calls."""

    def played(*calls: ToolCall | MalformedCall, die_in: ToolCall | None = None) -> RunFolder:
        settings = TrainSettings.model_validate({"env": {"id": "ledger_env:Ledger-v0"}})
        with RunFolder.create(tmp_path / "runs" / "toy", settings, seed=0, command="x") as run:
            journal = Journal(run.calls_path)
            journal.begin("4")
            env = Ledger()
            env.reset(options={"task": 7})
            env.record_calls(journal.open_episode(0, (0,), task=7, split="train"))
            for call in calls:
                env.toolbox.call(call)
            if die_in is not None:
                env.toolbox.log.begin(die_in, idempotent=True, stale=False)
            env.close()
            journal.close()
        return run

    return played


def lines(result: Result, code: int) -> list[str]:
    assert result.exit_code == code, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


def without_times(text: list[str]) -> list[str]:
    return [line.rsplit("  ", 1)[0].rstrip() if line.endswith(" ms") else line for line in text]


def test_all_equal(play: Any, agentrl: Any) -> None:
    play(
        LOOK, ToolCall("total", {"amount": 2}), ToolCall("total", {"amount": 3}), UNKNOWN, MalformedCall("{", "cut off")
    )
    assert without_times(lines(agentrl("replay", "toy", "4.0.0"), 0)) == [
        "episode 4.0.0: task 7 of train, 5 calls",
        '   0  equal         look(what="all")',
        "   1  equal         total(amount=2)",
        "   2  equal         total(amount=3)",
        "   3  equal         lok()",
        "   4  equal         (malformed) {",
        "5 equal",
    ]


def test_results_that_drift_are_shown_as_they_differ(play: Any, agentrl: Any, world: Path) -> None:
    play(LOOK, ToolCall("look", {"what": "missing"}), ToolCall("total", {"amount": 2}))
    world.write_text("as\nnever\n")
    assert without_times(lines(agentrl("replay", "toy", "4.0.0"), 1)) == [
        "episode 4.0.0: task 7 of train, 3 calls",
        '   0  differs       look(what="all")',
        "      - as ever",
        "      + as",
        "      + never",
        '   1  differs       look(what="missing")',
        "      - as ever",
        "      + as",
        "      + never",
        "   2  equal         total(amount=2)",
        "2 differs, 1 equal",
    ]


def test_a_status_that_differs(play: Any, agentrl: Any, world: Path) -> None:
    play(ToolCall("look", {"what": "missing"}))
    world.write_text("")
    assert "      then ok, now error: there is nothing" in lines(agentrl("replay", "toy", "4.0.0"), 1)


def test_a_failure_of_the_infrastructure_ends_it(play: Any, agentrl: Any, world: Path) -> None:
    play(ToolCall("look", {"what": "down"}), LOOK)
    world.write_text("down")
    shown = lines(agentrl("replay", "toy", "4.0.0"), 1)
    assert "      then ok, now infrastructure: InfrastructureError: the world is gone" in shown
    assert shown[-1] == "1 status differs"


def test_effects_are_repeated_only_when_that_is_asked_for(play: Any, agentrl: Any, world: Path) -> None:
    play(WRITE, ToolCall("total", {"amount": 2}))
    assert world.read_text() == "as ever\n!"
    shown = without_times(lines(agentrl("replay", "toy", "4.0.0"), 0))
    assert shown[1] == '   0  skipped       write(text="!")'
    assert shown[3:] == [
        "1 skipped, 1 equal",
        "skipped calls are not idempotent; --execute-all runs them again, with whatever they do",
    ]
    assert world.read_text() == "as ever\n!"
    assert lines(agentrl("replay", "toy", "4.0.0", "--execute-all"), 0)[-1] == "2 equal"
    assert world.read_text() == "as ever\n!!"


def test_a_tool_that_was_idempotent_then_but_is_not_now_is_skipped(
    play: Any, agentrl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(LOOK)
    monkeypatch.setattr(Ledger.tools[0], "idempotent", False)
    assert lines(agentrl("replay", "toy", "4.0.0"), 0)[2] == "1 skipped"


def test_a_call_that_the_process_did_not_survive(play: Any, agentrl: Any) -> None:
    play(LOOK, die_in=LOOK)
    shown = lines(agentrl("replay", "toy", "4.0.0"), 0)
    assert shown[2].startswith("   1  no record")
    assert shown[-1] == "1 equal, 1 no record"


def test_misuse(play: Any, agentrl: Any) -> None:
    run = play()
    assert lines(agentrl("replay", "toy", "4.0.0"), 0)[-1] == "nothing to replay"
    for name, message in [
        ("4.0.1", "'4.0.1' names no episode of runs/toy. Did you mean '4.0.0'?"),
        ("5.0.0", "'5.0.0' names no episode of runs/toy. Names are as `agentrl show` prints them"),
        ("nonsense", "'nonsense' names no episode"),
    ]:
        result = agentrl("replay", "toy", name)
        assert result.exit_code == 2
        assert message in result.stderr
    (run.calls_path / "4.jsonl").unlink()
    run.calls_path.rmdir()
    assert "runs/toy has no journal of tool calls" in agentrl("replay", "toy", "4.0.0").stderr


def test_verdicts() -> None:
    then = Outcome("ok", "a" * 200 + "b", 0.5)
    slower = compare_outcomes(then, Outcome("ok", then.text, 1.2))
    assert (slower.verdict, slower.detail, slower.drifted) == ("slower", "then 0.500 s, now 1.200 s", False)
    assert compare_outcomes(then, Outcome("ok", then.text, 0.9)).verdict == "equal", "less than twice as long"
    quick = Outcome("ok", "x", 0.0001)
    assert compare_outcomes(quick, Outcome("ok", "x", 0.09)).verdict == "equal", "less than 0.1 s longer"
    differs = compare_outcomes(then, Outcome("ok", "a" * 200 + "c"))
    # The first difference is at 200; what is shown begins 120 // 3 = 40 characters before it.
    assert differs.detail == f"- ... {'a' * 40}b\n+ ... {'a' * 40}c"
    assert compare_outcomes(Outcome("ok", "a\n"), Outcome("ok", "a\r\n")).detail == "in line breaks only"
    long = compare_outcomes(Outcome("ok", "\n".join("ab" * 10)), Outcome("ok", "\n".join("cd" * 10)))
    assert long.detail.splitlines()[-1] == "and 28 more lines"  # 20 go, 20 come, 12 are shown
