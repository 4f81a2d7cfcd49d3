"""The journal of a run: every tool call, on disk when it begins and again when it has ended.

    runs/<name>/calls/
        before.jsonl     of the evaluation called "before"
        12.jsonl         of update 12

One JSON object per line (`agentrl.call_records` reads them), written by one system call and not kept back: a killed
process leaves every call that had ended, and of those that were running that they had begun. A machine that loses power
may lose the last seconds.

A resumed run plays the updates after its checkpoint again and appends to the same files. Idempotent calls are run
again; of the others the recorded result is used. Where there is none, because the call was running when the process
died, and where the episode takes another course this time, the episode is discarded.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from agentrl.call_records import INFRASTRUCTURE, Outcome, RecordedCall, call_part, outcome_part, read_lasting_calls
from agentrl.errors import CheckpointError, ForkError, InterruptedCallError
from agentrl.files import cut_to_whole_lines, writing
from agentrl.messages import JsonDict, MalformedCall, ToolCall


class CallLog(Protocol):
    """What the tools of an episode tell of their calls."""

    def begin(self, call: ToolCall, *, idempotent: bool, stale: bool) -> Outcome | None:
        """A call is about to run; its arguments have been checked.

        Args:
            call: As the model gave it.
            idempotent: Whether it may be run more often than once.
            stale: The tool lacks what earlier calls have done to its state, because their results were reused.

        Returns:
            What came of it in an earlier part of the run: then it must not run. None: it is to run now.

        Raises:
            InterruptedCallError: It must not run, and what comes of it is not known.
        """
        ...

    def end(self, outcome: Outcome) -> None:
        """The call that was begun last has ended."""
        ...

    def refuse(self, call: ToolCall | MalformedCall, outcome: Outcome) -> None:
        """A call was answered, and nothing ran."""
        ...


class RepeatedCalls(CallLog):
    """A log for turns that are played once more in fresh tools: it lets through what may be repeated."""

    def begin(self, call: ToolCall, *, idempotent: bool, stale: bool) -> Outcome | None:
        """See `CallLog`.

        Raises:
            ForkError: The call may not be repeated.
        """
        if not idempotent:
            raise ForkError(
                f"Turns that call tool {call.name!r} cannot be played again, because it is not declared idempotent. "
                "If a call does no harm when it is run again, declare it with idempotent=True; otherwise use a recipe "
                "that does not complete episodes from the middle."
            )
        return None

    def end(self, outcome: Outcome) -> None:
        """Nothing is kept."""

    def refuse(self, call: ToolCall | MalformedCall, outcome: Outcome) -> None:
        """Nothing is kept."""


class Journal:
    """Writes the calls of one run; episodes in any number of threads at a time.

    Args:
        folder: Of the files; made when it is needed.

    Attributes:
        discarded: Episodes of the present part that were discarded, because calls of theirs may not be repeated.
    """

    def __init__(self, folder: Path) -> None:
        self.discarded: list[str] = []
        self._folder = self._path = folder
        self._part = ""
        self._num_groups = 0
        self._file: FileIO | None = None
        self._earlier: dict[str, list[RecordedCall]] = {}

    def begin(self, part: str) -> None:
        """Starts an update or an evaluation, or starts it anew where an interrupted run had begun it.

        Args:
            part: Its name, such as "12" or "before".

        Raises:
            CheckpointError: What an earlier try has left is damaged, or the file cannot be written.
        """
        self.close()
        path = self._path = self._folder / f"{part}.jsonl"
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                cut_to_whole_lines(path)
        self._part, self._num_groups, self.discarded = part, 0, []
        self._earlier = read_lasting_calls(path) if path.exists() else {}
        with writing(path):
            self._file = FileIO(path, "a")

    def claim_groups(self, count: int) -> int:
        """Takes numbers for so many groups of episodes, and returns the first."""
        self._num_groups += count
        return self._num_groups - count

    def open_episode(
        self, group: int, key: Iterable[int], *, task: int, split: str, parent: str | None = None, num_calls: int = 0
    ) -> "EpisodeJournal":
        """The log of an episode that begins.

        Args:
            group: Its group, one of the numbers that were claimed.
            key: Its place in the group; see `rollout.track.Track`.
            task: Index into the split.
            split: Of the environment.
            parent: Name of the episode that it was forked from; None where it starts from the prompt.
            num_calls: Calls that it shares with the parent.
        """
        name = f"{self._part}.{group}.{'-'.join(map(str, key))}"
        row: JsonDict = {"episode": name, "task": task, "split": split}
        if num_calls:
            row |= {"parent": parent, "calls": num_calls}
        self.write(row)
        return EpisodeJournal(self, name, num_calls, self._earlier.pop(name, ()))

    def write(self, row: JsonDict) -> None:
        """Appends a row.

        Raises:
            CheckpointError: The disk is full, or the operating system refuses.
        """
        assert self._file is not None, "begin() comes first"
        line = _dump(row).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            with writing(self._path):
                raise error
        if written != len(line):
            raise CheckpointError(f"No space left on the disk while writing {self._path}. Free some and use --resume.")

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EpisodeJournal(CallLog):
    """Writes the calls of one episode, and answers those that an interrupted run has run already.

    Args:
        journal: Of the run.
        name: Of the episode.
        num_calls: Calls that it begins with, as a fork.
        earlier: Its calls of the interrupted run that may not be repeated, in their order.

    Attributes:
        name: Of the episode, as `agentrl show` prints and `agentrl replay` takes it.
    """

    def __init__(self, journal: Journal, name: str, num_calls: int, earlier: Iterable[RecordedCall]) -> None:
        self.name = name
        self._journal = journal
        self._num_calls = num_calls
        self._earlier = deque(earlier)

    def begin(self, call: ToolCall, *, idempotent: bool, stale: bool) -> Outcome | None:
        """See `CallLog`."""
        known = None if idempotent else self._known(call, stale)
        reused = {"reused": True} if known else {}
        self._write(call_part(call) | {"idempotent": idempotent, "time": round(time.time(), 3)} | reused)
        if known is not None:
            self.end(known)
        return known

    def end(self, outcome: Outcome) -> None:
        """See `CallLog`."""
        self._write(outcome_part(outcome))
        self._num_calls += 1

    def refuse(self, call: ToolCall | MalformedCall, outcome: Outcome) -> None:
        """See `CallLog`."""
        self._write(call_part(call) | outcome_part(outcome))
        self._num_calls += 1

    def _known(self, call: ToolCall, stale: bool) -> Outcome | None:
        """What came of a call that may not be repeated, if an interrupted run has begun it."""
        if not self._earlier:
            if stale:
                raise self._interrupted(call, "needs state of the interrupted run, which is lost")
            return None
        earlier = self._earlier.popleft()
        if _dump(call_part(earlier.call)) != _dump(call_part(call)):
            raise self._interrupted(call, f"comes where the interrupted run called {earlier.call}")
        if earlier.outcome is None or earlier.outcome.status == INFRASTRUCTURE:
            raise self._interrupted(call, "had begun when the run was interrupted, and may have taken effect")
        return earlier.outcome

    def _interrupted(self, call: ToolCall, why: str) -> InterruptedCallError:
        self._journal.discarded.append(self.name)
        return InterruptedCallError(
            f"Episode {self.name} is discarded: its call {self._num_calls}, of tool {call.name!r}, {why}. It is not "
            "declared idempotent, so it is not run."
        )

    def _write(self, row: JsonDict) -> None:
        self._journal.write({"episode": self.name, "call": self._num_calls} | row)


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def _dump(row: Mapping[str, Any]) -> str:
    try:
        return _encode(row)
    except (ValueError, RecursionError) as error:  # numbers or nesting that JSON text cannot hold
        return _encode({**row, "arguments": {}, "unwritable": type(error).__name__})
