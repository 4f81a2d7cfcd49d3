"""Success rates with intervals, comparisons and reports."""

from agentrl.evaluation.curves import plot_curves
from agentrl.evaluation.evaluate import describe_tasks, evaluate
from agentrl.evaluation.render import format_comparison, format_report, print_report
from agentrl.evaluation.report import EvaluationReport, compare, read_report, summarize
from agentrl.evaluation.statistics import (
    Estimate,
    PairedDifference,
    Tally,
    mean_pass_at_k,
    minimum_detectable_difference,
    paired_difference,
    pass_at_k,
    success_rate,
    wilson_interval,
)

__all__ = [
    "Estimate",
    "EvaluationReport",
    "PairedDifference",
    "Tally",
    "compare",
    "describe_tasks",
    "evaluate",
    "format_comparison",
    "format_report",
    "mean_pass_at_k",
    "minimum_detectable_difference",
    "paired_difference",
    "pass_at_k",
    "plot_curves",
    "print_report",
    "read_report",
    "success_rate",
    "summarize",
    "wilson_interval",
]
