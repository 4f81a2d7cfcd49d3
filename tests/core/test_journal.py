"""The journal: what is on disk at which moment, what a resumed run may run again, and what it may not."""

import json
import math
import os
import signal
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from agentrl.call_records import Outcome, RecordedCall, history, read_episodes, read_lasting_calls
from agentrl.errors import CheckpointError, ForkError, InterruptedCallError
from agentrl.journal import EpisodeJournal, Journal, RepeatedCalls
from agentrl.messages import MalformedCall, ToolCall

ORDER, PAY, LOOK = ToolCall("order", {"item": 3}), ToolCall("pay", {"sum": 1.5}), ToolCall("look", {})
DONE = Outcome("ok", "done", 0.25, 4)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "calls")
    journal.begin("7")
    return journal


def rows(journal: Journal, part: str = "7") -> list[dict[str, Any]]:
    text = (journal._folder / f"{part}.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in text.splitlines()]


def opened(journal: Journal, key: tuple[int, ...] = (0,), **options: Any) -> EpisodeJournal:
    return journal.open_episode(5, key, task=17, split="train", **options)


def run(episode: EpisodeJournal, call: ToolCall, outcome: Outcome = DONE, *, idempotent: bool = False) -> bool:
    """Does what a toolbox does; whether the call has run."""
    known = episode.begin(call, idempotent=idempotent, stale=False)
    if known is None:
        episode.end(outcome)
    return known is None


def again(journal: Journal) -> EpisodeJournal:
    """The same episode in a run that was resumed."""
    journal.begin("7")
    return opened(journal)


class TestRows:
    def test_every_row_is_there_when_its_call_returns(self, journal: Journal) -> None:
        episode = opened(journal)
        start = {"episode": "7.5.0", "task": 17, "split": "train"}
        assert rows(journal) == [start]
        episode.begin(ORDER, idempotent=False, stale=False)
        begun = {"episode": "7.5.0", "call": 0, "tool": "order", "arguments": {"item": 3}, "idempotent": False}
        assert rows(journal) == [start, begun]
        episode.end(DONE)
        ended = {"status": "ok", "text": "done", "duration_s": 0.25, "num_chars": 4, "truncated": False}
        assert rows(journal)[2:] == [{"episode": "7.5.0", "call": 0, **ended}]
        episode.refuse(MalformedCall("{", "cut off"), Outcome("invalid_call", "no", 0.0, 2))
        assert rows(journal)[3] == {
            **{"episode": "7.5.0", "call": 1, "malformed": "{", "error": "cut off", "status": "invalid_call"},
            **{"text": "no", "duration_s": 0.0, "num_chars": 2, "truncated": False},
        }

    def test_what_was_written_is_read(self, journal: Journal) -> None:
        episode = opened(journal)
        run(episode, LOOK, idempotent=True)
        episode.refuse(ToolCall("pay", {}), Outcome("invalid_call", "sum: missing"))
        episode.refuse(MalformedCall("{", "cut off"), Outcome("invalid_call", "no"))
        episode.begin(ORDER, idempotent=False, stale=False)
        assert read_episodes(journal._folder / "7.jsonl")["7.5.0"].calls == [
            RecordedCall(LOOK, ran=True, idempotent=True, outcome=DONE),
            RecordedCall(ToolCall("pay", {}), ran=False, outcome=Outcome("invalid_call", "sum: missing")),
            RecordedCall(MalformedCall("{", "cut off"), ran=False, outcome=Outcome("invalid_call", "no")),
            RecordedCall(ORDER, ran=True, idempotent=False, outcome=None),
        ]

    def test_any_text_and_any_arguments(self, journal: Journal) -> None:
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]
        odd = ToolCall("look", {"a": "\ud800\n\u2028", "b": math.nan, "c": 10**4000})
        episode = opened(journal)
        run(episode, odd, Outcome("ok", "\u2028\r\n\0"), idempotent=True)
        run(episode, ToolCall("look", {"deep": nested}), idempotent=True)
        first, second = read_episodes(journal._folder / "7.jsonl")["7.5.0"].calls
        assert isinstance(first.call, ToolCall)
        assert repr(first.call.arguments) == repr(odd.arguments)
        assert first.outcome == Outcome("ok", "\u2028\r\n\0")
        assert second.call == ToolCall("look", {})
        assert rows(journal)[3]["unwritable"] == "RecursionError"

    def test_names_of_groups_branches_and_parts(self, journal: Journal) -> None:
        assert [journal.claim_groups(4), journal.claim_groups(2), journal.claim_groups(1)] == [0, 4, 6]
        assert opened(journal, (3, 1, 0)).name == "7.5.3-1-0"
        journal.begin("after_greedy")
        assert journal.claim_groups(1) == 0
        assert opened(journal).name == "after_greedy.5.0"
        assert [path.name for path in sorted(journal._folder.iterdir())] == ["7.jsonl", "after_greedy.jsonl"]

    def test_a_branch_continues_the_calls_of_its_parent(self, journal: Journal) -> None:
        parent = opened(journal)
        run(parent, ORDER)
        child = opened(journal, (0, 1, 0), parent=parent.name, num_calls=1)
        run(parent, PAY)
        run(child, LOOK)
        grandchild = opened(journal, (0, 1, 0, 2, 0), parent=child.name, num_calls=2)
        run(grandchild, PAY)
        episodes = read_episodes(journal._folder / "7.jsonl")
        called = {name: [call.call for call in history(episodes, name)] for name in episodes}
        assert called == {"7.5.0": [ORDER, PAY], "7.5.0-1-0": [ORDER, LOOK], "7.5.0-1-0-2-0": [ORDER, LOOK, PAY]}
        assert rows(journal)[-1]["call"] == 2
        del episodes["7.5.0"]
        with pytest.raises(CheckpointError, match="continues another one, whose calls are not recorded"):
            history(episodes, "7.5.0-1-0")

    def test_a_half_written_row_is_removed_before_others_follow(self, journal: Journal) -> None:
        run(opened(journal), ORDER)
        path = journal._folder / "7.jsonl"
        whole = path.read_bytes()
        for rest in (b'{"episode": "7.5.0", "call": 1, "to', b"x" * 10_000):
            path.write_bytes(whole + rest)
            assert len(read_episodes(path)["7.5.0"].calls) == 1
            journal.begin("7")
            assert path.read_bytes() == whole
        path.write_bytes(b"no line break")
        journal.begin("7")
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("row", ['{"episode": "unknown", "call": 0, "status": "ok"}', "[]", '{"task": 3}'])
    def test_a_damaged_journal_is_not_resumed(self, journal: Journal, row: str) -> None:
        (journal._folder / "7.jsonl").write_text(row + "\n")
        with pytest.raises(CheckpointError, match="damaged"):
            journal.begin("7")

    def test_a_full_disk_stops_the_run(self, journal: Journal) -> None:
        journal._file = FileIO("/dev/full", "w")
        with pytest.raises(CheckpointError, match="No space left on the disk"):
            opened(journal)


class TestResuming:
    def test_results_are_used_in_place_of_calls_that_may_not_be_repeated(self, journal: Journal) -> None:
        episode = opened(journal)
        assert run(episode, ORDER)
        assert run(episode, LOOK, idempotent=True)
        assert run(episode, PAY, Outcome("error", "no money", 0.5))
        episode = again(journal)
        assert episode.begin(ORDER, idempotent=False, stale=False) == DONE
        assert run(episode, LOOK, Outcome("ok", "otherwise"), idempotent=True), "idempotent: run again"
        assert episode.begin(PAY, idempotent=False, stale=False) == Outcome("error", "no money", 0.5)
        assert run(episode, PAY), "a call that the interrupted run had not come to"
        assert journal.discarded == []
        calls = read_episodes(journal._folder / "7.jsonl")["7.5.0"].calls
        assert [call.reused for call in calls] == [True, False, True, False]
        assert [call.outcome.text for call in calls if call.outcome] == ["done", "otherwise", "no money", "done"]

    def test_a_call_that_was_running_is_not_run_again(self, journal: Journal) -> None:
        episode = opened(journal)
        run(episode, ORDER)
        episode.begin(PAY, idempotent=False, stale=False)
        for _ in range(3):  # however often the run is resumed
            episode = again(journal)
            assert not run(episode, ORDER)
            with pytest.raises(
                InterruptedCallError, match=r"7\.5\.0 is discarded: its call 1, of tool 'pay', had begun"
            ):
                run(episode, PAY)
            assert journal.discarded == ["7.5.0"]
        assert [len(calls) for calls in read_lasting_calls(journal._folder / "7.jsonl").values()] == [2]

    def test_nor_one_in_which_the_infrastructure_failed(self, journal: Journal) -> None:
        run(opened(journal), ORDER, Outcome("infrastructure", "server gone"))
        with pytest.raises(InterruptedCallError, match="may have taken effect"):
            run(again(journal), ORDER)

    @pytest.mark.parametrize("other", [PAY, ToolCall("order", {"item": 4})])
    def test_an_episode_that_takes_another_course_is_discarded(self, journal: Journal, other: ToolCall) -> None:
        run(opened(journal), ORDER)
        with pytest.raises(InterruptedCallError, match=r"comes where the interrupted run called .*order"):
            run(again(journal), other)

    def test_idempotent_calls_are_run_whatever_happened(self, journal: Journal) -> None:
        opened(journal).begin(LOOK, idempotent=True, stale=False)
        assert run(again(journal), LOOK, idempotent=True)

    def test_state_that_was_lost_with_the_process_is_not_built_upon(self, journal: Journal) -> None:
        run(opened(journal), ORDER)
        episode = again(journal)
        run(episode, ORDER)
        with pytest.raises(InterruptedCallError, match="needs state of the interrupted run, which is lost"):
            episode.begin(PAY, idempotent=False, stale=True)

    def test_several_interruptions_add_up(self, journal: Journal) -> None:
        run(opened(journal), ORDER)
        episode = again(journal)
        assert [run(episode, ORDER), run(episode, PAY)] == [False, True]
        episode = again(journal)
        assert not run(episode, ORDER), "interrupted before it came as far as the time before"
        episode = again(journal)
        assert [run(episode, ORDER), run(episode, PAY), run(episode, ORDER)] == [False, False, True]

    def test_other_episodes_and_parts_are_not_concerned(self, journal: Journal) -> None:
        run(opened(journal), ORDER)
        journal.begin("7")
        assert run(opened(journal, (1,)), ORDER)
        journal.begin("8")
        assert run(opened(journal), ORDER)


def test_turns_that_are_played_again_repeat_only_what_may_be() -> None:
    log = RepeatedCalls()
    assert log.begin(LOOK, idempotent=True, stale=False) is None
    log.end(DONE)
    log.refuse(PAY, DONE)
    with pytest.raises(ForkError, match="call tool 'order' cannot be played again"):
        log.begin(ORDER, idempotent=False, stale=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from agentrl.call_records import Outcome
from agentrl.journal import Journal
from agentrl.messages import ToolCall

journal = Journal(Path(sys.argv[1]))
journal.begin("7")
for place in range(100):
    episode = journal.open_episode(5, (place,), task=17, split="train")
    for number in range(3):
        episode.begin(ToolCall("order", {"item": number}), idempotent=False, stale=False)
        if (place, number) == (99, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        episode.end(Outcome("ok", "x" * 100))
"""


def test_kill_9_leaves_all_calls_that_had_ended_and_that_one_had_begun(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    episodes = read_episodes(tmp_path / "7.jsonl")
    assert len(episodes) == 100
    ended = [call for episode in episodes.values() for call in episode.calls if call.outcome]
    assert len(ended) == 299
    assert [call.outcome is None for call in episodes["7.5.99"].calls] == [False, False, True]
    assert os.path.getsize(tmp_path / "7.jsonl") > 299 * 100
