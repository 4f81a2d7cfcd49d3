"""Models on this machine as a person names them: the embedded policy, a folder, a hub id, or a training run."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from agentrl.config import load_config
from agentrl.errors import CheckpointError, ConfigError
from agentrl.policies.loading import EMBEDDED, LoadedModel, load_model, model_path
from agentrl.runs import RUNS, RunFolder
from agentrl.trainers.checkpoint import latest_checkpoint
from agentrl.trainers.models import trainable_model
from agentrl.trainers.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A checkpoint of a run, and the settings it was trained with.

    Example:
        TrainedModel(Path("runs/first/checkpoints/update-000100"), settings)
    """

    checkpoint: Path
    settings: TrainSettings


def find_trained(name: str) -> TrainedModel | None:
    """The run that a name points into: a run folder stands for its latest checkpoint; None if there is no run.

    Raises:
        CheckpointError: The run does not exist or has no checkpoint.
        ConfigError: Its settings cannot be read.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED:
        return None
    if path.parts[:1] == RUNS.parts and not path.exists():
        raise CheckpointError(f"{path} does not exist. Expected a run folder, or one of its checkpoints.")
    inside = path.parent.name == "checkpoints" and path.is_dir()
    folder = path.parent.parent if inside else path
    if not (folder / "manifest.json").is_file():
        return None
    run = RunFolder.open(folder)
    settings = load_config(TrainSettings, run.config_path)
    if inside:
        return TrainedModel(path, settings)
    try:
        return TrainedModel(latest_checkpoint(run.checkpoints_path), settings)
    except CheckpointError:
        raise CheckpointError(
            f"The run in {folder} has no checkpoint yet. Wait for its first one, or go on with it: "
            f"agentrl train --resume {folder}"
        ) from None


def load_trained(trained: TrainedModel, device: str | None) -> LoadedModel:
    """Loads a checkpoint the way its run did, its adapter and chat template included.

    Raises:
        PolicyError: It cannot be loaded.
        MissingExtraError: It is an adapter and `peft` is not installed.
    """
    quiet_hub()
    changes = {"device": device or trained.settings.model.device, "gradient_checkpointing": False}
    settings = trained.settings.model.model_copy(update=changes)
    loaded = trainable_model(settings, trained.checkpoint, stop_at_tool_call=trained.settings.rollout.stop_at_tool_call)
    return replace(loaded, model=loaded.model.eval())


def load_named(name: str, device: str | None) -> LoadedModel:
    """Loads the embedded policy, a folder, or a hub id.

    Raises:
        ConfigError: A folder without a model.
        PolicyError: It cannot be loaded.
    """
    quiet_hub()
    path = Path(name).expanduser()
    if path.is_file():
        raise ConfigError(f"{name!r} is a file; expected {EMBEDDED!r}, a model folder, a run folder, or a hub id.")
    if name != EMBEDDED and not Path(model_path(name)).exists():
        typer.echo(f"There is no folder {name!r} here; asking the Hugging Face hub.", err=True)
    return load_model(name, device=device)


def quiet_hub() -> None:
    """Keeps notes on every retry from standing before the one line that says that the hub cannot be reached."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
