"""Measuring a policy: episodes on held-out tasks, and what came of them."""

from collections.abc import Callable, Sequence

from agentrl.evaluation.report import EvaluationReport, summarize
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import Collector
from agentrl.rollout.plan import GroupPlan
from agentrl.trajectory import Tree


def evaluate(
    collector: Collector,
    tasks: Sequence[int],
    *,
    environment: str,
    policy: str,
    attempts: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    on_tree: Callable[[Tree], None] | None = None,
) -> tuple[EvaluationReport, list[Tree]]:
    """Plays every task `attempts` times, independently, and reports.

    Args:
        collector: Policy, environment and limits.
        tasks: Indices into the environment's split.
        environment: Name of environment and split in the report.
        policy: Name of the policy in the report.
        attempts: Episodes per task; pass@k is estimated for every k up to it.
        sampling: How tokens are drawn; temperature 1 by default.
        seed: With it, the same weights and deterministic tools give the same episodes.
        on_tree: Called with every finished task.

    Returns:
        The report, and the episodes it is made from: one tree per task.
    """
    sampling = sampling or Sampling()
    trees = collector.collect(tasks, GroupPlan(size=attempts), seed=seed, sampling=sampling, on_tree=on_tree)
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "seed": seed}
    return summarize(trees, environment=environment, policy=policy, settings=settings), trees
