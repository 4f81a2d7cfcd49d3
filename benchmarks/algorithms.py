"""Does every algorithm learn? Held-out success before and after a short run of each, over several seeds.

    python benchmarks/algorithms.py                             all of them, three seeds
    python benchmarks/algorithms.py --only dpo kto --seeds 1    a part, which replaces what --out has of it
    python benchmarks/algorithms.py --only variants:gtpo_separate    a recipe of another module, here variants.py
    python benchmarks/algorithms.py --markdown                  only the table of what --out has

Every run is the quickstart, shorter: the embedded policy, which guesses in half of the episodes instead of calling its
calculator, in `agentrl/Arithmetic-v0` level 1, 6 updates on 8 tasks of 8 episodes each. `OVERRIDES` names the
algorithms that need something else, and why. A run's seed is also the seed of its problems, so that no two seeds share
a training or a held-out task. The settings were chosen with seed 100 (`--first-seed 100 --seeds 1`), whose problems,
training and held-out, are in no run of the table.

Intervals cover 95 %, with the held-out task as the unit, pooled over seeds: they speak about other tasks, not about
other runs, so the success after training is also given seed by seed. Episodes, tool calls and seconds are those of
training, a mean over seeds: greedy baselines, hinted attempts, completions, the replays they start from and
demonstrations are episodes too, a branch is one more, and a call that branches share was made once. One thread.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Self

from rich.console import Console

from agentrl.config import load_config
from agentrl.envs import ArithmeticEnv, Episode, register
from agentrl.envs.rewards import numeric_match
from agentrl.evaluation import Estimate, PairedDifference, Tally, paired_difference, success_rate
from agentrl.evaluation.render import format_estimate
from agentrl.evaluation.report import EvaluationReport
from agentrl.messages import JsonDict
from agentrl.runs import read_metrics
from agentrl.tasks import Task
from agentrl.trainers import RECIPES, TrainSettings, train
from agentrl.trainers.recipes import find_recipe

ALGORITHMS = tuple(RECIPES)
BASE = (
    "env.id=benchmarks/CountedArithmetic-v0",
    "env.arguments.level=1",
    "updates=6",
    "threads=1",
    "rollout.tasks_per_update=8",
    "rollout.max_turn_tokens=48",
    "rollout.max_episode_tokens=384",
    "group.size=8",
    "optimizer.learning_rate=2e-4",
    "optimizer.schedule=linear",
    "optimizer.mini_batches=2",
    "evaluation.tasks=100",
    "evaluation.greedy=false",
    "checkpoint_every=0",
    "keep_trees_every=0",
)


@register("benchmarks/CountedArithmetic-v0")
class CountedArithmetic(ArithmeticEnv):
    """`agentrl/Arithmetic-v0` that counts what is played on training tasks in this process, for whatever purpose."""

    episodes: ClassVar[int] = 0
    tool_calls: ClassVar[int] = 0
    _begun = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, JsonDict]:
        """Starts an episode, which counts from its first turn on."""
        self._begun = False
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        """Plays a turn."""
        before = len(self.episode.calls)
        outcome = super().step(action)
        self._count(len(self.episode.calls) - before)
        return outcome

    def truncate(self, action: str) -> tuple[str, float, bool, bool, JsonDict]:
        """Ends the episode in the middle of a turn."""
        self._count(0)
        return super().truncate(action)

    def fork(self) -> Self:
        """Another episode, if it is ever played; the calculator remembers nothing, so no call is repeated."""
        clone = super().fork()
        clone._begun = False
        return clone

    def _count(self, calls: int) -> None:
        if self.split == "train":
            CountedArithmetic.episodes += not self._begun
            CountedArithmetic.tool_calls += calls
        self._begun = True


@register("benchmarks/RewardedCalls-v0")
class RewardedCalls(CountedArithmetic):
    """The same with a reward before the end: 1 for a turn whose call gives the right number."""

    def turn_reward(self, task: Task, episode: Episode) -> float:
        """Whatever the agent makes of the number; it does not count as success."""
        now = [record.result for record in episode.calls if record.turn == episode.num_turns - 1]
        return float(any(result.ok and numeric_match(result.text, task.answer) for result in now))


@dataclass(frozen=True)
class Override:
    """What an algorithm needs beside `BASE` and why, or what else there is to say about its runs."""

    settings: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        named = ", ".join(f"`{setting}`" for setting in self.settings)
        return f"{named}. {self.reason}" if named else self.reason


OVERRIDES = {
    "trpo": Override(
        ("updates=4", "rollout.tasks_per_update=4", "critic.kind=head"),
        "An update costs ten Hessian-vector products, each a pass over the whole batch that is differentiated twice.",
    ),
    "ppo": Override(("critic.learning_rate=1e-3",), "1e-5 is a rate for large models."),
    "gapo": Override(("critic.kind=head",), "The cheaper critic; the model of its own is in the row of `ppo`."),
    "dpo_siblings": Override(
        (),
        "It compares trajectories that part after a tool result, and this policy errs before: its guesses call "
        "nothing, and what follows a result is nearly always right. There are next to no pairs to learn from here.",
    ),
    "mt_grpo": Override(("env.id=benchmarks/RewardedCalls-v0",), "It takes an environment that rewards calls."),
    "prm_monte_carlo": Override(
        ("updates=4", "rollout.tasks_per_update=4"), "Every episode costs eight more, so it gets a third as many."
    ),
    "sft": Override(("group.size=null",), "One demonstration of each task; nothing is sampled."),
    "star": Override(
        ("updates=3", "group.size=null", "rollout.tasks_per_update=64", "optimizer.mini_batches=1"),
        "An update is a whole iteration: one episode of many tasks, then 40 steps and more from the base model.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one algorithm with one seed."""

    algorithm: str
    seed: int
    before: tuple[Tally, ...]
    """Of the held-out tasks."""
    after: tuple[Tally, ...]
    """Of the same tasks."""
    training: tuple[float, ...]
    """Success of the episodes of every update."""
    episodes: int
    tool_calls: int
    seconds: float

    def to_json(self) -> str:
        """One line."""
        tallies = {name: [t.successes for t in getattr(self, name)] for name in ("before", "after")}
        return json.dumps({**asdict(self), **tallies})

    @classmethod
    def from_json(cls, line: str) -> "Run":
        """The inverse of `to_json`."""
        data: dict[str, Any] = json.loads(line)
        for name in ("before", "after"):
            data[name] = tuple(Tally(successes, 1) for successes in data[name])
        return cls(**{**data, "training": tuple(data["training"])})


def settings_of(algorithm: str, seed: int, folder: Path, changes: Sequence[str] = ()) -> TrainSettings:
    """The settings of one run."""
    own = OVERRIDES[algorithm].settings if algorithm in OVERRIDES else ()
    named = (f"recipe={algorithm}", f"seed={seed}", f"env.arguments.seed={seed}", f"run={json.dumps(str(folder))}")
    return load_config(TrainSettings, None, [*BASE, *own, *named, *changes])


def run_one(algorithm: str, seed: int, changes: Sequence[str]) -> Run:
    """Trains once, in a folder that is thrown away."""
    counts = CountedArithmetic.episodes, CountedArithmetic.tool_calls
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log", "w") as log:
        result = train(settings_of(algorithm, seed, Path(scratch) / "run", changes), console=Console(file=log))
        rows = [row for row in read_metrics(result.folder / "metrics.jsonl") if "success" in row]
    return Run(
        algorithm=algorithm,
        seed=seed,
        before=_tallies(result.reports["before"]),
        after=_tallies(result.reports["after"]),
        training=tuple(round(row["success"], 4) for row in rows),
        episodes=CountedArithmetic.episodes - counts[0],
        tool_calls=CountedArithmetic.tool_calls - counts[1],
        seconds=round(result.seconds, 1),
    )


def _tallies(report: EvaluationReport) -> tuple[Tally, ...]:
    """One attempt per task; the calculator runs in this process, so that every episode is valid."""
    return tuple(Tally(task.successes, task.attempts) for task in report.tasks)


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An algorithm over its seeds."""

    runs: Sequence[Run]

    @property
    def before(self) -> Estimate:
        """Held-out success before training, all seeds together."""
        return success_rate([tally for run in self.runs for tally in run.before])

    @property
    def after(self) -> Estimate:
        """Held-out success after training."""
        return success_rate([tally for run in self.runs for tally in run.after])

    @property
    def change(self) -> PairedDifference:
        """After against before, task by task."""
        before, after = ([t for run in self.runs for t in getattr(run, name)] for name in ("before", "after"))
        return paired_difference(before, after)

    @property
    def learned(self) -> bool:
        """Whether the interval of the change lies above zero."""
        return self.change.difference.low > 0

    def cells(self) -> Iterator[str]:
        """As the table shows it."""
        difference = self.change.difference
        value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
        yield f"`{self.runs[0].algorithm}`"
        yield format_estimate(self.before)
        yield format_estimate(self.after)
        yield f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
        yield " ".join(f"{100 * success_rate(run.after).value:.0f}" for run in self.runs)
        yield f"{fmean(run.episodes for run in self.runs):.0f}"
        yield f"{fmean(run.tool_calls for run in self.runs):.0f}"
        yield f"{fmean(run.seconds for run in self.runs):.0f}"


HEADS = ("algorithm", "before", "after", "difference, points", "after, by seed", "episodes", "tool calls", "seconds")


def markdown(runs: Iterable[Run]) -> str:
    """The table, the settings that differ, and how many algorithms learned."""
    of: dict[str, list[Run]] = {name: [] for name in ALGORITHMS}
    for run in sorted(runs, key=lambda run: run.seed):
        of.setdefault(run.algorithm, []).append(run)
    rows = [Row(group) for group in of.values() if group]
    lines = [HEADS, ["---"] * len(HEADS), *(list(row.cells()) for row in rows)]
    notes = [f"- `{name}`: {override}" for name, override in OVERRIDES.items() if of.get(name)]
    not_learned = [row.runs[0].algorithm for row in rows if not row.learned]
    missing = [name for name, group in of.items() if not group]
    verdict = f"{len(rows) - len(not_learned)} of {len(rows)} algorithms lift held-out success."
    verdict += f" Not: {', '.join(not_learned)}." if not_learned else ""
    verdict += f" No run of: {', '.join(missing)}." if missing else ""
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes, *([""] if notes else []), verdict])


def read_runs(path: Path) -> dict[tuple[str, int], Run]:
    """The latest run of every algorithm and seed in a file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    runs = map(Run.from_json, lines)
    return {(run.algorithm, run.seed): run for run in runs if run.algorithm in ALGORITHMS or ":" in run.algorithm}


# The runs -------------------------------------------------------------------------------------------------------------


def run_all(pool: Executor, pairs: Sequence[tuple[str, int]], changes: Sequence[str], out: Path) -> list[str]:
    """Runs pairs of algorithm and seed, prints a line for each and appends it to a file.

    Returns:
        What failed, a line each.
    """
    futures: dict[Future[Run], tuple[str, int]] = {pool.submit(run_one, *pair, changes): pair for pair in pairs}
    failures = []
    for number, future in enumerate(as_completed(futures), 1):
        algorithm, seed = futures[future]
        head = f"{number}/{len(futures)}  {algorithm} seed {seed}"
        try:
            run = future.result()
        except Exception as error:  # one algorithm that breaks must not cost the others their hour
            failures.append(f"{algorithm} seed {seed}: {type(error).__name__}: {error}")
            print(f"{head}  failed: {error}", flush=True)
            continue
        with out.open("a", encoding="utf-8") as file:
            file.write(run.to_json() + "\n")
        curve = " ".join(f"{100 * success:.0f}" for success in run.training)
        _, before, after, change, *_ = Row([run]).cells()
        print(f"{head}  {before} -> {after}, {change}, {run.seconds:.0f} s  training {curve}", flush=True)
    return failures


def main() -> None:
    """Runs what was asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="settings for every run")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=ALGORITHMS, help="recipes, or module:name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms.jsonl"))
    parser.add_argument("--markdown", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    for name in arguments.only:
        find_recipe(name)  # a wrong name is told before the first run
    failures: list[str] = []
    if not arguments.markdown:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        pairs = [(name, seed) for name in arguments.only for seed in seeds]
        context = multiprocessing.get_context("spawn")  # each run a fresh process: nothing of one reaches another
        with ProcessPoolExecutor(arguments.jobs, mp_context=context, max_tasks_per_child=1) as pool:
            failures = run_all(pool, pairs, arguments.set, arguments.out)
    print(markdown(read_runs(arguments.out).values()))
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    main()
