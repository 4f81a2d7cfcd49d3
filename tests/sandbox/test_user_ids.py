"""No two sandboxes have one user id."""

import threading
from pathlib import Path

import pytest

from agentrl.sandbox.linux import user_ids
from agentrl.sandbox.linux.user_ids import FIRST_UID, UserIds


def test_threads_that_come_at_once_share_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's locks are the process's: two that think for themselves would be given the same id."""
    made: list[UserIds] = []
    second_may_come = threading.Event()

    def make() -> UserIds:
        made.append(UserIds(str(tmp_path / "locks")))
        second_may_come.wait(0.2)  # long enough for another thread to come in, were it let
        return made[-1]

    monkeypatch.setattr(user_ids, "_of_process", user_ids._OfProcess())
    monkeypatch.setattr(user_ids, "UserIds", make)
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(user_ids.user_ids().take())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(taken) == [FIRST_UID + number for number in range(4)]


def test_giving_back_what_was_not_taken_changes_nothing(tmp_path: Path) -> None:
    ids = UserIds(str(tmp_path / "locks"))
    first = ids.take()
    ids.give_back(first + 1)
    assert ids.take() == first + 1
    ids.give_back(first)
    ids.give_back(first)
    assert ids.take() == first
