"""`agentrl replay`: the recorded tool calls of an episode once more, in fresh tools, and what comes out otherwise."""

import difflib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from agentrl.call_records import INFRASTRUCTURE, Outcome, RecordedCall, RecordedEpisode, history, read_episodes
from agentrl.cli.tree_view import printable
from agentrl.config import load_config
from agentrl.envs import ToolEnv, make
from agentrl.errors import CheckpointError, ConfigError, InfrastructureError
from agentrl.messages import MalformedCall, ToolCall
from agentrl.registry import nearest
from agentrl.runs import RUNS, RunFolder
from agentrl.tools.toolbox import Toolbox
from agentrl.trainers.settings import TrainSettings

SLOWER, SLOWER_S = 2.0, 0.1
"""A call that takes so many times as long as then, and so many seconds more, is reported as slower."""
_MAX_DIFF_LINES, _MAX_LINE = 12, 120


@dataclass(frozen=True, slots=True)
class Comparison:
    """One call, then and now."""

    verdict: str
    """"equal", "slower", "differs", "status differs", "skipped" or "no record"."""
    detail: str = ""
    now: Outcome | None = None

    @property
    def drifted(self) -> bool:
        """Whether another result came out."""
        return self.verdict in ("differs", "status differs")


def replay(path: Path, name: str, *, execute_all: bool) -> bool:
    """Runs the calls of an episode again and prints how they compare.

    Args:
        path: A run folder, or its name under `runs/`.
        name: Of the episode, as `agentrl show` prints it.
        execute_all: Also run calls that are not idempotent.

    Returns:
        Whether all results are as recorded.

    Raises:
        CheckpointError: No run, or a damaged journal.
        ConfigError: There is no such episode, or its environment has changed too much to play it.
    """
    run = RunFolder.open(path if path.exists() else RUNS / path)
    episodes = _episodes(run, name)
    calls = history(episodes, name)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"episode {name}: task {episodes[name].task} of {episodes[name].split}, {len(calls)} calls")
    verdicts: Counter[str] = Counter()
    drifted = False
    with closing(_opened(run, episodes[name])) as env:
        for number, (call, result) in enumerate(_replayed(env.toolbox, calls, execute_all=execute_all)):
            console.print(_line(number, call, result))
            for line in result.detail.splitlines():
                console.print(Text(f"      {printable(line)}", "dim"))
            verdicts[result.verdict] += 1
            drifted |= result.drifted
    console.print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "nothing to replay")
    if verdicts["skipped"]:
        console.print("skipped calls are not idempotent; --execute-all runs them again, with whatever they do")
    return not drifted


def _episodes(run: RunFolder, name: str) -> dict[str, RecordedEpisode]:
    """The episodes of the update or evaluation that an episode belongs to."""
    if not run.calls_path.is_dir():
        raise CheckpointError(f"{run.path} has no journal of tool calls: {run.calls_path} does not exist.")
    part = name.rsplit(".", 2)[0]
    parts = sorted(file.stem for file in run.calls_path.glob("*.jsonl"))
    if part not in parts:
        raise ConfigError(
            f"{name!r} names no episode of {run.path}. Names are as `agentrl show` prints them, such as 12.5.0: update "
            f"or evaluation, group, place in the group. {nearest(part, parts)}"
        )
    episodes = read_episodes(run.calls_path / f"{part}.jsonl")
    if name not in episodes:
        raise ConfigError(f"{name!r} names no episode of {run.path}. {nearest(name, list(episodes))}")
    return episodes


def _opened(run: RunFolder, episode: RecordedEpisode) -> ToolEnv:
    """The environment at the beginning of the episode."""
    settings = load_config(TrainSettings, run.config_path).env
    env = make(settings.id, **{**settings.arguments, "split": episode.split}).unwrapped
    if not isinstance(env, ToolEnv):
        raise ConfigError(f"{settings.id} is no ToolEnv any more, so there are no tools to replay the episode in.")
    env.reset(options={"task": episode.task})
    return env


def _replayed(
    toolbox: Toolbox, calls: list[RecordedCall], *, execute_all: bool
) -> Iterator[tuple[RecordedCall, Comparison]]:
    """Every call with what came of it; nothing follows a failure of the infrastructure, which ends an episode."""
    for call in calls:
        if not execute_all and not (call.idempotent and toolbox.may_repeat(call.call)):
            yield call, Comparison("skipped")
            continue
        now = _run(toolbox, call.call)
        yield call, compare_outcomes(call.outcome, now)
        if now.status == INFRASTRUCTURE:
            return


def _run(toolbox: Toolbox, call: ToolCall | MalformedCall) -> Outcome:
    started = time.perf_counter()
    try:
        result = toolbox.call(call)
    except InfrastructureError as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome(INFRASTRUCTURE, text, time.perf_counter() - started, len(text))
    return Outcome(result.status, result.text, result.duration_s, result.num_chars, result.truncated)


def compare_outcomes(then: Outcome | None, now: Outcome) -> Comparison:
    """What there is to say about a call that was run again.

    Args:
        then: As recorded; None if the process died during the call.
        now: This time.
    """
    if then is None:
        return Comparison("no record", "the process ended during this call", now)
    if then.status != now.status:
        return Comparison("status differs", f"then {then.status}, now {now.status}: {_short(now.text)}", now)
    if then.text != now.text:
        return Comparison("differs", "\n".join(_difference(then.text, now.text)), now)
    if now.duration_s > max(SLOWER * then.duration_s, then.duration_s + SLOWER_S):
        return Comparison("slower", f"then {then.duration_s:.3f} s, now {now.duration_s:.3f} s", now)
    return Comparison("equal", now=now)


def _difference(then: str, now: str) -> Iterator[str]:
    """The lines that differ, each from a little before the first difference."""
    lines = list(difflib.unified_diff(then.splitlines(), now.splitlines(), "then", "now", n=0, lineterm=""))[2:]
    changed = [line for line in lines if not line.startswith("@@")]
    if not changed:
        yield "in line breaks only"
    start = 0
    if len(changed) == 2:  # one line became another: what they begin with alike says nothing
        first, second = changed[0][1:], changed[1][1:]
        same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        start = max(0, same - _MAX_LINE // 3)
    for line in changed[:_MAX_DIFF_LINES]:
        yield line[0] + " " + ("... " if start else "") + _short(line[1 + start :])
    if len(changed) > _MAX_DIFF_LINES:
        yield f"and {len(changed) - _MAX_DIFF_LINES} more lines"


def _line(number: int, call: RecordedCall, result: Comparison) -> Text:
    style = "bold red" if result.drifted else "green" if result.verdict == "equal" else "yellow"
    took = f"  {1000 * result.now.duration_s:.1f} ms" if result.now else ""
    return Text.assemble(f"{number:>4}  ", (f"{result.verdict:<14}", style), _short(_called(call.call)), (took, "dim"))


def _called(call: ToolCall | MalformedCall) -> str:
    if isinstance(call, MalformedCall):
        return f"(malformed) {call.text}"
    arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call.arguments.items())
    return f"{call.name}({arguments})"


def _short(text: str) -> str:
    line = printable(text.replace("\n", "\\n"))
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 4] + " ..."
