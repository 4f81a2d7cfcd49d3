"""Reports for people: a table in a terminal, plain lines elsewhere."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.evaluation.report import EvaluationReport, PassAtK
from agentrl.evaluation.statistics import Estimate, PairedDifference

MAX_LISTED = 20


def format_report(report: EvaluationReport) -> str:
    """The report as plain lines of unlimited width."""
    rows = list(_rows(report))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def render_report(report: EvaluationReport) -> Table:
    """The report as a table for a rich console."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(report):
        style = {"success": "bold green", "invalid": "red"}.get(label, "")
        table.add_row(Text(label), Text(value, style))
    return table


def print_report(report: EvaluationReport, console: Console) -> None:
    """Prints the table to a terminal, plain lines to a file or pipe."""
    if console.is_terminal:
        console.print(render_report(report))
    else:
        console.file.write(format_report(report) + "\n")


def format_estimate(estimate: Estimate) -> str:
    """A rate with its interval in percent.

    >>> format_estimate(Estimate(0.83, 0.7718, 0.8757))
    '83.0 % [77.2, 87.6]'
    """
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def format_comparison(result: PairedDifference) -> str:
    """One sentence on how the second policy compares with the first."""
    p_value = "p < 0.0001" if result.p_value < 1e-4 else f"p = {result.p_value:.4f}"
    value, low, high = (100 * x for x in (result.difference.value, result.difference.low, result.difference.high))
    return (
        f"difference {value:+.1f} points [{low:+.1f}, {high:+.1f}], {p_value}; "
        f"better on {result.num_better} and worse on {result.num_worse} of {result.num_tasks} tasks; "
        f"detectable from {100 * result.minimum_detectable:.1f} points"
    )


def _rows(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    yield "environment", report.environment
    yield "policy", report.policy
    if report.settings:
        yield "settings", ", ".join(f"{key} {value}" for key, value in report.settings.items())
    yield "episodes", _episodes(report)
    if report.success is None:
        yield "success", "not measured: no episode was valid"
    else:
        counts = f"{report.num_successes} of {report.num_valid}"
        interval = f"{100 * report.success.confidence:g} % interval over tasks"
        yield "success", f"{format_estimate(report.success)}  {counts}, {interval}"
    for row in report.pass_at_k:
        if _is_shown(row, report.pass_at_k[-1].k):
            fewer = f"  ({row.num_tasks} tasks)" if row.num_tasks < len(report.tasks) else ""
            yield f"pass@{row.k}", format_estimate(row.estimate) + fewer
    if report.mean_reward is not None:
        yield "reward", f"{report.mean_reward:.3f} per episode"
        yield "turns", f"{report.mean_turns:.2f} per episode"
        tokens = report.mean_sampled_tokens
        yield (
            "tokens",
            "unknown: the server did not count them" if tokens is None else f"{tokens:.1f} sampled per episode",
        )
    yield from _tool_rows(report)
    yield "ended", ", ".join(f"{reason} {count}" for reason, count in report.stop_reasons.items())
    for episode in report.invalid_episodes[:MAX_LISTED]:
        yield "invalid", f"{episode.task_id}: {' '.join(episode.error.split())}"
    if len(report.invalid_episodes) > MAX_LISTED:
        yield "invalid", f"... and {len(report.invalid_episodes) - MAX_LISTED} more, all in the JSON report"


def _tool_rows(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    by_use = sorted(report.tools.items(), key=lambda item: -item[1].calls)
    for name, use in by_use[:MAX_LISTED]:  # a model may invent any number of names
        calls = f"{use.calls / report.num_valid:.2f} calls per episode"
        yield f"tool {name}", f"{calls}, {use.errors} of {use.calls} failed"
    if len(by_use) > MAX_LISTED:
        yield "tools", f"... and {len(by_use) - MAX_LISTED} more, all in the JSON report"


def _episodes(report: EvaluationReport) -> str:
    attempts = {task.attempts + task.invalid for task in report.tasks}
    each = f"{min(attempts)}" if len(attempts) == 1 else f"{min(attempts)} to {max(attempts)}"
    text = f"{report.num_episodes} ({len(report.tasks)} task{'' if len(report.tasks) == 1 else 's'}, {each} per task)"
    if report.invalid_episodes:
        worst = f"{100 * report.num_successes / report.num_episodes:.1f} %"
        text += f"; {len(report.invalid_episodes)} invalid and not counted (success {worst} if they had failed)"
    return text


def _is_shown(row: PassAtK, largest: int) -> bool:
    """Powers of two and the largest k; k = 1 is the success rate unless attempts differ."""
    return row.k > 1 and (row.k == largest or row.k.bit_count() == 1)
