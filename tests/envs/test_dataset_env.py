"""`agentrl/Dataset-v0`: files of every kind, columns of every convention, and an error that names the row."""

import builtins
import datetime
import decimal
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import DatasetEnv, Episode, make
from agentrl.envs.dataset_rows import to_task
from agentrl.errors import ConfigError, DataError, MissingExtraError, UnknownNameError
from agentrl.messages import ToolCall, system, user
from agentrl.tasks import Task
from agentrl.tools.corpus import Document

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(100, 200)]
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_lines(tmp_path / "sums.jsonl", ROWS)


# Columns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "metadata"),
    [
        ({"prompt": "2 + 2?", "answer": "4"}, "2 + 2?", "4", {}),
        ({"prompt": "2 + 2?", "answer": 4, "level": "easy"}, "2 + 2?", 4, {"level": "easy"}),
        ({"prompt": CHAT, "answer": ["4", "four"]}, (system("Be short."), user("2 + 2?")), ["4", "four"], {}),
        ({"prompt": "Write a poem.", "style": "haiku"}, "Write a poem.", None, {"style": "haiku"}),
        (  # verl
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": "2 + 2?"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0},
            },
            (user("2 + 2?"),),
            "4",
            {
                "data_source": "openai/gsm8k",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0},
            },
        ),
        (  # GSM8K
            {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
            "2 + 2?",
            "4",
            {"solution": "2 + 2 = <<2+2=4>>4\n#### 4"},
        ),
        ({"question": "2 + 2?", "answer": "4"}, "2 + 2?", "4", {}),
        (  # a Parquet struct fills what a message lacks with None
            {"prompt": [{"role": "user", "content": "Hi", "name": None}], "answer": "x"},
            (user("Hi"),),
            "x",
            {},
        ),
    ],
)
def test_conventions(row: dict[str, Any], prompt: Any, answer: Any, metadata: dict[str, Any]) -> None:
    assert to_task(row, "t-1") == Task("t-1", prompt, answer, metadata)


def test_values_become_json() -> None:
    row = {
        "prompt": "x",
        "answer": 1,
        "day": datetime.date(2026, 3, 1),
        "price": decimal.Decimal("2.50"),
        "score": float("nan"),
        "pair": (1, {"a": (2,)}),
    }
    metadata = to_task(row, "t").metadata
    assert metadata == {"day": "2026-03-01", "price": "2.50", "score": None, "pair": [1, {"a": [2]}]}
    json.dumps(metadata, allow_nan=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2], "a JSON object was expected, got list"),
        ({}, "the columns found are none"),
        ({"text": "x", "label": 1}, 'needs "prompt" and "answer" (TRL)'),
        ({"question": "x"}, "the columns found are 'question'"),
        ({"prompt": " ", "answer": 1}, "the prompt is empty"),
        ({"prompt": [], "answer": 1}, "a text or a list of chat messages, got []"),
        ({"prompt": 7, "answer": 1}, "a text or a list of chat messages, got 7"),
        ({"prompt": ["hi"], "answer": 1}, "message 1 of the prompt must be an object, got 'hi'"),
        (
            {"prompt": [{"role": "human", "content": "hi"}]},
            "message 1 of the prompt has the role 'human'",
        ),
        (
            {"prompt": [CHAT[0], {"role": "user", "content": None}]},
            "message 2 of the prompt needs a text as",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "needs a text as content, got [{'type'"),
        (
            {"prompt": [CHAT[1], {"role": "assistant", "content": "4"}]},
            "got one with the role 'assistant'",
        ),
        (
            {"prompt": "x", "reward_model": {"style": "rule"}},
            "must hold a \"ground_truth\", got {'style'",
        ),
        ({"prompt": "x", "reward_model": "4"}, '"reward_model" must hold a "ground_truth", got \'4\''),
        ({"prompt": "x", "answer": 1, "image": b"\0"}, "column 'image' holds bytes"),
    ],
)
def test_wrong_row_is_refused(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        to_task(row, "t")


# Files ---------------------------------------------------------------------------------------------------------------


def test_the_error_names_file_and_row(tmp_path: Path) -> None:
    """Empty lines count as rows, so that the number is the one an editor shows."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answer": 1}\n\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=re.escape(f"{path}, row 3: the prompt is empty")):
        DatasetEnv(path=path).task_set()
    path.write_text('{"prompt": "a", "answer": 1}\n{"prompt": \n')
    with pytest.raises(DataError, match=re.escape(f"{path}, row 2 is not JSON")):
        DatasetEnv(path=path).task_set()


def test_answers_are_checked_against_the_reward(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [*ROWS[:3], {"prompt": "x", "answer": "many"}])
    with pytest.raises(DataError, match=r"row 4: A number was expected as the reference answer, got 'many'"):
        DatasetEnv(path=path, reward="numeric").task_set()
    DatasetEnv(path=path, reward="exact_match").task_set()
    with pytest.raises(DataError, match=r"row 1: This is no test of a call against a literal"):
        DatasetEnv(path=path, reward={"unit_tests": {"sandbox": "unsafe_subprocess"}}).task_set()
    without = write_lines(tmp_path / "w.jsonl", [{"prompt": "x"}] * 9)
    with pytest.raises(DataError, match=r"row 1: A reference answer is missing"):
        DatasetEnv(path=without).task_set()
    assert DatasetEnv(path={"train": without}, reward=f"{__name__}:constant").task_set()[0].answer is None


def all_tasks(path: str | Path) -> dict[str, Task]:
    tasks = [task for split in ("train", "test") for task in DatasetEnv(path=path, split=split).task_set()]
    return {str(task.prompt): task for task in tasks}


def test_every_kind_of_file_gives_the_same_tasks(tmp_path: Path, path: str) -> None:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "sums.json").write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "sums.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "sums"))
    expected = all_tasks(path)
    assert len(expected) == 100
    for name in ("sums.json", "sums.parquet", "sums"):
        assert all_tasks(tmp_path / name) == expected, name


def test_nested_columns_survive_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    row = {"prompt": CHAT, "data_source": "mine", "reward_model": {"style": "rule", "ground_truth": "4"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "t.parquet")
    (task,) = DatasetEnv(path={"train": tmp_path / "t.parquet"}).task_set()
    assert (task.prompt, task.answer) == ((system("Be short."), user("2 + 2?")), "4")
    assert task.id == "train-1"


def test_a_folder_with_splits_of_its_own_keeps_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": ROWS[:5], "validation": ROWS[5:8]}
    folder = str(tmp_path / "sums")
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(folder)
    assert len(DatasetEnv(path=folder).task_set()) == 5
    assert DatasetEnv(path=folder, split="validation").task_set()[0].id == "validation-1"
    with pytest.raises(ConfigError, match=r"Unknown split 'test'. Known: train, validation."):
        DatasetEnv(path=folder, split="test").task_set()
    assert len(DatasetEnv(path={"train": folder}).task_set()) == 5
    with pytest.raises(ConfigError, match="given for the split 'test', but has 'train', 'validation'"):
        DatasetEnv(path={"test": folder}, split="test").task_set()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "does not exist"),
        ("tasks.csv", b"a,b", "is of no known kind: give .jsonl, .json, .parquet or a folder"),
        ("latin.jsonl", b'{"prompt": "\xe9"}', "is not UTF-8 text"),
        ("tasks.json", b'{"prompt": "a"}\n{"prompt": "b"}', "One object per line goes into a file called .jsonl"),
        ("object.json", b'{"prompt": "a"}', "must hold a JSON list of rows, got dict"),
        ("tasks.parquet", b"PAR", "is not a Parquet file that can be read"),
        ("folder", "", "was not written by `datasets`"),
    ],
)
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes | str | None, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(DataError, match=re.escape(message)):
        DatasetEnv(path=path).task_set()


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **named)

    path = tmp_path / ("folder" if package == "datasets" else "tasks.parquet")
    path.mkdir() if package == "datasets" else path.write_bytes(b"PAR1")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'agentrl-framework[datasets]'")):
        DatasetEnv(path=path).task_set()


# Splits --------------------------------------------------------------------------------------------------------------


def test_one_file_is_split_by_content(path: str, tmp_path: Path) -> None:
    train, test = (DatasetEnv(path=path, split=split).task_set() for split in ("train", "test"))
    assert len(train) + len(test) == 100
    assert 10 <= len(test) <= 30  # 20 expected, standard deviation 4
    assert not {task.prompt for task in train} & {task.prompt for task in test}
    shuffled = write_lines(tmp_path / "shuffled.jsonl", ROWS[::-1])
    again = DatasetEnv(path=shuffled, split="test").task_set()
    assert {task.prompt for task in again} == {task.prompt for task in test}, "order and file name do not matter"


def test_a_file_for_each_split(tmp_path: Path) -> None:
    paths = {
        "train": write_lines(tmp_path / "a.jsonl", ROWS[:6]),
        "test": write_lines(tmp_path / "b.jsonl", ROWS[6:8]),
        "hard": write_lines(tmp_path / "c.jsonl", ROWS[8:]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(DatasetEnv(path=paths, split=split).task_set()) for split in paths] == [6, 2, 92]
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        DatasetEnv(path=paths, split="trian").reset()


def test_tasks_in_both_files_are_told(tmp_path: Path) -> None:
    paths = {"train": write_lines(tmp_path / "a.jsonl", ROWS[:6]), "test": write_lines(tmp_path / "b.jsonl", ROWS[4:9])}
    with pytest.warns(UserWarning, match="2 of 5 tasks of the split 'test' are in the training split too"):
        DatasetEnv(path=paths, split="test").task_set()


def test_a_file_is_read_once_until_it_changes(path: str) -> None:
    first = DatasetEnv(path=path).task_set()
    assert DatasetEnv(path=path, tools=["calculator"]).task_set() is first
    write_lines(Path(path), [{"prompt": f"new {n}", "answer": "x"} for n in range(50)])
    assert str(DatasetEnv(path=path).task_set()[0].prompt).startswith("new")


# Tools and rewards ---------------------------------------------------------------------------------------------------


def constant(task: Task, episode: Episode) -> float:
    """A reward of one's own."""
    return 0.5 if episode.answer else -1.0


def test_an_episode_with_tool_and_reward_by_name(path: str) -> None:
    env = make("Dataset-v0", path=path, tools=["calculator"], reward="numeric", system_prompt="Calculate.", max_turns=3)
    _, info = env.reset(options={"task": 0})
    assert [message["role"] for message in info["messages"]] == ["system", "user"]
    assert [schema["function"]["name"] for schema in info["tools"]] == ["calculator"]
    total = int(re.findall(r"\d+", info["messages"][1]["content"])[0]) * 2
    assert env.step(format_tool_call(ToolCall("calculator", {"expression": f"{total} / 2 * 2"})))[0] == str(total)
    assert env.step(f"That makes {total:,}.0")[1] == 1.0
    assert env.unwrapped.max_turns == 3
    assert env.unwrapped.inline


def test_tools_take_options_and_are_built_once(path: str, tmp_path: Path) -> None:
    documents = [Document("1", "Velby", "Velby is a town."), Document("2", "Ostin", "Ostin is a river.")]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"id": d.id, "title": d.title, "text": d.text} for d in documents])
    tools = [{"search": {"corpus": corpus, "top_k": 1}}, "calculator", {"python": {"sandbox": "unsafe_subprocess"}}]
    env = DatasetEnv(path=path, tools=tools)
    env.reset()
    assert env.step(format_tool_call(ToolCall("search", {"query": "town"})))[0] == "[1] Velby: Velby is a town."
    assert env.step(format_tool_call(ToolCall("python", {"code": "6 * 7"})))[0] == "42"
    assert not env.inline
    assert DatasetEnv(path=path, tools=tools).tools[0] is env.tools[0], "an index is built once per process"
    env.close()


def test_reward_by_import_path_may_block_so_it_is_not_inline(path: str) -> None:
    env = DatasetEnv(path=path, reward=f"{__name__}:constant")
    assert not env.inline
    env.reset()
    assert env.step("well")[1] == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tools": ["calculater"]}, UnknownNameError, "Did you mean 'calculator'?"),
        ({"tools": "calculator"}, ConfigError, "tools is a list of names, got 'calculator'; write ['calculator']"),
        ({"tools": [{"calculator": {"digits": 3}}]}, ConfigError, "refuses its options {'digits': 3}"),
        ({"tools": [{"a": {}, "b": {}}]}, ConfigError, "A tool is given by name, or as {name: {option: value}}"),
        ({"tools": [{"search": "corpus.jsonl"}]}, ConfigError, "A tool is given by name"),
        ({"tools": ["python"]}, ConfigError, "Say which sandbox runs the model's code"),
        ({"reward": "numerik"}, UnknownNameError, "Did you mean 'numeric'?"),
        ({"reward": ["numeric"]}, ConfigError, "A reward is given by name"),
        ({"max_turns": 0}, ConfigError, "max_turns must be at least 1, got 0"),
    ],
)
def test_wrong_choice_is_refused(path: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make("agentrl/Dataset-v0", path=path, **arguments)


def test_path_is_needed() -> None:
    with pytest.raises(ConfigError, match="path"):
        make("agentrl/Dataset-v0")


@pytest.mark.parametrize(
    ("row", "reward", "text"),
    [
        ({"prompt": "x", "answer": ["four", "4"]}, "exact_match", "Answer: four"),
        ({"prompt": "x", "answer": "4"}, "boxed", "The answer is \\boxed{4}."),
        ({"question": "x", "answer": "2 + 2\n#### 4"}, "numeric", "Answer: 4"),
        (
            {"prompt": "x", "answer": "assert f(2) == 4", "solution": "def f(n):\n    return 2 * n"},
            {"unit_tests": {"sandbox": "unsafe_subprocess"}},
            "```python\ndef f(n):\n    return 2 * n\n```",
        ),
    ],
)
def test_oracle_gives_the_reference_answer_in_the_form_of_the_reward(
    tmp_path: Path, row: dict[str, Any], reward: Any, text: str
) -> None:
    env = DatasetEnv(path={"train": write_lines(tmp_path / "t.jsonl", [row])}, reward=reward)
    env.reset()
    assert env.oracle(env.task, env.episode) == text
    assert env.step(text)[1] == 1.0


def test_oracle_says_what_it_lacks(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"prompt": "x", "answer": "assert f(2) == 4"}])
    env = DatasetEnv(path={"train": path}, reward={"unit_tests": {"sandbox": "unsafe_subprocess"}})
    env.reset()
    with pytest.raises(ConfigError, match='no column "solution"'):
        env.oracle(env.task, env.episode)
    path = write_lines(tmp_path / "u.jsonl", [{"prompt": "x"}])
    env = DatasetEnv(path={"train": path}, reward=f"{__name__}:constant")
    env.reset()
    with pytest.raises(ConfigError, match="Task train-1 has no answer"):
        env.oracle(env.task, env.episode)
