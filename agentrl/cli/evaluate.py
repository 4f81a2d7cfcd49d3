"""`agentrl eval` and `agentrl compare`: what a model can do in an environment, measured and put side by side."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from agentrl.cli.env_arguments import parse_env_arguments
from agentrl.cli.evaluation_progress import EvaluationProgress
from agentrl.envs import ToolEnv, make
from agentrl.errors import ConfigError
from agentrl.evaluation import EvaluationReport, compare, describe_tasks, evaluate, print_report, read_report
from agentrl.evaluation.evaluate import EpisodeSource
from agentrl.evaluation.render import format_comparison, format_estimate
from agentrl.files import write_atomically
from agentrl.policies.core import Sampling
from agentrl.rollout.chat_api import ChatServer
from agentrl.rollout.collector import Collector, RolloutLimits
from agentrl.rollout.endpoint import EndpointCollector
from agentrl.trainers.settings import EnvSettings, RolloutSettings

if TYPE_CHECKING:
    from agentrl.cli.local_model import TrainedModel

DEFAULT_KEY_ENV = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What `agentrl eval` was asked; None where something was left out.

    Example:
        EvalOptions(model="quickstart", env="agentrl/Arithmetic-v0", sampling=Sampling(temperature=0.0))
    """

    model: str
    env: str | None = None
    env_arguments: Sequence[str] = ()
    """As `key=value`; the value is YAML."""
    split: str = "test"
    num_tasks: int = 200
    attempts: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    base_url: str | None = None
    api_key_env: str = DEFAULT_KEY_ENV
    concurrency: int | None = None
    timeout_s: float = 300.0
    """Longest wait for one answer of a server."""
    device: str | None = None
    max_turn_tokens: int | None = None
    max_episode_tokens: int | None = None
    json_path: Path | None = None


def evaluate_model(options: EvalOptions) -> EvaluationReport:
    """Plays held-out tasks, prints the report and writes it to `json_path`.

    Raises:
        ConfigError: Options that do not fit together, or a wrong environment or model.
        PolicyError: The model cannot be loaded or reached.
    """
    _check_writable(options.json_path)
    if options.base_url is not None and options.device is not None:
        raise ConfigError("--device is for models on this machine; leave it out with --base-url.")
    trained = None if options.base_url is not None else _find_trained(options.model)
    env = _chosen_env(options, trained)
    make_env = partial(make, env.id, **{"split": options.split, **env.arguments})
    first = make_env()
    try:
        name = describe_tasks(first)
        known = len(first.unwrapped.task_set()) if isinstance(first.unwrapped, ToolEnv) else options.num_tasks
    finally:
        first.close()
    limits = _limits(options, trained)
    source = (
        _served(options, make_env, limits)
        if options.base_url is not None
        else _local(options, trained, make_env, limits)
    )
    tasks = range(min(options.num_tasks, known))
    with EvaluationProgress(Console(stderr=True), len(tasks)) as progress:
        report, _ = evaluate(
            source,
            tasks,
            environment=name,
            policy=_policy_name(options, trained),
            attempts=options.attempts,
            sampling=options.sampling,
            seed=options.seed,
            on_tree=progress.count,
        )
    report = replace(report, settings={**report.settings, **_how(limits, source)})
    print_report(report, Console())
    if options.json_path is not None:
        write_atomically(options.json_path, json.dumps(report.to_json(), indent=2) + "\n")
    return report


def chosen_sampling(temperature: float | None, top_p: float, top_k: int, *, greedy: bool) -> Sampling:
    """How tokens are drawn, temperature 1 by default.

    Raises:
        ConfigError: A value is outside its range, or --greedy stands beside another choice.
    """
    if greedy and (temperature is not None or top_p != 1.0 or top_k):
        raise ConfigError("--greedy decides alone; leave out --temperature, --top-p and --top-k.")
    return Sampling(
        temperature=0.0 if greedy else 1.0 if temperature is None else temperature, top_p=top_p, top_k=top_k
    )


def compare_reports(first: Path, second: Path) -> None:
    """Prints how the policy of the second report compares with that of the first, task by task.

    Raises:
        DataError: A file is no report.
        ConfigError: The reports have no tasks in common.
    """
    reports = [read_report(first), read_report(second)]
    result = compare(*reports)
    lines = [("environment", reports[0].environment)]
    for label, report in zip(("first", "second"), reports, strict=True):
        rate = format_estimate(report.success) if report.success else "not measured"
        lines.append((label, f"{rate}  {report.policy}"))
    lines.append(("compared", format_comparison(result)))
    ours, theirs = (dict(report.settings) for report in reports)
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        shown = ", ".join(f"{key} {ours.get(key)} and {theirs.get(key)}" for key in differing)
        lines.append(("note", f"measured differently: {shown}"))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for label, text in lines:
        console.print(f"{label:<11}  {text}")


def _find_trained(model: str) -> "TrainedModel | None":
    from agentrl.cli.local_model import find_trained  # imports PyTorch, which a served model does not need

    return find_trained(model)


def _chosen_env(options: EvalOptions, trained: "TrainedModel | None") -> EnvSettings:
    """The environment that was asked for, or the one that the model was trained in."""
    if options.env is None and trained is None:
        raise ConfigError("Name an environment with --env; `agentrl envs` lists them.")
    base = trained.settings.env if trained and options.env in (None, trained.settings.env.id) else None
    arguments = parse_env_arguments(options.env_arguments)
    if base is None:
        return EnvSettings(id=str(options.env), arguments=arguments)
    return EnvSettings(id=base.id, arguments={**base.arguments, **arguments})


def _policy_name(options: EvalOptions, trained: "TrainedModel | None") -> str:
    if options.base_url is not None:
        return f"{options.model} at {options.base_url}"
    return str(trained.checkpoint) if trained else options.model


def _limits(options: EvalOptions, trained: "TrainedModel | None") -> RolloutLimits:
    """The bounds that were asked for, or those of the model's training."""
    defaults = trained.settings.rollout if trained else RolloutSettings()
    served = options.base_url is not None
    return RolloutLimits(
        max_turn_tokens=options.max_turn_tokens or defaults.max_turn_tokens,
        max_episode_tokens=options.max_episode_tokens or defaults.max_episode_tokens,
        max_concurrent_episodes=options.concurrency or (16 if served else defaults.max_concurrent_episodes),
    )


def _served(options: EvalOptions, make_env: Any, limits: RolloutLimits) -> EndpointCollector:
    key = os.environ.get(options.api_key_env) or None
    if key is None and options.api_key_env != DEFAULT_KEY_ENV:
        raise ConfigError(f"--api-key-env names the environment variable {options.api_key_env}, which is not set.")
    server = ChatServer(str(options.base_url), options.model, api_key=key, timeout_s=options.timeout_s)
    return EndpointCollector(server, make_env, limits=limits)


def _local(options: EvalOptions, trained: "TrainedModel | None", make_env: Any, limits: RolloutLimits) -> Collector:
    from agentrl.cli.local_model import load_named, load_trained

    loaded = load_trained(trained, options.device) if trained else load_named(options.model, options.device)
    return Collector(loaded.policy(), loaded.chat, make_env, vocab_size=loaded.vocab_size, limits=limits)


def _how(limits: RolloutLimits, source: EpisodeSource) -> dict[str, str | int]:
    """Settings of the measurement that `evaluate` does not know."""
    settings: dict[str, str | int] = {
        "max_turn_tokens": limits.max_turn_tokens,
        "max_episode_tokens": (source if isinstance(source, Collector) else limits).max_episode_tokens,
    }
    if isinstance(source, EndpointCollector):
        settings["tools"] = "structured" if source.server.takes_tools else "described in the prompt"
    return settings


def _check_writable(path: Path | None) -> None:
    """Before the work and not after it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"is in the folder {path.parent}, which does not exist"
        raise ConfigError(f"--json {path} {what}; name a file in an existing folder.")
