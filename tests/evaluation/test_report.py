"""Reports from hand-made trees: every number with its arithmetic, nothing dropped, and the round trip."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentrl.errors import ConfigError, DataError
from agentrl.evaluation.render import (
    format_comparison,
    format_estimate,
    format_report,
    print_report,
)
from agentrl.evaluation.report import (
    EvaluationReport,
    InvalidEpisode,
    TaskOutcome,
    ToolUse,
    compare,
    read_report,
    summarize,
)
from agentrl.evaluation.statistics import Tally, mean_pass_at_k, success_rate
from agentrl.trajectory import StopReason, Tree


def attempt(tree: Tree, success: bool, *, turns: int = 1, sampled: int = 3, **leaf: Any) -> None:
    """Adds an independent attempt of `turns` turns with `sampled` sampled and two forced tokens each."""
    from agentrl.trajectory import Leaf

    last = 0
    for turn in range(turns):
        mask = [1] * sampled + [0, 0]
        last = tree.add(last, "assistant", turn, list(range(sampled + 2)), action_mask=mask).id
        last = tree.add(last, "environment", turn, [7, 8]).id
    leaf.setdefault("stop_reason", StopReason.ANSWERED)
    tree.leaves.append(Leaf(last, reward=float(success), success=success, num_turns=turns, **leaf))


def task(task_id: str) -> Tree:
    tree = Tree(task_id)
    tree.add(None, "prompt", 0, [1, 2, 3])
    return tree


@pytest.fixture
def trees() -> list[Tree]:
    a, b, c = task("a"), task("b"), task("c")
    attempt(a, True, turns=2, tool_calls={"calculator": 2}, tool_errors={"calculator": 1})
    attempt(a, True, turns=1, tool_calls={"search": 1})
    attempt(b, False, turns=3, sampled=5, stop_reason=StopReason.MAX_TURNS, tool_calls={"calculator": 3})
    attempt(b, False, stop_reason=StopReason.INVALID, error="sandbox\ndied", tool_calls={"calculator": 9})
    attempt(c, True)
    attempt(c, False)
    return [a, b, c]


def report_of(trees: list[Tree], **arguments: Any) -> EvaluationReport:
    return summarize(trees, environment="agentrl/Toy-v0 test", policy="runs/x", **arguments)


def test_counts_and_means(trees: list[Tree]) -> None:
    report = report_of(trees)
    assert report.tasks == (TaskOutcome("a", 2, 2, 0), TaskOutcome("b", 0, 1, 1), TaskOutcome("c", 1, 2, 0))
    assert (report.num_episodes, report.num_valid, report.num_successes) == (6, 5, 3)
    assert report.mean_reward == pytest.approx(3 / 5)
    assert report.mean_turns == pytest.approx((2 + 1 + 3 + 1 + 1) / 5)
    # 3 tokens a turn, 5 in task b; forced tokens and tool results do not count: 2*3 + 3 + 3*5 + 3 + 3
    assert report.mean_sampled_tokens == pytest.approx(30 / 5)
    assert report.tools == {"calculator": ToolUse(5, 1), "search": ToolUse(1, 0)}


def test_invalid_episodes_are_out_of_every_rate_and_in_the_list(trees: list[Tree]) -> None:
    report = report_of(trees)
    assert report.invalid_episodes == (InvalidEpisode("b", "sandbox\ndied"),)
    assert report.stop_reasons == {StopReason.ANSWERED: 4, StopReason.MAX_TURNS: 1, StopReason.INVALID: 1}
    assert sum(report.stop_reasons.values()) == report.num_episodes
    assert report.success == success_rate([Tally(2, 2), Tally(0, 1), Tally(1, 2)])


def test_pass_at_k_says_how_many_tasks_it_rests_on(trees: list[Tree]) -> None:
    one, two = report_of(trees).pass_at_k
    assert (one.k, one.num_tasks, two.k, two.num_tasks) == (1, 3, 2, 2)
    assert one.estimate.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert two.estimate == mean_pass_at_k([Tally(2, 2), Tally(1, 2)], 2)  # task b has one valid attempt


def test_trees_of_one_task_are_one_cluster(trees: list[Tree]) -> None:
    again = task("a")
    attempt(again, False)
    assert report_of([*trees, again]).tasks[0] == TaskOutcome("a", 2, 3, 0)


def test_the_confidence_reaches_every_interval(trees: list[Tree]) -> None:
    wide, narrow = report_of(trees, confidence=0.99), report_of(trees, confidence=0.5)
    assert wide.success is not None
    assert narrow.success is not None
    assert wide.success.low < narrow.success.low < narrow.success.high < wide.success.high
    assert wide.pass_at_k[1].estimate.confidence == 0.99


def test_nothing_valid_is_not_zero_success() -> None:
    tree = task("a")
    attempt(tree, False, stop_reason=StopReason.INVALID)
    report = report_of([tree])
    assert (report.success, report.mean_reward, report.pass_at_k) == (None, None, ())
    assert report.invalid_episodes == (InvalidEpisode("a", "unknown failure"),)
    assert "not measured: no episode was valid" in format_report(report)
    assert EvaluationReport.from_json(report.to_json()) == report


def test_no_episode_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one episode"):
        report_of([])


def test_branched_attempts_are_refused(trees: list[Tree]) -> None:
    attempt(trees[2], True, fork_of=1)
    with pytest.raises(ConfigError, match="Task 'c' has branched attempts"):
        report_of(trees)


# JSON


def test_round_trip_through_a_file(trees: list[Tree], tmp_path: Path) -> None:
    report = report_of(trees, settings={"temperature": 1.0, "seed": 3, "greedy": False, "limit": None, "note": "ü"})
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json(), allow_nan=False), encoding="utf-8")
    assert read_report(path) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "report.json: Expecting property name"),
        ("[]", "report.json: Not an evaluation report: the whole"),
        ("{}", "report.json: Not an evaluation report: environment"),
    ],
)
def test_what_is_no_report(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_report(tmp_path / "report.json")
    with pytest.raises(DataError, match=r"Cannot read the report .*none\.json: No such file or directory"):
        read_report(tmp_path / "none.json")


# Comparison


def outcomes(successes: dict[str, bool], environment: str = "e") -> EvaluationReport:
    trees = []
    for task_id, success in successes.items():
        trees.append(task(task_id))
        attempt(trees[-1], success)
    return summarize(trees, environment=environment, policy="p")


def test_tasks_are_matched_by_name_not_by_order() -> None:
    first = outcomes({"a": True, "b": False, "c": False, "only first": True})
    second = outcomes({"only second": False, "c": True, "b": True, "a": True})
    result = compare(first, second)
    assert (result.num_tasks, result.num_better, result.num_worse) == (3, 2, 0)
    assert result.difference.value == pytest.approx(2 / 3)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="'e' and 'other'"):
        compare(outcomes({"a": True}), outcomes({"a": True}, "other"))
    with pytest.raises(ConfigError, match="share no task"):
        compare(outcomes({"a": True}), outcomes({"b": True}))


def test_comparison_in_words() -> None:
    # 7 of 10 tasks better: p = 2 * (1/2)^7 = 0.0156
    first, second = outcomes({str(i): i >= 7 for i in range(10)}), outcomes({str(i): True for i in range(10)})
    text = format_comparison(compare(first, second))
    assert text.startswith("difference +70.0 points [+")
    assert "p = 0.0156; better on 7 and worse on 0 of 10 tasks" in text
    many = format_comparison(
        compare(outcomes({str(i): False for i in range(30)}), outcomes({str(i): True for i in range(30)}))
    )
    assert "p < 0.0001" in many


# For people


def test_plain_text(trees: list[Tree]) -> None:
    report = report_of(trees, settings={"temperature": 1.0})
    assert report.success is not None
    assert format_report(report).splitlines() == [
        "environment      agentrl/Toy-v0 test",
        "policy           runs/x",
        "settings         temperature 1.0",
        "episodes         6 (3 tasks, 2 per task); 1 invalid and not counted (success 50.0 % if they had failed)",
        f"success          {format_estimate(report.success)}  3 of 5, 95 % interval over tasks",
        f"pass@2           {format_estimate(report.pass_at_k[1].estimate)}  (2 tasks)",
        "reward           0.600 per episode",
        "turns            1.60 per episode",
        "tokens           6.0 sampled per episode",
        "tool calculator  1.00 calls per episode, 1 of 5 failed",
        "tool search      0.20 calls per episode, 0 of 1 failed",
        "ended            answered 4, max_turns 1, invalid 1",
        "invalid          b: sandbox died",
    ]


def test_long_lists_are_cut_with_a_count() -> None:
    tree = task("a")
    attempt(tree, True, tool_calls={f"made_up_{i}": 1 for i in range(25)})
    for _ in range(23):
        attempt(tree, False, stop_reason=StopReason.INVALID, error="gone")
    text = format_report(report_of([tree]))
    assert text.count("tool made_up_") == 20
    assert [line.split()[0] for line in text.splitlines() if "more, all in the JSON" in line] == ["tools", "invalid"]
    assert "... and 5 more, all in the JSON report" in text
    assert text.count("a: gone") == 20
    assert "... and 3 more, all in the JSON report" in text


def test_powers_of_two_and_the_largest_k() -> None:
    tree = task("a")
    for i in range(6):
        attempt(tree, i == 0)
    labels = [line.split()[0] for line in format_report(report_of([tree])).splitlines()]
    assert [label for label in labels if label.startswith("pass@")] == ["pass@2", "pass@4", "pass@6"]


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_only_in_a_terminal(trees: list[Tree], terminal: bool) -> None:
    trees[0].task_id = "[bold]b[/bold]"
    attempt(trees[0], False, stop_reason=StopReason.INVALID, error="x" * 300)
    out = io.StringIO()
    print_report(report_of(trees), Console(file=out, force_terminal=terminal, width=80, color_system="standard"))
    assert ("\x1b[" in out.getvalue()) is terminal
    assert (max(map(len, out.getvalue().splitlines())) > 300) is not terminal  # a pipe gets whole lines
    assert "[bold]b[/bold]" in out.getvalue()  # text of others is not read as markup
