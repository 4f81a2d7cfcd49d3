"""Tool calls as a run's journal has them, and the rows that they are read from.

    {"episode": "12.5.0", "task": 17, "split": "train"}                                         an episode opens
    {"episode": "12.5.0", "call": 0, "tool": "order", "arguments": {"item": 3}, "idempotent": false, "time": 1787.25}
    {"episode": "12.5.0", "call": 0, "status": "ok", "text": "done", "duration_s": 0.21, ...}    the call has ended
    {"episode": "12.5.0-1-0", "task": 17, "split": "train", "parent": "12.5.0", "calls": 1}     a branch after one call

An episode is named by update or evaluation, group, and place in the group.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from agentrl.errors import CheckpointError
from agentrl.files import json_rows
from agentrl.messages import JsonDict, MalformedCall, ToolCall

INFRASTRUCTURE = "infrastructure"
"""Status of a call in which the infrastructure failed, beside those of `ToolStatus`: the episode ended there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call.

    Example:
        Outcome(status="ok", text="42", duration_s=0.0001, num_chars=2)
    """

    status: str
    text: str
    """What the model saw."""
    duration_s: float = 0.0
    num_chars: int = 0
    """Of the whole result, before it was cut."""
    truncated: bool = False


@dataclass(slots=True)
class RecordedCall:
    """One call of an episode."""

    call: ToolCall | MalformedCall
    ran: bool
    """False where it was answered without running anything: unknown tool, wrong arguments."""
    idempotent: bool = True
    reused: bool = False
    """Its result is that of an earlier part of the run; it was not run again."""
    outcome: Outcome | None = None
    """None: it was running when the process died."""


@dataclass(slots=True)
class RecordedEpisode:
    """The calls of one episode."""

    name: str
    task: int
    """Index into the split."""
    split: str
    parent: str | None = None
    """The episode that it was forked from."""
    num_shared: int = 0
    """Calls that it has from the parent."""
    calls: list[RecordedCall] = field(default_factory=list)
    """Its own."""


def call_part(call: ToolCall | MalformedCall) -> JsonDict:
    """The part of a row that says what was called."""
    if isinstance(call, MalformedCall):
        return {"malformed": call.text, "error": call.error}
    return {"tool": call.name, "arguments": call.arguments}


def outcome_part(outcome: Outcome) -> JsonDict:
    """The part of a row that says what came of it."""
    return {
        "status": outcome.status,
        "text": outcome.text,
        "duration_s": round(outcome.duration_s, 6),
        "num_chars": outcome.num_chars,
        "truncated": outcome.truncated,
    }


def read_episodes(path: Path) -> dict[str, RecordedEpisode]:
    """The episodes of one file by name; of one that a resumed run played again, the last try.

    Raises:
        CheckpointError: The file cannot be read, or is damaged.
    """
    return {episode.name: episode for episode in _tries(path)}


def read_lasting_calls(path: Path) -> dict[str, list[RecordedCall]]:
    """By episode, the calls that were run and may not be run again, in their order, of all tries.

    Raises:
        CheckpointError: The file cannot be read, or is damaged.
    """
    lasting: dict[str, list[RecordedCall]] = {}
    for episode in _tries(path):
        found = [call for call in episode.calls if call.ran and not call.idempotent and not call.reused]
        lasting.setdefault(episode.name, []).extend(found)
    return lasting


def history(episodes: Mapping[str, RecordedEpisode], name: str) -> list[RecordedCall]:
    """All calls of an episode, those that it shares with its parents first.

    Raises:
        CheckpointError: A parent is not recorded, or not as far as the fork.
    """
    episode = episodes[name]
    if not episode.num_shared:
        return episode.calls
    if episode.parent is None or episode.parent not in episodes:
        raise CheckpointError(f"Episode {name} continues another one, whose calls are not recorded in this run.")
    shared = history(episodes, episode.parent)[: episode.num_shared]
    if len(shared) < episode.num_shared:
        raise CheckpointError(
            f"Episode {name} shares {episode.num_shared} calls with {episode.parent}, which has less."
        )
    return [*shared, *episode.calls]


def _tries(path: Path) -> Iterator[RecordedEpisode]:
    """All episodes, also those that were played again, in the order in which they opened."""
    tries: list[RecordedEpisode] = []
    latest: dict[str, RecordedEpisode] = {}
    for _, row in json_rows(path):
        try:
            if "task" in row:
                episode = _opened(row)
                tries.append(episode)
                latest[episode.name] = episode
            else:
                _add(latest[row["episode"]].calls, row)
        except (KeyError, TypeError, IndexError):
            raise CheckpointError(f"{path} is damaged: a row lacks something, or comes without its episode.") from None
    yield from tries


def _opened(row: JsonDict) -> RecordedEpisode:
    return RecordedEpisode(row["episode"], row["task"], row["split"], row.get("parent"), row.get("calls", 0))


def _add(calls: list[RecordedCall], row: JsonDict) -> None:
    outcome = Outcome(**{f.name: row[f.name] for f in fields(Outcome)}) if "status" in row else None
    if "malformed" in row:
        calls.append(RecordedCall(MalformedCall(row["malformed"], row["error"]), ran=False, outcome=outcome))
    elif "tool" in row:
        call = ToolCall(row["tool"], row["arguments"])
        ran = outcome is None
        calls.append(RecordedCall(call, ran, row.get("idempotent", True), row.get("reused", False), outcome))
    else:
        calls[-1].outcome = outcome
