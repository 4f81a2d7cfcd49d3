"""`agentrl train`: a run from a config file, or the rest of one, and what came of it."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.config import load_config
from agentrl.errors import CheckpointError, ConfigError
from agentrl.evaluation import EvaluationReport, compare
from agentrl.evaluation.render import format_comparison, format_estimate
from agentrl.runs import RUNS, RunFolder
from agentrl.trainers.settings import TrainSettings

if TYPE_CHECKING:
    from agentrl.trainers.training import TrainResult


def run_training(config: Path, overrides: Sequence[str], *, resume: bool) -> "TrainResult":
    """Trains and prints the result.

    Args:
        config: A YAML file; with `resume` also a run folder.
        overrides: Settings as `key=value`.
        resume: Continue a run after its latest checkpoint.

    Raises:
        ConfigError: A wrong setting, or settings that differ from those of the run to resume.
        CheckpointError: The run folder is taken, or there is nothing to resume.
    """
    settings = _resumed_settings(config, overrides) if resume else _new_settings(config, overrides)
    from agentrl.cli.local_model import quiet_hub  # PyTorch takes seconds to import: a mistyped setting is told before
    from agentrl.trainers.training import train

    quiet_hub()
    console = Console()
    given = [str(config), *overrides, *(["--resume"] if resume else [])]
    try:
        result = train(settings, resume=resume, console=console, command=shlex.join(["agentrl", "train", *given]))
    except KeyboardInterrupt:
        if any(settings.run.glob("checkpoints/*")):
            Console(stderr=True).print(_plain(f"go on with: agentrl train --resume {settings.run}"), soft_wrap=True)
        raise
    print_result(result, console)
    return result


def print_result(result: "TrainResult", console: Console) -> None:
    """Prints held-out success before and after, and where everything is: a table, or plain lines off a terminal."""
    rates, places = list(_success_rows(result.reports)), list(_place_rows(result))
    if console.is_terminal:
        table = Table(box=box.SIMPLE, padding=(0, 1))
        for name, style in (("held-out success", "bold"), ("before", ""), ("after", "bold green"), ("change", "")):
            table.add_column(name, style=style)
        for row in rates:
            table.add_row(*map(Text, row))
        console.print(table)
        for label, text in places:
            console.print(Text.assemble((f" {label:<12}", "bold"), text), soft_wrap=True)
        return
    lines = [
        (f"held-out success, {name}", f"{before} -> {after}, difference {change}")
        for name, before, after, change in rates
    ]
    width = max(len(label) for label, _ in [*lines, *places])
    console.file.writelines(f"{label:<{width}}  {text}\n" for label, text in [*lines, *places])


def _success_rows(reports: Mapping[str, EvaluationReport]) -> Iterator[tuple[str, str, str, str]]:
    """Decoding, success before, success after, and the paired difference."""
    for suffix in ("", "_greedy"):
        before, after = reports.get(f"before{suffix}"), reports.get(f"after{suffix}")
        if before is None or after is None:
            continue
        temperature = after.settings.get("temperature")
        decoding = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        measured = before.success and after.success
        sentence = format_comparison(compare(before, after)) if measured else "difference not measured"
        yield decoding, _rate(before), _rate(after), sentence.partition(";")[0].removeprefix("difference ")


def _rate(report: EvaluationReport) -> str:
    if report.success is None:
        return "not measured"
    invalid = f", {len(report.invalid_episodes)} invalid" if report.invalid_episodes else ""
    return f"{format_estimate(report.success)} ({report.num_successes} of {report.num_valid}{invalid})"


def _place_rows(result: "TrainResult") -> Iterator[tuple[str, str]]:
    minutes, seconds = divmod(round(result.seconds), 60)
    yield "time", f"{minutes} min {seconds} s of training"
    yield "run folder", str(result.folder)
    yield "curve", str(result.curve)
    yield "checkpoint", str(result.checkpoint)
    yield "go on with", f"agentrl show {result.folder}   or   agentrl eval {result.folder}"


# Which folder, and which settings -------------------------------------------------------------------------------------


def _new_settings(config: Path, overrides: Sequence[str]) -> TrainSettings:
    """The settings of a new run; a folder that was not chosen is the next free one named after the config file."""
    if config.is_dir():
        raise ConfigError(
            f"{config} is a folder; expected a YAML file. To continue a run: agentrl train --resume {config}"
        )
    settings = load_config(TrainSettings, config, overrides)
    if "run" in settings.model_fields_set:
        return settings
    free = next(path for path in _folders(config) if not path.exists())
    return settings.model_copy(update={"run": free})


def _resumed_settings(config: Path, overrides: Sequence[str]) -> TrainSettings:
    """The settings that a run was started with.

    What else is given is compared with them and never ignored: a resumed run that went on with other settings would be
    no run that its folder describes.
    """
    if config.is_dir():
        if overrides:
            raise ConfigError(
                f"A run is resumed with its own settings; leave out {overrides[0]!r}, or start a new run."
            )
        return _stored(config)
    asked = load_config(TrainSettings, config, overrides)
    folder = asked.run if "run" in asked.model_fields_set else _latest(config)
    stored = _stored(folder)
    differing = _differing(asked.model_dump(mode="json"), stored.model_dump(mode="json"))
    if differing:
        raise ConfigError(
            f"The run in {folder} was started with other settings ({'; '.join(differing)}). Resume it with its own: "
            f"agentrl train --resume {folder}"
        )
    return stored


def _stored(folder: Path) -> TrainSettings:
    # The folder may have moved since, and its name is relative to where the run was started.
    return load_config(TrainSettings, RunFolder.open(folder).config_path).model_copy(update={"run": folder})


def _folders(config: Path) -> Iterator[Path]:
    """runs/name, runs/name-2, runs/name-3 ..."""
    return (RUNS / (config.stem if n == 1 else f"{config.stem}-{n}") for n in itertools.count(1))


def _latest(config: Path) -> Path:
    existing = list(itertools.takewhile(Path.exists, _folders(config)))
    if not existing:
        raise CheckpointError(f"There is no run of {config} in {RUNS}/ to resume. Start one without --resume.")
    return existing[-1]


def _differing(asked: Mapping[str, Any], stored: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, as "key: stored value, not value asked for"; the run's folder is no setting."""
    found: list[str] = []
    for key in asked:
        ours, theirs = asked[key], stored.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += _differing({**dict.fromkeys(theirs), **ours}, theirs, f"{prefix}{key}.")
        elif ours != theirs and f"{prefix}{key}" != "run":
            found.append(f"{prefix}{key} is {theirs!r} there and {ours!r} here")
    return found


def _plain(text: str) -> Text:
    return Text(text)
