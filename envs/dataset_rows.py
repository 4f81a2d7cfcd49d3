"""Rows of a person's own data as tasks: reading files, and the column conventions of TRL, verl and GSM8K."""

import datetime
import decimal
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

from agentrl.errors import DataError, MissingExtraError
from agentrl.messages import Message, Role
from agentrl.tasks import Task

Row: TypeAlias = tuple[int, Any]
"""Number of a row, from 1, and what it holds."""

_EXPECTED = (
    'a row needs "prompt" and "answer" (TRL), "prompt" and "reward_model" with a "ground_truth" (verl), '
    'or "question" and "answer" (GSM8K)'
)
_ROLES = get_args(Role)
_ANSWER_MARK = "####"


def read_rows(path: Path) -> Mapping[str | None, Sequence[Row]]:
    """The rows of a file or folder, by split where it has splits of its own, else under None.

    Args:
        path: JSON lines (`.jsonl`), a JSON list (`.json`), Parquet, or a folder written by `datasets.save_to_disk`.

    Raises:
        DataError: It cannot be read.
        MissingExtraError: An optional package is needed to read it.
    """
    if not path.exists():
        raise DataError(f"The data set {path} does not exist.")
    try:
        if path.is_dir():
            return _read_folder(path)
        match path.suffix.lower():
            case ".jsonl" | ".ndjson":
                return {None: list(_json_lines(path))}
            case ".json":
                return {None: _json_list(path)}
            case ".parquet":
                return {None: _read_parquet(path)}
    except OSError as error:
        raise DataError(f"The data set {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The data set {path} is not UTF-8 text (byte {error.start}).") from error
    raise DataError(f"The data set {path} is of no known kind: give .jsonl, .json, .parquet or a folder of `datasets`.")


def to_task(row: Any, task_id: str) -> Task:
    """A task from one row; its columns say by which convention.

    Columns that are neither prompt nor answer become the task's metadata.

    Raises:
        DataError: Saying what is wrong with the row; the caller knows which row it is.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a JSON object was expected, got {type(row).__name__}")
    columns = {str(name): _json_clean(value, str(name)) for name, value in row.items()}
    if "prompt" in columns and "reward_model" in columns:
        prompt, answer = columns.pop("prompt"), _ground_truth(columns["reward_model"])
    elif "prompt" in columns:
        prompt, answer = columns.pop("prompt"), columns.pop("answer", None)
    elif "question" in columns and "answer" in columns:
        prompt, answer = columns.pop("question"), columns.pop("answer")
        if isinstance(answer, str) and _ANSWER_MARK in answer:
            columns.setdefault("solution", answer)
            answer = answer.rsplit(_ANSWER_MARK, 1)[1].strip()
    else:
        found = ", ".join(map(repr, columns)) or "none"
        raise DataError(f"{_EXPECTED}; the columns found are {found}")
    return Task(task_id, _prompt(prompt), answer, columns)


def _ground_truth(reward_model: Any) -> Any:
    if not isinstance(reward_model, dict) or reward_model.get("ground_truth") is None:
        raise DataError(f'"reward_model" must hold a "ground_truth", got {_short(reward_model)}')
    return reward_model["ground_truth"]


def _prompt(value: Any) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise DataError("the prompt is empty")
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"the prompt must be a text or a list of chat messages, got {_short(value)}")
    messages = tuple(_message(item, number) for number, item in enumerate(value, 1))
    if messages[-1]["role"] not in ("user", "tool"):
        role = messages[-1]["role"]
        raise DataError(f"the last message of the prompt must be the user's, got one with the role {role!r}")
    return messages


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"message {number} of the prompt must be an object, got {_short(item)}")
    role, content, name = item.get("role"), item.get("content"), item.get("name")
    if role not in _ROLES:
        raise DataError(f"message {number} of the prompt has the role {role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"message {number} of the prompt needs a text as content, got {_short(content)}")
    message: Message = {"role": cast(Role, role), "content": content}
    if isinstance(name, str):
        message["name"] = name
    return message


def _json_clean(value: Any, column: str) -> Any:
    """The same value of the types that JSON has; a number that is none becomes None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_json_clean(item, column) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_clean(item, column) for key, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise DataError(f"column {column!r} holds {type(value).__name__}, which is not text, number, list or object")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Files ---------------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, row {number} is not JSON: {error}.") from error


def _json_list(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. One object per line goes into a file called .jsonl.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of rows, got {type(rows).__name__}.")
    return list(enumerate(rows, 1))


def _read_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("datasets", "Reading Parquet") from error
    try:
        return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}.") from error


def _read_folder(path: Path) -> Mapping[str | None, Sequence[Row]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "Reading a folder of `datasets`") from error
    try:
        found = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise DataError(f"The folder {path} was not written by `datasets` (save_to_disk): {error}.") from error
    if isinstance(found, datasets.DatasetDict):
        return {name: list(enumerate(part.to_list(), 1)) for name, part in found.items()}
    return {None: list(enumerate(found.to_list(), 1))}
