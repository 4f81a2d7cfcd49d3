"""Measuring a policy: episodes on held-out tasks, and what came of them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium

from agentrl.evaluation.report import EvaluationReport, summarize
from agentrl.policies.core import Sampling
from agentrl.rollout.plan import GroupPlan
from agentrl.trajectory import Tree


class EpisodeSource(Protocol):
    """What plays episodes: a `Collector`, or an `EndpointCollector` for a served model."""

    def collect(
        self,
        tasks: Sequence[int],
        plan: GroupPlan,
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_tree: Callable[[Tree], None] | None = None,
    ) -> list[Tree]:
        """One tree per task, in the order of `tasks`."""
        ...


def evaluate(
    collector: EpisodeSource,
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


def describe_tasks(env: gymnasium.Env[Any, Any]) -> str:
    """Names the tasks of an environment: its id, its split, and the arguments that it was made with.

    Reports can be compared if this is the same.

    Example:
        "agentrl/Arithmetic-v0 test level=2"
    """
    if env.spec is None:
        return type(env.unwrapped).__name__
    arguments = dict(env.spec.kwargs)
    split = arguments.pop("split", None)
    named = [f"{key}={value!r}" for key, value in sorted(arguments.items())]
    return " ".join([env.spec.id, *([str(split)] if split else []), *named])
