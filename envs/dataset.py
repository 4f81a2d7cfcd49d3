"""`agentrl/Dataset-v0`: a person's own tasks, with tools and reward chosen by name."""

import functools
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from agentrl.envs.dataset_rows import read_rows, to_task
from agentrl.envs.episode import Episode, observation_key
from agentrl.envs.registration import register
from agentrl.envs.rewards import AnswerReward, RewardFunction, boxed_match, make_reward
from agentrl.envs.tool_env import ToolEnv
from agentrl.envs.unit_tests import UnitTestReward
from agentrl.errors import ConfigError, DataError
from agentrl.registry import nearest
from agentrl.tasks import SPLITS, Task, split_of, task_key
from agentrl.tools.catalog import make_tools
from agentrl.tools.core import Tool

Choice: TypeAlias = str | Mapping[str, Mapping[str, Any]]
"""A name, or a name with its options: "calculator", {"search": {"corpus": "wiki.jsonl"}}."""
Stamp: TypeAlias = tuple[tuple[int, int], ...]


@register("agentrl/Dataset-v0")
class DatasetEnv(ToolEnv):
    r"""Tasks from a file or folder.

    Description:
        Every row is a task. Its columns may follow the conventions of

        * TRL: `prompt` (a text or chat messages) and `answer`;
        * verl: `prompt` (chat messages) and `reward_model` with a `ground_truth`;
        * GSM8K: `question` and `answer`, of which only what follows `####` counts where that occurs.

        An answer may be a list of which any will do. Further columns go into the task's metadata, where a reward
        function of one's own finds them. All rows are checked before the first episode.

    Action Space:
        Text: one assistant turn. Tools: as chosen.

    Observation Space:
        Text: what the user says in the prompt, then what the tools returned.

    Starting State:
        A row of the split.

    Rewards:
        As chosen. An episode is a success if its reward is at least 1.

    Episode End:
        Terminated by a turn without a call, which is the answer. Truncated after `max_turns` turns.

    Arguments:
        path: JSON lines, a JSON list, Parquet, or a folder written by `datasets` (`save_to_disk`); or one of them for
            each split, as in `{"train": "a.jsonl", "test": "b.jsonl"}`. A single file without splits of its own is
            split by a hash of each task's content: a fifth is "test".
        tools: Names of tools, each with options if needed: `["calculator", {"search": {"corpus": "wiki.jsonl"}}]`.
            `{"mcp": {"command": ["my-server"]}}` stands for all tools of an MCP server, "module:name" for a tool of
            one's own. Default none.
        reward: Name of a reward: "exact_match", "normalized_match", "numeric", "token_f1", "boxed",
            `{"unit_tests": {"sandbox": "unsafe_subprocess"}}` (no security boundary!), or "module:function" for a
            function of (task, episode). Default "exact_match".
        system_prompt: Instructions put before prompts that bring none of their own.
        max_turns: Turn limit. Default 8.
        split: "train" or "test", or another name that `path` knows.
        render_mode: None or "ansi".

    Version History:
        v0: First version.
    """

    def __init__(
        self,
        *,
        path: str | Path | Mapping[str, str | Path],
        tools: Sequence[Choice] = (),
        reward: Choice = "exact_match",
        system_prompt: str = "",
        max_turns: int = 8,
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(split=split, render_mode=render_mode)
        if max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, got {max_turns}.")
        if isinstance(tools, str):
            raise ConfigError(f"tools is a list of names, got {tools!r}; write [{tools!r}].")
        paths = {"": path} if isinstance(path, str | Path) else path
        self._files = tuple((name, Path(file)) for name, file in paths.items())
        self._reward_choice = _choice(reward, "reward")
        self._reward = _make_reward(*self._reward_choice)
        self.tools = tuple(made for tool in tools for made in _make_tools(*_choice(tool, "tool")))
        self.system_prompt = system_prompt
        self.max_turns = max_turns

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split, read once per process as long as the file does not change.

        Raises:
            DataError: A row is wrong; the message names file and row, what was found and what was expected.
            ConfigError: There is no such split.
        """
        stamped = tuple((name, path, _stamp(path)) for name, path in self._files)
        with _lock:
            splits = _load_splits(stamped, self._reward_choice)
        if split not in splits:
            raise ConfigError(f"Unknown split {split!r}. {nearest(split, list(splits))}")
        return splits[split]

    def reward(self, task: Task, episode: Episode) -> float | Mapping[str, float]:
        """The reward of that name."""
        return self._reward(task, episode)

    def state_key(self, task: Task, episode: Episode) -> str:
        """What the agent was told last."""
        return observation_key(episode)

    @property
    def inline(self) -> bool:
        """Also whether the reward is known to answer at once."""
        return super().inline and isinstance(self._reward, AnswerReward)

    def oracle(self, task: Task, episode: Episode) -> str:
        """Gives the reference answer, without using a tool; for unit tests, the column "solution".

        Raises:
            ConfigError: The row has none.
        """
        if isinstance(self._reward, UnitTestReward):
            if "solution" not in task.metadata:
                raise ConfigError(f'Task {task.id} has no column "solution", so the oracle does not know its code.')
            return f"```python\n{task.metadata['solution']}\n```"
        answer = task.answer[0] if isinstance(task.answer, list) and task.answer else task.answer
        if answer is None:
            raise ConfigError(f"Task {task.id} has no answer, so the oracle does not know one.")
        boxed = isinstance(self._reward, AnswerReward) and self._reward.score is boxed_match
        return f"The answer is \\boxed{{{answer}}}." if boxed else f"Answer: {answer}"


_lock = threading.Lock()  # what is below is read or built once per process, whatever thread asks first


@functools.lru_cache(maxsize=8)
def _load_splits(files: tuple[tuple[str, Path, Stamp], ...], reward: tuple[str, str]) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split.

    Args:
        files: Split, file and `_stamp` of the file; a single file has the split "".
        reward: Name and options; answers are checked to be such that it can judge by them.
    """
    splits: dict[str, Sequence[Task]] = {}
    for split, path, _ in files:
        parts = _checked_tasks(path, split, _make_reward(*reward))
        if split:
            splits[split] = _only_part(parts, split, path)
        elif None in parts:
            tasks = parts[None]
            splits = {name: [task for task in tasks if split_of(task_key(task)) == name] for name in SPLITS}
        else:
            splits = {name: tasks for name, tasks in parts.items() if name is not None}
    _warn_of_overlap(splits)
    return splits


def _checked_tasks(path: Path, split: str, reward: RewardFunction) -> dict[str | None, list[Task]]:
    parts: dict[str | None, list[Task]] = {}
    for own_split, rows in read_rows(path).items():
        prefix = own_split or split or path.stem
        parts[own_split] = []
        for number, row in rows:
            try:
                task = to_task(row, f"{prefix}-{number}")
                if isinstance(reward, AnswerReward | UnitTestReward):
                    reward.check(task.answer)
            except DataError as error:
                raise DataError(f"{path}, row {number}: {error}") from error
            parts[own_split].append(task)
    return parts


def _only_part(parts: Mapping[str | None, Sequence[Task]], split: str, path: Path) -> Sequence[Task]:
    """The part of a file that is meant where the file was given for one split."""
    for name in (None, split):
        if name in parts:
            return parts[name]
    raise ConfigError(f"{path} was given for the split {split!r}, but has {', '.join(map(repr, parts))}.")


def _warn_of_overlap(splits: Mapping[str, Sequence[Task]]) -> None:
    train = {task_key(task) for task in splits.get("train", ())}
    for name, tasks in splits.items():
        shared = sum(task_key(task) in train for task in tasks) if name != "train" else 0
        if shared:
            warnings.warn(
                f"{shared} of {len(tasks)} tasks of the split {name!r} are in the training split too: what is "
                "measured on them is memory, not skill.",
                stacklevel=2,
            )


def _stamp(path: Path) -> Stamp:
    """What changes when the file, or one in the folder, is written anew."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    return tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _choice(choice: Choice, kind: str) -> tuple[str, str]:
    """Name and options, the latter as JSON so that they can be the key of a cache."""
    if isinstance(choice, str):
        return choice, "{}"
    if isinstance(choice, Mapping) and len(choice) == 1:
        name, options = next(iter(choice.items()))
        if isinstance(options, Mapping):
            return str(name), json.dumps(dict(options), sort_keys=True, default=str)
    raise ConfigError(f"A {kind} is given by name, or as {{name: {{option: value}}}}, got {choice!r}.")


def _make_reward(name: str, options: str) -> RewardFunction:
    return make_reward(name, json.loads(options))


def _make_tools(name: str, options: str) -> tuple[Tool, ...]:
    with _lock:
        return _build_tools(name, options)


@functools.lru_cache(maxsize=32)
def _build_tools(name: str, options: str) -> tuple[Tool, ...]:
    """Prototypes, shared by all environments of this process: a search tool holds its whole index."""
    return make_tools(name, json.loads(options))
