"""Sampling ahead of training: what is bounded, what waits for what, and a whole run with an engine of its own."""

import copy
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from tree_cases import random_tree

from agentrl.config import load_config
from agentrl.errors import CheckpointError, ConfigError, PolicyError
from agentrl.policies.core import Request
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.runs import read_metrics
from agentrl.trainers import TrainSettings, train
from agentrl.trainers.ahead import Batch, SampledAhead, staleness
from agentrl.trainers.checkpoint import latest_checkpoint, load_checkpoint
from agentrl.trainers.progress import TrainingProgress
from agentrl.trainers.rollouts import Harvest
from agentrl.trainers.update import Updater

WAIT_S = 60


class Sampling:
    """Samples batches that a test lets go one by one, and notes when each was begun."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may_end = {number: threading.Event() for number in range(20)}
        self.has_begun = {number: threading.Event() for number in range(20)}

    def __call__(self, number: int) -> Batch:
        self.begun.append(number)
        self.has_begun[number].set()
        assert self.may_end[number].wait(WAIT_S)
        return Batch(harvest=Harvest([], []), position=10 * number, discarded=0, seconds=0.0)

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.may_end[number].set()


@pytest.mark.parametrize("max_staleness", [1, 3])
def test_so_many_batches_begin_before_weights_are_published_and_no_more(max_staleness: int) -> None:
    sampling = Sampling()
    sampling.finish(*range(20))
    ahead = SampledAhead(sampling, first=0, end=10, max_staleness=max_staleness)
    for number in range(5):
        assert ahead.take(number).position == 10 * number
        assert sampling.has_begun[number + max_staleness].wait(WAIT_S) if number else True
        # The batch of update n may begin as soon as n - max_staleness updates are published, and `number` are.
        assert max(sampling.begun) <= number + max_staleness
        ahead.published(number + 1)
    ahead.close()
    assert sampling.begun == sorted(sampling.begun)


def test_a_resumed_run_begins_where_it_was() -> None:
    sampling = Sampling()
    sampling.finish(*range(20))
    ahead = SampledAhead(sampling, first=7, end=9, max_staleness=1)
    assert ahead.take(7).position == 70
    ahead.published(8)
    assert ahead.take(8).position == 80
    ahead.close()
    assert sampling.begun == [7, 8]


def test_a_pause_waits_for_the_batch_under_way_and_lets_none_begin() -> None:
    sampling = Sampling()
    ahead = SampledAhead(sampling, first=0, end=5, max_staleness=2)
    assert sampling.has_begun[0].wait(WAIT_S)

    def finish_once_the_pause_is_wanted() -> None:
        ends_at = time.monotonic() + WAIT_S
        while not ahead._is_paused and time.monotonic() < ends_at:
            time.sleep(0.001)
        sampling.finish(0)

    threading.Thread(target=finish_once_the_pause_is_wanted).start()
    with ahead.paused():
        assert sampling.may_end[0].is_set()
        assert sampling.begun == [0]
        ahead.published(1)
        assert not sampling.has_begun[1].wait(0.1)
    assert sampling.has_begun[1].wait(WAIT_S)
    sampling.finish(1, 2, 3)
    ahead.close()


def test_what_sampling_raises_reaches_the_trainer_after_the_batches_before_it() -> None:
    def sample(number: int) -> Batch:
        if number == 1:
            raise ConfigError("no episode is valid")
        return Batch(harvest=Harvest([], []), position=1, discarded=0, seconds=0.0)

    ahead = SampledAhead(sample, first=0, end=5, max_staleness=3)
    assert ahead.take(0).position == 1
    with pytest.raises(ConfigError, match="no episode is valid"):
        ahead.take(1)
    ahead.close()


def test_staleness_counts_updates_and_is_bounded() -> None:
    tree = random_tree(0)
    sampled = [segment for segment in tree.segments if any(segment.action_mask)]
    assert staleness([tree], 0, 0) == {"staleness": 0.0, "staleness_max": 0.0}
    object.__setattr__(sampled[0], "policy_version", 3)
    for segment in sampled[1:]:
        object.__setattr__(segment, "policy_version", 5)
    # Update number 5 (the sixth) is at version 5: one segment is two updates old, the others none.
    assert staleness([tree], 5, 2) == {"staleness": 2.0 / len(sampled), "staleness_max": 2.0}
    with pytest.raises(PolicyError, match="allows 4 to 5"):
        staleness([tree], 5, 1)
    with pytest.raises(PolicyError):
        staleness([tree], 4, 4)  # from the future
    assert staleness([], 5, 0) == {}


# A whole run ----------------------------------------------------------------------------------------------------------


class SeparateEngine(TransformersPolicy):
    """Samples from weights of its own, which it takes over between two of its steps, as an engine elsewhere does."""

    made: ClassVar["list[SeparateEngine]"] = []

    def __init__(self, loaded: Any, version: int) -> None:
        super().__init__(copy.deepcopy(loaded.model), loaded.tokenizer, loaded.chat.end_ids)
        self.version = version
        self._trained = loaded.model
        self._turn = threading.Lock()
        self.is_closed = False
        self._num_requests = 0
        SeparateEngine.made.append(self)

    def submit(self, request: Request) -> None:
        self._num_requests += 1
        super().submit(request)

    def metrics(self) -> dict[str, float]:
        number, self._num_requests = self._num_requests, 0
        return {"engine_requests": float(number)}

    def poll(self) -> Any:
        if self.is_closed:
            raise PolicyError("closed")
        with self._turn:
            return super().poll()

    def weights_changed(self) -> None:
        with self._turn:
            self.model.load_state_dict(self._trained.state_dict())
            self.version += 1
            for sequence in self._sequences.values():
                sequence.cached, sequence.parent = 0, None
                sequence.logits.clear()

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def run_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(*overrides: str) -> tuple[TrainSettings, Path]:
        SeparateEngine.made.clear()
        monkeypatch.setattr(
            "agentrl.trainers.trainer.open_policy", lambda settings, loaded, version: SeparateEngine(loaded, version)
        )
        settings = load_config(
            TrainSettings,
            overrides=[
                "env.id=agentrl/Arithmetic-v0",
                "recipe=grpo",
                "updates=6",
                "policy.engine=vllm",
                "rollout.tasks_per_update=2",
                "rollout.max_turn_tokens=48",
                "group.size=4",
                "optimizer.learning_rate=1e-4",
                "evaluation.tasks=4",
                "evaluation.greedy=false",
                "seed=3",
                f"run={tmp_path / 'run'}",
                *overrides,
            ],
        )
        train(settings, console=Console(file=open("/dev/null", "w")))  # noqa: SIM115
        return settings, tmp_path / "run"

    return run


def test_a_run_that_samples_ahead_keeps_its_bound_and_corrects(run_ahead: Any) -> None:
    _, folder = run_ahead("policy.max_staleness=2", "evaluation.every=3")
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 6
    ages = [row["staleness_max"] for row in rows]
    assert ages[0] == 0.0
    assert max(ages) <= 2.0
    assert max(ages) >= 1.0, "it never sampled ahead"
    for row in rows:
        assert 0.0 < row["mismatch_ess"] <= 1.0
        assert row["mismatch_kl"] >= 0.0
        assert row["mismatch_mean"] <= row["mismatch_max"]
    stale = [row for row in rows if row["staleness"] > 0]
    assert max(row["mismatch_max"] for row in stale) > 1e-4, "older weights would show"
    assert SeparateEngine.made[0].is_closed
    assert not [thread for thread in threading.enumerate() if thread.name == "agentrl-sampler"]


def test_without_staleness_every_token_is_of_the_current_weights(run_ahead: Any) -> None:
    _, folder = run_ahead()
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 6
    assert max(row["mismatch_max"] for row in rows) < 1e-3, "a copy of the same network in float32"


@pytest.mark.parametrize("override", ["policy.max_staleness=1", "evaluation.greedy=true"])
def test_the_engine_reports_what_it_did_for_the_episodes_of_the_row(run_ahead: Any, override: str) -> None:
    _, folder = run_ahead(override, "evaluation.every=2")
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    turns = [row["episodes"] * row["turns"] for row in rows]
    assert [row["engine_requests"] for row in rows] == pytest.approx(turns)


def test_lost_engines_are_told(run_ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    lost = iter([0.0, 0.0, 1.0, 2.0])  # asked before and after the episodes of each update
    monkeypatch.setattr(
        SeparateEngine,
        "metrics",
        lambda _: {"engine_lost_engines": next(lost, 0.0), "engine_live_engines": 1.0},
    )
    monkeypatch.setattr(TrainingProgress, "say", lambda _, message: said.append(message))
    run_ahead("updates=4")
    told = [message for message in said if "engines were lost" in message]
    assert told == ["warning: engines were lost 3 times until update 2 was sampled; 1 take requests now"]


def test_tokens_of_other_weights_end_a_run_that_is_strictly_on_policy(
    run_ahead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = SeparateEngine.weights_changed

    def twice(self: SeparateEngine) -> None:
        changed(self)
        self.version += 1  # as if somebody else had given the engine weights

    monkeypatch.setattr(SeparateEngine, "weights_changed", twice)
    with pytest.raises(PolicyError, match="allows 1 to 1"):
        run_ahead()


def test_the_engine_is_closed_if_the_run_cannot_begin(
    run_ahead: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("no source")

    with monkeypatch.context() as patch:
        patch.setattr("agentrl.trainers.trainer.build_source", refuse)
        with pytest.raises(ConfigError, match="no source"):
            run_ahead()
    assert SeparateEngine.made[0].is_closed
    monkeypatch.setattr("agentrl.trainers.training.RunFolder.create", refuse)
    with pytest.raises(ConfigError, match="no source"):
        run_ahead()
    assert SeparateEngine.made[0].is_closed
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        run_ahead()
    assert SeparateEngine.made == []


def test_the_correction_is_on_with_another_engine_and_can_be_switched_off(run_ahead: Any) -> None:
    from agentrl.trainers.assembly import resolve_recipe

    base = ["env.id=agentrl/Arithmetic-v0", "recipe=grpo"]
    own = load_config(TrainSettings, overrides=base)
    other = load_config(TrainSettings, overrides=[*base, "policy.engine=vllm"])
    off = load_config(TrainSettings, overrides=[*base, "policy.engine=vllm", "extras.correction.level=off"])
    assert [resolve_recipe(s).needs_old_logprobs for s in (own, other, off)] == [False, True, False]  # type: ignore[union-attr]


def test_weights_are_told_after_every_update(run_ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    publish = SampledAhead.published
    monkeypatch.setattr(SampledAhead, "published", lambda self, version: (told.append(version), publish(self, version)))
    run_ahead("policy.max_staleness=1")
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_knows_nothing_of_what_was_sampled_ahead(
    run_ahead: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Updater.update

    def fail_late(self: Any, trees: Any, *, number: int, seed: int) -> dict[str, float]:
        if number == 4:
            raise PolicyError("interrupted")
        return update(self, trees, number=number, seed=seed)

    monkeypatch.setattr(Updater, "update", fail_late)
    with pytest.raises(PolicyError, match="interrupted"):
        run_ahead("policy.max_staleness=2", "checkpoint_every=1")
    _, progress = load_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert (progress.updates, progress.tasks_drawn) == (4, 4 * 2)


def test_a_failing_update_ends_the_sampler_and_the_engine(run_ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, float]:
        raise PolicyError("the gradient norm is nan")

    monkeypatch.setattr("agentrl.trainers.update.Updater.update", fail)
    with pytest.raises(PolicyError, match="gradient norm"):
        run_ahead("policy.max_staleness=1")
    assert SeparateEngine.made[0].is_closed
    assert not [thread for thread in threading.enumerate() if thread.name == "agentrl-sampler"]
