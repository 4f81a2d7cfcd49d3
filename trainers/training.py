"""`train`: a run on disk, from settings to checkpoint, curve and report."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from agentrl.config import load_config
from agentrl.errors import CheckpointError
from agentrl.evaluation.curves import plot_curves
from agentrl.evaluation.report import EvaluationReport
from agentrl.runs import RunFolder
from agentrl.trainers.checkpoint import latest_checkpoint, load_checkpoint
from agentrl.trainers.progress import TrainingProgress
from agentrl.trainers.settings import TrainSettings
from agentrl.trainers.trainer import Trainer


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run left behind."""

    folder: Path
    checkpoint: Path
    """Loads with `AutoModelForCausalLM.from_pretrained`."""
    curve: Path
    reports: dict[str, EvaluationReport]
    """Held-out reports: "before", "after", and each with "_greedy"."""
    seconds: float


def train(
    settings: TrainSettings, *, resume: bool = False, console: Console | None = None, command: str = "agentrl.train"
) -> TrainResult:
    """Trains an agent.

    Args:
        settings: The run; where `resume`, those of the folder are used and only `settings.run` counts.
        resume: Continue the run in that folder after its latest checkpoint.
        console: Where progress goes.
        command: Noted in the run folder.

    Raises:
        CheckpointError: The folder is in use, or there is nothing to resume.
        AgentRLError: See its leaves; each says what to do.
    """
    console = console or Console()
    if not resume:
        RunFolder.require_free(settings.run)  # before a model is loaded
    trainer = _resumed(settings.run) if resume else Trainer(settings)
    path, settings, first = settings.run, trainer.settings, trainer.progress.updates
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(trainer))
        if resume:
            folder = stack.enter_context(RunFolder.resume(path, update=first, command=command))
        else:
            folder = stack.enter_context(RunFolder.create(path, settings, seed=settings.seed, command=command))
        for line in _opening(trainer):
            console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        with TrainingProgress(console, settings.updates, first) as display:
            reports = trainer.run(folder, display)
        curve = folder.path / "curve.png"
        plot_curves(folder.metrics_path, curve)
        return TrainResult(
            folder=folder.path,
            checkpoint=latest_checkpoint(folder.checkpoints_path),
            curve=curve,
            reports=reports,
            seconds=trainer.progress.seconds,
        )


def _opening(trainer: Trainer) -> Iterator[str]:
    """What is about to happen, and where that is not what the settings say."""
    settings, context = trainer.settings, trainer.policy.context_length
    yield (
        f"training {settings.model.name} with {settings.recipe} in {settings.env.id}, "
        f"updates {trainer.progress.updates + 1} to {settings.updates}"
    )
    if settings.rollout.max_episode_tokens > context:
        yield (
            f"note: episodes end at {context} tokens, the model's context, and not at "
            f"rollout.max_episode_tokens={settings.rollout.max_episode_tokens}"
        )


def _resumed(path: Path) -> Trainer:
    run = RunFolder.open(path)
    settings = load_config(TrainSettings, run.config_path)
    checkpoint = latest_checkpoint(run.checkpoints_path)
    state, progress = load_checkpoint(checkpoint)
    if progress.updates >= settings.updates and "after" in progress.reports:
        raise CheckpointError(
            f"The run in {path} is finished: all {settings.updates} updates are done. Nothing was trained. To go on "
            f"from its weights, start a new run with model.name={checkpoint}."
        )
    return Trainer(settings, progress=progress, model_folder=checkpoint, state=state)
