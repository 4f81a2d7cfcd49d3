"""The folder of a run: settings, versions, metrics, trajectories and checkpoints, safe against a kill at any moment.

    runs/<name>/
        config.yaml      every setting, defaults included
        manifest.json    versions, git commits, platform, seed and command line of every start
        status.json      "running", "finished", "interrupted" or "failed"
        metrics.jsonl    rows of numbers, one or more per update
        trees.jsonl      sampled trajectories, one token tree per row
        calls/           every tool call, as it happens; see `agentrl.journal`
        checkpoints/     complete folders only

Logs grow by whole lines. A line that a kill cut off is ignored, and resuming removes it together with all rows that
are younger than the checkpoint. Calls stay: a resumed run has to know what must not be done a second time.
"""

import contextlib
import enum
import fcntl
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

from agentrl.config import Config, dump_config
from agentrl.errors import CheckpointError
from agentrl.files import json_rows, settle_directories, write_atomically, writing
from agentrl.provenance import describe_start, now
from agentrl.trajectory import Tree, write_trees

RUNS = Path("runs")
"""Where runs are put whose folder nobody chose."""

Metric: TypeAlias = float | int | str | None
Row: TypeAlias = dict[str, Any]


class RunStatus(enum.StrEnum):
    """How far a run got."""

    RUNNING = "running"
    """It is running, or was killed."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """Ctrl-C."""
    FAILED = "failed"
    """An exception ended it; status.json has it as "detail"."""


class RunFolder:
    """One run on disk: `open` reads it; `create` and `resume` write it, as a context manager that keeps the status.

    Example:
        with RunFolder.create(Path("runs/first"), config, seed=0, command="agentrl train first.yaml") as run:
            run.log(1, {"success": 0.5})

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def config_path(self) -> Path:
        """The resolved settings; `load_config` reads them."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line, each with its "update"; `read_metrics` reads them."""
        return self.path / "metrics.jsonl"

    @property
    def trees_path(self) -> Path:
        """Sampled trajectories; `agentrl.trajectory.read_trees` reads them."""
        return self.path / "trees.jsonl"

    @property
    def calls_path(self) -> Path:
        """Journal of the tool calls, one file for each update and evaluation; `agentrl.call_records` reads them."""
        return self.path / "calls"

    @property
    def checkpoints_path(self) -> Path:
        """Where the checkpoints are; write each with `agentrl.files.atomic_directory`."""
        return self.path / "checkpoints"

    @property
    def status(self) -> RunStatus:
        """How far the run got.

        Raises:
            CheckpointError: The status file is damaged.
        """
        try:
            return RunStatus(_read_json(self._status_path).get("status", ""))
        except ValueError:
            raise CheckpointError(f"{self._status_path} is damaged: it has no status.") from None

    @property
    def manifest(self) -> dict[str, Any]:
        """How the run was started.

        Raises:
            CheckpointError: The manifest is damaged.
        """
        return _read_json(self._manifest_path)

    # Opening ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: Config, *, seed: int, command: str) -> Self:
        """Starts a new run in a folder that is empty or does not exist.

        Raises:
            CheckpointError: The folder is in use, or cannot be written.
        """
        run = cls(path)
        cls.require_free(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run._acquire()
        try:
            write_atomically(run.config_path, dump_config(config))
            run._set_status(RunStatus.RUNNING)
            write_atomically(run._manifest_path, _as_json({"seed": seed, **describe_start(command), "resumed": []}))
        except CheckpointError:  # half a run would only be in the way of the next try
            run.close()
            for file in (run.config_path, run._status_path, run._lock_path):
                file.unlink(missing_ok=True)
            raise
        return run

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Makes sure that a run can be created there.

        Raises:
            CheckpointError: Something is there already.
        """
        if cls(path)._manifest_path.exists():
            raise CheckpointError(f"{path} holds a run already. Continue it with --resume, or choose another name.")
        if path.is_dir() and any(path.iterdir()):
            raise CheckpointError(f"The folder {path} is not empty; choose another name for the run.")

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run, for reading.

        Raises:
            CheckpointError: There is no run in this folder.
        """
        run = cls(path)
        if not (run._manifest_path.is_file() and run.config_path.is_file()):
            what = "is not a run folder: it lacks config.yaml or manifest.json" if path.is_dir() else "does not exist"
            raise CheckpointError(f"{path} {what}. Expected a folder that `agentrl train` has written.")
        return run

    @classmethod
    def resume(cls, path: Path, *, update: int, command: str) -> Self:
        """Continues a run after the checkpoint of an update; rows of later updates are removed.

        Raises:
            CheckpointError: No run is there, another process is writing it, or its logs are damaged.
        """
        run = cls.open(path)
        run._acquire()
        settle_directories(run.checkpoints_path)
        _keep_rows(run.metrics_path, lambda row: row["update"] <= update)
        _keep_rows(run.trees_path, lambda row: row["metadata"]["update"] <= update)
        manifest = run.manifest
        manifest["resumed"].append({"update": update, **describe_start(command)})
        write_atomically(run._manifest_path, _as_json(manifest))
        run._set_status(RunStatus.RUNNING)
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._set_status(RunStatus.FINISHED)
            else:
                status = RunStatus.INTERRUPTED if issubclass(kind, KeyboardInterrupt) else RunStatus.FAILED
                with contextlib.suppress(CheckpointError):  # a full disk must not hide the error that is under way
                    self._set_status(status, f"{kind.__name__}: {error}")
        finally:
            self.close()

    def close(self) -> None:
        """Lets other processes write the run; leaving the `with` block does so too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Writing ---------------------------------------------------------------------------------------------------------

    def log(self, update: int, metrics: Mapping[str, Metric]) -> None:
        """Appends one row to the metrics; numbers that are not finite become null.

        Raises:
            CheckpointError: The disk is full, or the operating system refuses.
        """
        row = {"update": update, **{key: _finite(value) for key, value in metrics.items()}}
        with writing(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_trees(self, update: int, trees: Iterable[Tree]) -> None:
        """Appends trajectories, each marked with the update it was sampled for as `metadata["update"]`.

        Raises:
            CheckpointError: The disk is full, or the operating system refuses.
        """
        with writing(self.trees_path):
            write_trees(self.trees_path, (replace(t, metadata={**t.metadata, "update": update}) for t in trees))

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def _status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def _lock_path(self) -> Path:
        return self.path / ".lock"

    def _set_status(self, status: RunStatus, detail: str | None = None) -> None:
        write_atomically(self._status_path, _as_json({"status": status, "detail": detail, "time": now()}))

    def _acquire(self) -> None:
        """Takes the right to write, which ends with this process however it ends."""
        with writing(self.path):
            lock = self._lock_path.open("a", encoding="utf-8")
        try:
            # Not flock: forked children inherit that one and would hold it after this process is killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise CheckpointError(
                f"Another process is writing {self.path}; wait for it, or choose another run."
            ) from None
        self._lock = lock


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics file; a last line that a kill cut off is left out.

    Raises:
        CheckpointError: The file cannot be read, or another line is damaged; the message names it.
    """
    return [row for _, row in json_rows(path)]


def _keep_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    if not path.exists():
        return
    try:
        write_atomically(path, (line for line, row in json_rows(path) if keep(row)))
    except (KeyError, TypeError):
        raise CheckpointError(f"{path} is damaged: a row does not say which update it belongs to.") from None


def _finite(value: Metric) -> Metric:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from None
    return data if isinstance(data, dict) else {}


def _as_json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
