"""The loop that every algorithm shares: get episodes, judge them, update, tell; and evaluation before and after."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch

from agentrl.evaluation.evaluate import describe_tasks, evaluate
from agentrl.evaluation.report import EvaluationReport
from agentrl.journal import Journal
from agentrl.policies.core import Sampling
from agentrl.rollout.continuation import Continuer
from agentrl.runs import Row, RunFolder, read_metrics
from agentrl.seeding import derive
from agentrl.trainers.ahead import Batch, SampledAhead, staleness
from agentrl.trainers.alarms import Alarms
from agentrl.trainers.assembly import build_learner, build_rewards, build_source, env_maker, num_tasks, resolve_recipe
from agentrl.trainers.checkpoint import Progress, save_checkpoint
from agentrl.trainers.engines import open_policy
from agentrl.trainers.event_log import EventLog
from agentrl.trainers.models import trainable_model
from agentrl.trainers.progress import TrainingProgress
from agentrl.trainers.rollouts import Harvest
from agentrl.trainers.settings import TrainSettings

_PLAYED = "episodes"
"""Key that metrics have where the policy played episodes; alarms are about those."""
_LOST = "engine_lost_engines"


class Trainer:
    """A training run in memory; `agentrl.trainers.train` puts it on disk.

    Args:
        settings: The run.
        progress: How far an earlier part of the run got.
        model_folder: Weights of that part; None takes those the settings name.
        state: Of that part: optimizer, and whatever else the algorithm keeps.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        progress: Progress | None = None,
        model_folder: Path | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.progress = progress or Progress()
        self.recipe = resolve_recipe(settings)
        loaded = trainable_model(settings.model, model_folder, stop_at_tool_call=settings.rollout.stop_at_tool_call)
        self.loaded = loaded
        self._ahead: SampledAhead | None = None
        self._train_env, self._test_env = (env_maker(settings.env, split) for split in ("train", "test"))
        self._collectors: list[Continuer] = []
        self._journal: Journal | None = None
        self._num_test_tasks = num_tasks(self._test_env)
        with contextlib.closing(self._test_env()) as env:
            self._test_name = describe_tasks(env)
        self._alarms = Alarms()
        self._logs: tuple[RunFolder | EventLog, ...] = ()
        self.learner = build_learner(self.recipe, settings, loaded)
        self.policy = open_policy(settings, loaded, version=self.progress.updates)
        try:
            self._build(state)
        except BaseException:
            self.close()  # an engine may have processes and the memory of a GPU
            raise

    def _build(self, state: dict[str, Any] | None) -> None:
        """What needs the policy, and the state of everything."""
        settings, loaded = self.settings, self.loaded
        self._evaluator = self._collector(self._test_env)
        self.source = build_source(self.recipe, settings, loaded, self._collector(self._train_env), self._train_env)
        self.source.position = self.progress.tasks_drawn
        self.rewards = build_rewards(self.recipe, settings, loaded, self._collector(self._train_env))
        if state is not None:
            self._load_state(state)

    def run(self, folder: RunFolder, display: TrainingProgress) -> dict[str, EvaluationReport]:
        """Evaluates, trains to the last update, evaluates again.

        Args:
            folder: Where metrics, trajectories and checkpoints go.
            display: Where a person watches.

        Returns:
            Held-out reports by moment and decoding: "before", "after", "after_greedy" ...
        """
        with (
            EventLog(folder.path / "tensorboard", first_update=self.progress.updates) as events,
            contextlib.closing(Journal(folder.calls_path)) as journal,
        ):
            self._logs = (folder, events)
            self._record_calls(journal)
            if self.progress.updates:
                self._remember(read_metrics(folder.metrics_path))
            self._evaluate("before", display)
            started = time.monotonic() - self.progress.seconds
            with self._sampling_ahead():
                for number in range(self.progress.updates, self.settings.updates):
                    batch, metrics = self._update(number, folder, display)
                    self.progress.updates = number + 1
                    self.progress.tasks_drawn = batch.position
                    self.progress.seconds = time.monotonic() - started
                    self._finish_update(number + 1, metrics, folder, display)
            self._evaluate("after", display)
        self.save(folder)
        return {name: EvaluationReport.from_json(data) for name, data in self.progress.reports.items()}

    def _finish_update(
        self, done: int, metrics: dict[str, float], folder: RunFolder, display: TrainingProgress
    ) -> None:
        """Evaluates and saves if it is time to, and tells."""
        settings = self.settings
        every = settings.evaluation.every
        if every and done % every == 0 and done < settings.updates:
            with contextlib.nullcontext() if self._ahead is None else self._ahead.paused():
                metrics.update(self._held_out(self._measure(f"update-{done}", settings.rollout.sampling)))
        self._log(done, metrics)
        display.update(done, metrics)
        if settings.checkpoint_every and done % settings.checkpoint_every == 0:
            self.save(folder)

    def _remember(self, rows: Sequence[Row]) -> None:
        """Shows the alarms what they have seen before, so that a resumed run warns as an uninterrupted one."""
        for row in rows:
            if _PLAYED in row:
                self._alarms.check(row)

    def _log(self, update: int, metrics: dict[str, float]) -> None:
        for log in self._logs:
            log.log(update, metrics)

    def save(self, folder: RunFolder) -> Path:
        """Writes a checkpoint and returns its folder."""
        return save_checkpoint(
            folder.checkpoints_path, self.loaded.model, self.loaded.tokenizer, self._state(), self.progress
        )

    def _state(self) -> dict[str, Any]:
        rewards = None if self.rewards is None else self.rewards.state_dict()
        return {"learner": self.learner.state_dict(), "source": self.source.state_dict(), "rewards": rewards}

    def _load_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        if self.rewards is not None:
            self.rewards.load_state_dict(state["rewards"])

    def _update(self, number: int, folder: RunFolder, display: TrainingProgress) -> tuple[Batch, dict[str, float]]:
        start = time.monotonic()
        batch = self._sample(number) if self._ahead is None else self._ahead.take(number)
        harvest = batch.harvest
        taken = time.monotonic()
        metrics = {**harvest.metrics, **batch.engine, **self._learn(harvest, number)}
        self.policy.weights_changed()  # also counts an update that found nothing to learn from, as resuming does
        if self._ahead is not None:
            self._ahead.published(number + 1)
        end = time.monotonic()
        metrics["groups_trained"] = float(len(harvest.kept))
        metrics["rollout_s"], metrics["update_s"] = batch.seconds, end - taken
        if "sampled_tokens" in metrics:
            metrics["tokens_per_s"] = metrics["sampled_tokens"] / (end - start)
        every = self.settings.keep_trees_every
        if every and number % every == 0:
            folder.save_trees(number + 1, harvest.trees[:2])
        if batch.discarded:
            display.say(
                f"warning: {batch.discarded} episodes of update {number + 1} are discarded: the interrupted run had "
                "begun calls in them that must not be run twice"
            )
        if batch.engine.get(_LOST):
            display.say(
                f"warning: engines were lost {batch.engine[_LOST]:.0f} times until update {number + 1} was sampled; "
                f"{batch.engine['engine_live_engines']:.0f} take requests now"
            )
        if _PLAYED in metrics:
            for warning in self._alarms.check(metrics):
                display.say(f"warning: {warning}")
        return batch, metrics

    def _sample(self, number: int) -> Batch:
        """The episodes of an update; in a run that samples ahead, called from that thread alone."""
        start = time.monotonic()
        self._begin_part(str(number + 1))
        between = self.policy.metrics()  # of evaluations, rewards and updates: all but losses is not this batch's
        harvest = self.source.sample(derive(self.settings.seed, "update", number))
        engine = self.policy.metrics()
        if _LOST in engine:
            engine[_LOST] += between[_LOST]
        return Batch(
            harvest=harvest,
            position=self.source.position,
            discarded=0 if self._journal is None else len(self._journal.discarded),
            seconds=time.monotonic() - start,
            engine=engine,
        )

    def _learn(self, harvest: Harvest, number: int) -> dict[str, float]:
        seed = derive(self.settings.seed, "update", number)
        max_staleness = self.settings.policy.max_staleness
        fresh = harvest.kept if self.settings.extras.replay is None else harvest.trees
        ages = staleness(fresh, number, max_staleness) if _PLAYED in harvest.metrics else {}
        metrics = ages if max_staleness else {}
        if harvest.kept:
            trees = harvest.kept if self.rewards is None else self.rewards.score(harvest.kept, seed=seed)
            with self.policy.yield_memory():
                metrics.update(self.learner.update(trees, number=number, seed=seed))
        if self.rewards is not None:
            metrics.update(self.rewards.fit(harvest.trees, number=number, seed=seed))
        return metrics

    @contextlib.contextmanager
    def _sampling_ahead(self) -> Iterator[None]:
        """Inside the `with` block episodes are sampled while others are trained on, if the settings allow it."""
        policy, updates = self.settings.policy, self.settings.updates
        if not policy.max_staleness:
            yield
            return
        self._ahead = SampledAhead(
            self._sample, first=self.progress.updates, end=updates, max_staleness=policy.max_staleness
        )
        try:
            yield
        except BaseException:
            self.policy.close()  # which ends a rollout under way
            raise
        finally:
            self._ahead.close()
            self._ahead = None

    def close(self) -> None:
        """Ends the engine that samples; safe to call twice."""
        self.policy.close()

    def _record_calls(self, journal: Journal) -> None:
        """Lets everything that plays episodes write its tool calls to a journal."""
        self._journal = self.source.journal = journal
        for collector in self._collectors:
            collector.journal = journal

    def _begin_part(self, name: str) -> None:
        if self._journal is not None:
            self._journal.begin(name)

    # Evaluation ------------------------------------------------------------------------------------------------------

    def _evaluate(self, moment: str, display: TrainingProgress) -> None:
        """Held-out success with the training temperature, and greedy if asked for; done once per moment."""
        decodings = {moment: self.settings.rollout.sampling}
        if self.settings.evaluation.greedy:
            decodings[f"{moment}_greedy"] = Sampling(temperature=0.0)
        for name, sampling in decodings.items():
            if name not in self.progress.reports:
                report = self._measure(name, sampling)
                self.progress.reports[name] = report.to_json()
                display.say(f"held-out success {name.replace('_', ', ')}: {describe(report)}")
                if name == moment:
                    self._log(self.progress.updates, self._held_out(report))

    def _measure(self, name: str, sampling: Sampling) -> EvaluationReport:
        tasks = range(min(self.settings.evaluation.tasks, self._num_test_tasks))
        self._begin_part(name)
        report, _ = evaluate(
            self._evaluator,
            tasks,
            environment=self._test_name,
            policy=f"{self.settings.model.name} {name}",
            sampling=sampling,
            seed=derive(self.settings.seed, "evaluation"),
        )
        return report

    def _held_out(self, report: EvaluationReport) -> dict[str, float]:
        success = report.success
        if success is None:
            return {}
        return {
            "held_out/success": success.value,
            "held_out/success_low": success.low,
            "held_out/success_high": success.high,
        }

    def _collector(self, make_env: Callable[[], gymnasium.Env[str, str]]) -> Continuer:
        collector = Continuer(
            self.policy,
            self.loaded.chat,
            make_env,
            vocab_size=self.loaded.vocab_size,
            limits=self.settings.rollout.limits,
        )
        self._collectors.append(collector)
        return collector


def describe(report: EvaluationReport) -> str:
    """A success rate with its interval and what it is counted over, in one line."""
    success = report.success
    if success is None:
        return "no valid episode"
    invalid = f", {len(report.invalid_episodes)} invalid" if report.invalid_episodes else ""
    return (
        f"{100 * success.value:.1f} % (95 % interval {100 * success.low:.1f} to {100 * success.high:.1f}, "
        f"{report.num_successes} of {report.num_valid} tasks{invalid})"
    )
