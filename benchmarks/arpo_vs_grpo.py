"""ARPO against GRPO in the search environments, at equal numbers of trajectories and at equal numbers of tool calls.

    python benchmarks/arpo_vs_grpo.py             builds the policy, trains, prints the tables
    python benchmarks/arpo_vs_grpo.py --report    only prints the tables of what --out has

Both arms have the loss of `arpo`; only the sampling differs: 16 trajectories from the prompt, or 8 and branches after
tool results. Everything else is equal: the policy to start from (`search_policy.py` builds it), the order of training
tasks, the optimizer, the held-out tasks and the random streams on them. For every environment and seed both arms train
for the same number of updates, which are the same number of trajectories: the first comparison. The second is at equal
numbers of tool calls: the budget is what the arm with fewer calls made in all, and the other arm is measured after the
update at which it had come closest to it.

A tool call counts when a tool runs. Branches start from a copy of the environment and repeat nothing, so a call that
they share counts once. Calls of the evaluation do not count.

Measurements go to OUT/measurements.jsonl, both arms of an environment and seed at a time; those that are there are not
made again.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from search_policy import ENVS, build_policy

from agentrl.envs import ToolEnv, make
from agentrl.evaluation.statistics import Tally, paired_difference, success_rate
from agentrl.policies.loading import load_model
from agentrl.rollout.collector import Collector, RolloutLimits
from agentrl.rollout.plan import GroupPlan
from agentrl.seeding import derive
from agentrl.tools.core import Tool
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.recipes.arpo import arpo
from agentrl.trainers.rollouts import TaskOrder
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.update import Updater

PLANS: Mapping[str, GroupPlan] = {"grpo": GroupPlan(size=arpo().sampling.size), "arpo": arpo().sampling}
LIMITS = RolloutLimits(max_turn_tokens=40, max_episode_tokens=512)
_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the experiment."""

    updates: int
    tasks_per_update: int
    learning_rate: float
    eval_tasks: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What training has cost so far."""

    updates: int = 0
    trajectories: int = 0
    calls: int = 0
    """Tool calls that were executed."""
    path_calls: int = 0
    """The same, had every trajectory made the calls on its path itself."""
    sampled_tokens: int = 0
    branches: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Held-out success of one run at one moment."""

    env: str
    arm: str
    seed: int
    moment: str
    """"before", or which budget was spent: "samples" or "calls"."""
    spent: Spent
    training: list[float]
    """Success of the sampled trajectories, by update."""
    successes: list[int] = field(repr=False)
    """Of each held-out task, 1 or 0: it is attempted once."""

    @property
    def tallies(self) -> list[Tally]:
        """The same as tallies."""
        return [Tally(count, 1) for count in self.successes]


class Counted(Tool):
    """Another tool, without state, that counts how often it runs; all episodes and all branches share it."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self.inline, self.deadline_s = tool.inline, tool.deadline_s
        self.calls = 0

    def check(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """As the other tool."""
        return self._tool.check(arguments)

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Counts, and runs the other tool."""
        self.calls += 1
        return self._tool.call(arguments)


class Run:
    """One training run, update by update.

    Args:
        policy: Folder of the policy to start from.
        env: Environment.
        arm: Key of `PLANS`.
        seed: Of the run; task order and random streams derive from it.
        plan: Size of the experiment.
    """

    def __init__(self, policy: Path, env: str, arm: str, seed: int, plan: Plan) -> None:
        self.env, self.arm, self.seed, self.plan = env, arm, seed, plan
        self._loaded = load_model(str(policy), device="cpu")
        self._policy = self._loaded.policy()
        with closing(_make(env, "train")) as instance:
            self._order = TaskOrder(len(instance.task_set()), seed)
            self._tools = tuple(map(Counted, instance.tools))
        optimizer = OptimizerSettings(learning_rate=plan.learning_rate, mini_batches=2, max_tokens_per_micro_batch=2048)
        self._updater = Updater(
            replace(arpo(), sampling=PLANS[arm]),
            optimizer,
            TokenScorer(self._loaded.model),
            temperature=1.0,
            total_updates=plan.updates,
        )
        self._training: list[float] = []
        self.history = [(Spent(), self._weights())]
        """Costs and weights after 0, 1, 2, ... updates."""

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        return self.history[-1][0].calls

    def train(self) -> None:
        """All updates."""
        collector = self._collector("train", self._tools)
        for number in range(self.plan.updates):
            wall, cpu = time.monotonic(), time.process_time()
            seed = derive(self.seed, "update", number)
            trees = collector.collect(self._order.draw(self.plan.tasks_per_update), PLANS[self.arm], seed=seed)
            self._updater.update(trees, number=number, seed=seed)
            self._policy.weights_changed()
            before, leaves = self.history[-1][0], [leaf for tree in trees for leaf in tree.leaves]
            spent = Spent(
                updates=number + 1,
                trajectories=before.trajectories + len(leaves),
                calls=sum(tool.calls for tool in self._tools),
                path_calls=before.path_calls + sum(sum(leaf.tool_calls.values()) for leaf in leaves),
                sampled_tokens=before.sampled_tokens + sum(sum(s.action_mask) for t in trees for s in t.segments),
                branches=before.branches + sum(leaf.fork_of is not None for leaf in leaves),
                wall_s=before.wall_s + time.monotonic() - wall,
                cpu_s=before.cpu_s + time.process_time() - cpu,
            )
            self._training.append(round(statistics.fmean(leaf.success for leaf in leaves), 4))
            self.history.append((spent, self._weights()))

    def nearest(self, calls: int) -> int:
        """The number of updates after which it had made about so many tool calls."""
        return min(range(len(self.history)), key=lambda number: abs(self.history[number][0].calls - calls))

    def measure(self, moment: str, updates: int) -> Measurement:
        """Plays the held-out tasks as it was after some updates, with the same random streams for every run."""
        spent, weights = self.history[updates]
        self._loaded.model.load_state_dict(weights)
        self._policy.weights_changed()
        collector = self._collector("test")
        trees = collector.collect(range(self.plan.eval_tasks), GroupPlan(size=1), seed=derive(0, "held-out"))
        return Measurement(
            env=self.env,
            arm=self.arm,
            seed=self.seed,
            moment=moment,
            spent=spent,
            training=self._training[:updates],
            successes=[int(tree.leaves[0].success) for tree in trees],
        )

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self._loaded.model.state_dict().items()}

    def _collector(self, split: str, tools: tuple[Tool, ...] | None = None) -> Collector:
        def make_env() -> ToolEnv:
            env = _make(self.env, split)
            env.tools = tools or env.tools
            return env

        loaded = self._loaded
        return Collector(self._policy, loaded.chat, make_env, vocab_size=loaded.vocab_size, limits=LIMITS)


def experiment(policy: Path, env: str, seed: int, plan: Plan) -> Iterator[Measurement]:
    """Both arms with one seed, which stands for the same tasks in the same order."""
    runs = [Run(policy, env, arm, seed, plan) for arm in PLANS]
    for run in runs:
        run.train()
    budget = min(run.calls for run in runs)
    for run in runs:
        last = run.measure("samples", plan.updates)
        yield last
        updates = run.nearest(budget)
        yield replace(last, moment="calls") if updates == plan.updates else run.measure("calls", updates)


def _make(env: str, split: str) -> ToolEnv:
    made = make(env, split=split, level=1).unwrapped
    assert isinstance(made, ToolEnv)
    return made


# Tables --------------------------------------------------------------------------------------------------------------

COSTS = ("updates", "trajectories", "calls", "branches", "sampled_tokens", "wall_s", "cpu_s")
_COST_HEADS = (
    *("environment", "equal", "arm", "held-out success", "gain, points", "updates", "trajectories", "tool calls"),
    *("calls per update", "branches", "sampled tokens", "wall s", "CPU s"),
)
_COMPARISON_HEADS = (
    *("environment", "equal", "GRPO", "ARPO", "ARPO - GRPO, points", "p", "tasks better / worse"),
    *("found with power 0.8", "each seed", "interval over runs"),
)


def read(path: Path) -> list[Measurement]:
    """All measurements that were made."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Measurement(**{**row, "spent": Spent(**row["spent"])}) for row in rows]


def pooled(measurements: Sequence[Measurement]) -> list[Tally]:
    """Task by task, the attempts of all runs together."""
    columns = zip(*(measurement.successes for measurement in measurements), strict=True)
    return [Tally(sum(column), len(measurements)) for column in columns]


def report(measurements: Sequence[Measurement]) -> str:
    """Two tables in Markdown: what each arm reached and cost (means over seeds), and the comparison."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in sorted(measurements, key=lambda m: (list(ENVS).index(m.env), m.seed)):
        groups.setdefault((m.env, m.moment, m.arm), []).append(m)
    costs = [_cost_row(groups[env, "before", "grpo"], runs) for (env, _, _), runs in groups.items()]
    comparison = [
        _comparison_row(groups[env, moment, "grpo"], runs)
        for (env, moment, arm), runs in groups.items()
        if arm == "arpo"
    ]
    return f"{_table(_COST_HEADS, costs)}\n\n{_table(_COMPARISON_HEADS, comparison)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _cost_row(before: Sequence[Measurement], runs: Sequence[Measurement]) -> list[str]:
    spent = {name: statistics.fmean(getattr(run.spent, name) for run in runs) for name in COSTS}
    rate, trained = success_rate(pooled(runs)), spent["updates"] > 0
    return [
        _short(runs[0].env),
        runs[0].moment,
        runs[0].arm if trained else "both",
        f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
        _difference(before, runs) if trained else "",
        *(f"{spent[name]:,.0f}" for name in COSTS[:3]),
        f"{spent['calls'] / spent['updates']:.0f}" if trained else "",
        *(f"{spent[name]:,.0f}" for name in COSTS[3:]),
    ]


def _comparison_row(first: Sequence[Measurement], second: Sequence[Measurement]) -> list[str]:
    """Intervals over tasks come from all runs together; `first` and `second` have the same seeds in the same order."""
    paired = paired_difference(pooled(first), pooled(second))
    each = [100 * paired_difference(a.tallies, b.tallies).difference.value for a, b in zip(first, second, strict=True)]
    return [
        _short(first[0].env),
        first[0].moment,
        *(f"{100 * success_rate(pooled(runs)).value:.1f} %" for runs in (first, second)),
        _difference(first, second),
        f"{paired.p_value:.3f}",
        f"{paired.num_better} / {paired.num_worse}",
        f"{100 * paired.minimum_detectable:.1f}",
        " ".join(f"{value:+.1f}" for value in each),
        _interval_over_runs(each),
    ]


def _difference(first: Sequence[Measurement], second: Sequence[Measurement]) -> str:
    difference = paired_difference(pooled(first), pooled(second)).difference
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _interval_over_runs(values: Sequence[float]) -> str:
    """Student's interval of the mean of a few runs."""
    if not 2 <= len(values) <= len(_T_QUANTILES) + 1:
        return "not known"
    half = _T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return f"[{statistics.fmean(values) - half:+.1f}, {statistics.fmean(values) + half:+.1f}]"


def _short(env: str) -> str:
    return env.removeprefix("agentrl/").removesuffix("-v0")


def main() -> None:
    """Builds the policy, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/arpo-vs-grpo"))
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--tasks-per-update", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--eval-tasks", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path, policy = arguments.out / "measurements.jsonl", arguments.out / "policy"
    if not arguments.report:
        arguments.out.mkdir(parents=True, exist_ok=True)
        names = ("updates", "tasks_per_update", "learning_rate", "eval_tasks")
        plan = Plan(**{name: getattr(arguments, name) for name in names})
        if not (policy / "config.json").exists():
            build_policy(policy)
        for env in arguments.envs:
            if not any((m.env, m.moment) == (env, "before") for m in read(path)):
                enter(path, [Run(policy, env, "grpo", 0, plan).measure("before", 0)])
        for seed in arguments.seeds:
            for env in arguments.envs:
                if not any((m.env, m.seed, m.arm) == (env, seed, "arpo") for m in read(path)):
                    enter(path, experiment(policy, env, seed, plan))
    print(report(read(path)))


def enter(path: Path, measurements: Iterable[Measurement]) -> None:
    """Writes measurements when all are there, so that an experiment that was cut short is made again as a whole."""
    made = []
    for m in measurements:
        made.append(m)
        rate = success_rate(m.tallies).value
        print(
            f"{_short(m.env)}, seed {m.seed}, {m.arm}, {m.moment}: {100 * rate:.1f} %, {m.spent.updates} updates, "
            f"{m.spent.calls} calls, {m.spent.branches} branches, {m.spent.wall_s:.0f} s wall, {m.spent.cpu_s:.0f} s "
            f"CPU; training {' '.join(f'{100 * rate:.0f}' for rate in m.training)}",
            flush=True,
        )
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(m)) + "\n" for m in made)


if __name__ == "__main__":
    main()
