"""What an evaluation found, as pure data: success with intervals, tool use, and why episodes ended."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from agentrl.errors import ConfigError, DataError
from agentrl.evaluation.statistics import (
    Estimate,
    PairedDifference,
    Tally,
    mean_pass_at_k,
    paired_difference,
    success_rate,
)
from agentrl.messages import JsonDict
from agentrl.trajectory import Leaf, StopReason, Tree

Setting: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What became of the attempts at one task.

    Example:
        TaskOutcome(task_id="test-17", successes=3, attempts=4, invalid=0)
    """

    task_id: str
    successes: int
    attempts: int
    """Valid attempts."""
    invalid: int


@dataclass(frozen=True, slots=True)
class InvalidEpisode:
    """An attempt that infrastructure broke off; it says nothing about the policy."""

    task_id: str
    error: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Calls of one tool in all valid episodes together."""

    calls: int
    errors: int
    """Calls whose result was an error, timeouts included."""


@dataclass(frozen=True, slots=True)
class PassAtK:
    """The probability that at least one of k attempts succeeds."""

    k: int
    estimate: Estimate
    num_tasks: int
    """Tasks with at least k valid attempts, the ones this is estimated from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """The result of one evaluation. Means and rates are over valid episodes; every episode is in `stop_reasons`.

    Example:
        EvaluationReport(environment="agentrl/Arithmetic-v0", policy="runs/first/checkpoints/last",
                         settings={"temperature": 1.0}, success=Estimate(0.83, 0.7718, 0.8757, 0.95), ...)
    """

    environment: str
    """Names the tasks: reports with the same name can be compared task by task."""
    policy: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """How it was measured: temperature, seed, limits."""
    success: Estimate | None
    """Clustered by task; None if no episode was valid."""
    pass_at_k: tuple[PassAtK, ...]
    """For every k up to the number of attempts."""
    mean_reward: float | None
    mean_turns: float | None
    mean_sampled_tokens: float | None
    """Tokens per episode that the policy sampled; None also where a served model's tokens were not counted."""
    tools: Mapping[str, ToolUse]
    stop_reasons: Mapping[StopReason, int]
    """Episodes per reason, invalid ones included."""
    tasks: tuple[TaskOutcome, ...]
    invalid_episodes: tuple[InvalidEpisode, ...]

    @property
    def num_valid(self) -> int:
        """Episodes that count."""
        return sum(task.attempts for task in self.tasks)

    @property
    def num_successes(self) -> int:
        """Valid episodes that succeeded."""
        return sum(task.successes for task in self.tasks)

    @property
    def num_episodes(self) -> int:
        """All episodes, invalid ones included."""
        return self.num_valid + len(self.invalid_episodes)

    def to_json(self) -> JsonDict:
        """A JSON-clean dictionary."""
        data: JsonDict = _REPORT.dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvaluationReport":
        """The inverse of `to_json`.

        Raises:
            DataError: It is not a report.
        """
        try:
            return _REPORT.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise DataError(f"Not an evaluation report: {place}: {first['msg']}.") from None


_REPORT = TypeAdapter(EvaluationReport)


def read_report(path: Path) -> EvaluationReport:
    """Reads a report from the JSON file that `agentrl eval --json` wrote.

    Raises:
        DataError: The file cannot be read or is not a report.
    """
    try:
        return EvaluationReport.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"Cannot read the report {path}: {error.strerror}.") from None
    except ValueError as error:  # not JSON, or DataError
        raise DataError(f"{path}: {error}") from None


def summarize(
    trees: Sequence[Tree],
    *,
    environment: str,
    policy: str,
    settings: Mapping[str, Setting] | None = None,
    confidence: float = 0.95,
) -> EvaluationReport:
    """Summarizes independent attempts; trees of the same task are taken together.

    Args:
        trees: One tree per task, whose leaves are its attempts.
        environment: Names the tasks, such as "agentrl/Arithmetic-v0 test".
        policy: Names what was evaluated.
        settings: How it was measured.
        confidence: Coverage of the intervals.

    Raises:
        ConfigError: No episode at all, or attempts that were branched from one another and so are not independent.
    """
    attempts: dict[str, list[Leaf]] = {}
    for tree in trees:
        if any(leaf.fork_of is not None for leaf in tree.leaves):
            raise ConfigError(
                f"Task {tree.task_id!r} has branched attempts, which are not independent; evaluate without branching."
            )
        attempts.setdefault(tree.task_id, []).extend(tree.leaves)
    leaves = [leaf for group in attempts.values() for leaf in group]
    if not leaves:
        raise ConfigError("An evaluation needs at least one episode, got none.")
    valid = [leaf for leaf in leaves if leaf.valid]
    tasks = tuple(_outcome(task_id, group) for task_id, group in attempts.items())
    tallies = [Tally(task.successes, task.attempts) for task in tasks if task.attempts]
    return EvaluationReport(
        environment=environment,
        policy=policy,
        settings=dict(settings or {}),
        success=success_rate(tallies, confidence) if tallies else None,
        pass_at_k=_pass_at_every_k(tallies, confidence),
        mean_reward=_mean([leaf.reward for leaf in valid]),
        mean_turns=_mean([leaf.num_turns for leaf in valid]),
        mean_sampled_tokens=_mean_sampled_tokens(trees),
        tools=_tool_use(valid),
        stop_reasons={
            reason: count for reason in StopReason if (count := sum(x.stop_reason is reason for x in leaves))
        },
        tasks=tasks,
        invalid_episodes=tuple(
            InvalidEpisode(task_id, leaf.error or "unknown failure")
            for task_id, group in attempts.items()
            for leaf in group
            if not leaf.valid
        ),
    )


def compare(first: EvaluationReport, second: EvaluationReport) -> PairedDifference:
    """Compares two policies on the tasks that both have valid attempts at.

    Raises:
        ConfigError: The reports are of different environments or share no task.
    """
    if first.environment != second.environment:
        raise ConfigError(
            f"Reports of different environments cannot be compared: {first.environment!r} and {second.environment!r}."
        )
    ours = {task.task_id: Tally(task.successes, task.attempts) for task in first.tasks if task.attempts}
    theirs = {task.task_id: Tally(task.successes, task.attempts) for task in second.tasks if task.attempts}
    shared = [task_id for task_id in ours if task_id in theirs]
    if not shared:
        raise ConfigError(
            "The two reports share no task with valid attempts; evaluate both on the same split and seed."
        )
    confidence = second.success.confidence if second.success else 0.95
    return paired_difference([ours[task_id] for task_id in shared], [theirs[task_id] for task_id in shared], confidence)


def _outcome(task_id: str, leaves: Sequence[Leaf]) -> TaskOutcome:
    valid = [leaf for leaf in leaves if leaf.valid]
    return TaskOutcome(task_id, sum(leaf.success for leaf in valid), len(valid), len(leaves) - len(valid))


def _pass_at_every_k(tallies: Sequence[Tally], confidence: float) -> tuple[PassAtK, ...]:
    rows = []
    for k in range(1, max((tally.attempts for tally in tallies), default=0) + 1):
        enough = [tally for tally in tallies if tally.attempts >= k]
        rows.append(PassAtK(k, mean_pass_at_k(enough, k, confidence), len(enough)))
    return tuple(rows)


def _tool_use(leaves: Sequence[Leaf]) -> dict[str, ToolUse]:
    calls: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for leaf in leaves:
        calls.update(leaf.tool_calls)
        errors.update(leaf.tool_errors)
    return {name: ToolUse(calls[name], errors[name]) for name in sorted(calls)}


def _mean_sampled_tokens(trees: Sequence[Tree]) -> float | None:
    counts = [_sampled_tokens(tree, number) for tree in trees for number, leaf in enumerate(tree.leaves) if leaf.valid]
    known = [count for count in counts if count is not None]
    return _mean(known) if len(known) == len(counts) else None


def _sampled_tokens(tree: Tree, number: int) -> int | None:
    counted: Sequence[int | None] | None = tree.metadata.get("sampled_tokens")  # of a served model (`rollout.endpoint`)
    if counted is not None:
        return counted[number]
    return sum(sum(segment.action_mask) for segment in tree.path(tree.leaves[number].segment))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
