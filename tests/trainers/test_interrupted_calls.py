"""A run that is killed and resumed never places an order twice: real training, a real file, kill -9."""

import io
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import orders_env
import pytest
from rich.console import Console

from agentrl.call_records import read_episodes
from agentrl.runs import RunFolder, read_metrics
from agentrl.trajectory import read_trees

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["agentrl.trainers.training"])  # PyTorch is imported once for all of them

TASKS, SIZE, UPDATES, HELD_OUT = 2, 3, 3, 2
PER_UPDATE = TASKS * SIZE
BEFORE = HELD_OUT
"""Orders of the evaluation before training; the one after it has as many."""


@pytest.fixture
def run(tmp_path: Path, tiny_llama: Any, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run that takes a second."""
    tiny_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("ORDERS_FILE", str(tmp_path / "orders"))
    return {
        "env": {"id": "orders_env:FinalOrders-v0"},
        "recipe": "grpo",
        "updates": UPDATES,
        "model": {"name": str(tmp_path / "model"), "device": "cpu"},
        "rollout": {"tasks_per_update": TASKS, "max_turn_tokens": 6, "max_episode_tokens": 600},
        "group": {"size": SIZE},
        "optimizer": {"learning_rate": 1.0e-3},
        "evaluation": {"tasks": HELD_OUT, "greedy": False},
        "checkpoint_every": 1,
        "keep_trees_every": 1,
        "threads": 1,
        "run": str(tmp_path / "run"),
    }


def killed(run: dict[str, Any], moment: str, *, resume: bool = False) -> None:
    """Trains in another process until it dies."""
    environ = {"ORDERS_FILE": os.environ["ORDERS_FILE"], "ORDERS_KILL": moment}
    process = PROCESSES.Process(target=orders_env.train_to_death, args=(run, environ), kwargs={"resume": resume})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def resumed(run: dict[str, Any]) -> str:
    """Trains on, in this process, and returns what was said."""
    said = io.StringIO()
    orders_env.run_training(run, resume=True, console=Console(file=said, width=400))
    return said.getvalue()


def placed() -> list[str]:
    return Path(os.environ["ORDERS_FILE"]).read_text().splitlines()


ALL = BEFORE + UPDATES * PER_UPDATE + HELD_OUT
IN_THE_SECOND_UPDATE = BEFORE + PER_UPDATE + 4


@pytest.mark.parametrize(
    ("moment", "lines", "discarded"),
    [
        # The order was begun and never placed; nobody can know that, so that it is not placed later either.
        ("before", ALL - 1, 1),
        ("after", ALL, 1),
        # The call had ended: its result is known, and the episode goes on.
        ("between", ALL, 0),
    ],
)
def test_no_order_is_placed_twice(run: dict[str, Any], moment: str, lines: int, discarded: int) -> None:
    killed(run, f"{moment}:{IN_THE_SECOND_UPDATE}")
    assert len(placed()) == IN_THE_SECOND_UPDATE - (moment == "before")
    said = resumed(run)
    assert len(placed()) == lines
    assert max(Counter(placed()).values()) == 1
    folder = RunFolder.open(Path(run["run"]))
    invalid = {row["update"]: row["invalid_episodes"] for row in read_metrics(folder.metrics_path) if "episodes" in row}
    assert invalid == {1: 0, 2: discarded, 3: 0}
    assert (f"{discarded} episodes of update 2 are discarded" in said) == bool(discarded)
    errors = [leaf.error for tree in read_trees(folder.trees_path) for leaf in tree.leaves if not leaf.valid]
    assert all("had begun when the run was interrupted, and may have taken effect" in error for error in errors)
    assert len(errors) == discarded
    calls = [call for episode in read_episodes(folder.calls_path / "2.jsonl").values() for call in episode.calls]
    assert sum(call.reused for call in calls) == 4 - discarded
    assert all(call.outcome for call in calls)


def test_what_is_declared_idempotent_is_done_again(run: dict[str, Any]) -> None:
    run["env"]["id"] = "orders_env:HarmlessOrders-v0"
    killed(run, f"after:{IN_THE_SECOND_UPDATE}")
    resumed(run)
    assert len(placed()) == ALL + 4
    assert max(Counter(placed()).values()) == 2


def test_killed_again_while_it_goes_on(run: dict[str, Any]) -> None:
    killed(run, f"after:{IN_THE_SECOND_UPDATE}")
    for _ in range(2):
        # Dies at the second new order of the update: one more is discarded each time.
        killed(run, "after:2", resume=True)
    resumed(run)
    assert len(placed()) == ALL
    assert max(Counter(placed()).values()) == 1


def test_an_update_of_which_no_episode_is_left_is_passed_over(run: dict[str, Any]) -> None:
    run |= {"recipe": "reinforce", "group": {"size": 1}, "rollout": {**run["rollout"], "tasks_per_update": 1}}
    killed(run, f"after:{BEFORE + 2}")
    assert "1 episodes of update 2 are discarded" in resumed(run)
    assert len(placed()) == BEFORE + UPDATES + HELD_OUT
    rows = [row for row in read_metrics(RunFolder.open(Path(run["run"])).metrics_path) if "episodes" in row]
    assert [(row["update"], row["episodes"], row["groups_trained"]) for row in rows] == [
        (1, 1, 1),
        (2, 0, 0),
        (3, 1, 1),
    ]


def test_demonstrations_are_not_given_twice_either(run: dict[str, Any]) -> None:
    run |= {"recipe": "sft", "group": {}}
    # Two demonstrations in every update. The second of update 2 is begun, and not known to have been finished.
    killed(run, f"after:{BEFORE + TASKS + 2}")
    assert "1 episodes of update 2 are discarded" in resumed(run)
    assert len(placed()) == BEFORE + UPDATES * TASKS + HELD_OUT
    assert max(Counter(placed()).values()) == 1
