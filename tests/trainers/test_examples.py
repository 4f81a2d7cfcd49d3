"""Rows of preference and demonstration files: every convention, and what is said about a row that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError, DataError
from agentrl.messages import assistant, system, tool_result, user
from agentrl.trainers.examples import Completion, Example, RowKind, read_example, read_examples

QUESTION = {"role": "user", "content": "6 * 7?"}
RIGHT, WRONG = {"role": "assistant", "content": "42"}, {"role": "assistant", "content": "41"}
CALL = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [{"type": "function", "function": {"name": "calculator", "arguments": {"expression": "6*7"}}}],
}
CALL_TEXT = 'Let me see.\n<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
RESULT = {"role": "tool", "name": "calculator", "tool_call_id": "c1", "content": "42"}
PROMPT = (user("6 * 7?"),)


def good(*messages: Any) -> Completion:
    return Completion(messages=messages, good=True)


def bad(*messages: Any) -> Completion:
    return Completion(messages=messages, good=False)


PAIR = (good(assistant("42")), bad(assistant("41")))


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "completions"),
    [
        ({"prompt": "6 * 7?", "chosen": "42", "rejected": "41"}, RowKind.PAIR, PROMPT, PAIR),
        ({"prompt": [QUESTION], "chosen": [RIGHT], "rejected": [WRONG]}, RowKind.PAIR, PROMPT, PAIR),
        ({"chosen": [QUESTION, RIGHT], "rejected": [QUESTION, WRONG]}, RowKind.PAIR, PROMPT, PAIR),
        # many data sets repeat the prompt in the completions
        ({"prompt": "6 * 7?", "chosen": [QUESTION, RIGHT], "rejected": [QUESTION, WRONG]}, RowKind.PAIR, PROMPT, PAIR),
        # what both begin with is the prompt, turns of the assistant included ...
        (
            {"chosen": [QUESTION, CALL, RESULT, RIGHT], "rejected": [QUESTION, CALL, RESULT, WRONG], "score": 3},
            RowKind.PAIR,
            (*PROMPT, assistant(CALL_TEXT), tool_result("calculator", "42")),
            PAIR,
        ),
        # ... but only as far as the assistant speaks next in both
        (
            {"chosen": [QUESTION, CALL, RESULT, RIGHT], "rejected": [QUESTION, CALL]},
            RowKind.PAIR,
            PROMPT,
            (
                good(assistant(CALL_TEXT), tool_result("calculator", "42"), assistant("42")),
                bad(assistant(CALL_TEXT)),
            ),
        ),
        ({"prompt": "6 * 7?", "completion": "42", "label": True}, RowKind.LABELLED, PROMPT, PAIR[:1]),
        ({"prompt": "6 * 7?", "completion": [WRONG], "label": 0}, RowKind.LABELLED, PROMPT, PAIR[1:]),
        ({"prompt": "6 * 7?", "completion": "42", "label": None}, RowKind.DEMONSTRATION, PROMPT, PAIR[:1]),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, QUESTION, CALL, RESULT, RIGHT]},
            RowKind.DEMONSTRATION,
            (system("Be brief."), *PROMPT),
            (good(assistant(CALL_TEXT), tool_result("calculator", "42"), assistant("42")),),
        ),
    ],
)
def test_conventions(row: Any, kind: RowKind, prompt: Any, completions: Any) -> None:
    expected = Example(name="row 1", kind=kind, prompt=prompt, completions=completions)
    assert read_example(row, "row 1") == expected
    assert read_example({**row, "tools": None, "id": 7}, "row 1") == expected


def test_calls_in_other_forms() -> None:
    """Bare, with the arguments as JSON text, without content, several in one turn, cells filled up with nulls."""
    call = {"name": "calculator", "arguments": '{"expression": "6*7"}'}
    turn = {"role": "assistant", "content": None, "tool_calls": [call, call], "name": None}
    row = {"messages": [{**QUESTION, "tool_calls": None}, turn]}
    (completion,) = read_example(row, "row 1").completions
    text = CALL_TEXT.removeprefix("Let me see.\n")
    assert completion.messages == (assistant(f"{text}\n{text}"),)


def test_tools() -> None:
    schema = {"type": "function", "function": {"name": "calculator"}}
    row = {"messages": [QUESTION, RIGHT]}
    assert read_example({**row, "tools": [schema]}, "").tools == (schema,)
    assert read_example({**row, "tools": json.dumps([schema])}, "").tools == (schema,)
    assert read_example({**row, "tools": []}, "").tools == ()
    assert read_example(row, "").tools is None


BASE = {"prompt": "6 * 7?", "completion": "42"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["a"], "a JSON object was expected, got list"),
        ({}, r"expected the columns 'prompt', 'chosen' and 'rejected', .* those with a value are none"),
        ({"prompt": "x", "chosen": "y"}, "those with a value are 'prompt', 'chosen'"),
        ({"chosen": "yes", "rejected": "no"}, "'chosen' and 'rejected' do not begin with the same request"),
        ({"chosen": [QUESTION, RIGHT], "rejected": [RIGHT]}, "do not begin with the same request"),
        ({**BASE, "label": "good"}, "column 'label' must be true or false, got 'good'"),
        ({**BASE, "prompt": " "}, "column 'prompt' is an empty text"),
        ({**BASE, "prompt": 7}, "column 'prompt' must hold a text or a list of chat messages, got 7"),
        ({**BASE, "prompt": []}, r"column 'prompt' must hold .*, got \[\]"),
        ({**BASE, "prompt": [QUESTION, RIGHT]}, "column 'prompt' must end where the assistant is to speak"),
        ({**BASE, "completion": [QUESTION]}, "column 'completion' must begin with what the assistant says"),
        ({"prompt": "x", "chosen": [RESULT], "rejected": "y"}, "column 'chosen' must begin .* got the role 'tool'"),
        ({"messages": "hello"}, "column 'messages' must hold a list of chat messages, got 'hello'"),
        ({"messages": [QUESTION]}, "column 'messages' must hold a request and then something that the assistant says"),
        ({"messages": [RIGHT]}, "must hold a request and then"),
        ({"messages": [QUESTION, "42"]}, "column 'messages', message 2 must be an object, got '42'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 has the role 'bot'; known are system, user"),
        ({"messages": [{"role": "user"}]}, "message 1 needs a text as content, got None"),
        ({"messages": [{**QUESTION, "tool_calls": CALL["tool_calls"]}]}, "of the role 'user' has tool_calls"),
        ({"messages": [QUESTION, {**CALL, "tool_calls": ["x"]}]}, 'a tool call without {"name"'),
        ({"messages": [QUESTION, {**CALL, "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "no JSON object"),
        ({"messages": [QUESTION, {**CALL, "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "no JSON object"),
        ({**BASE, "tools": "["}, "column 'tools' is not JSON"),
        ({**BASE, "tools": {"a": 1}}, "column 'tools' must hold a list of JSON schemas"),
    ],
)
def test_a_wrong_row_names_row_and_column(row: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"^a.jsonl, row 3: .*{problem}"):
        read_example(row, "a.jsonl, row 3")


# Files ---------------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**BASE, "label": True}, {**BASE, "completion": "41", "label": False}])
    examples = read_examples(path, "train", {RowKind.LABELLED})
    assert [example.completions[0].good for example in examples] == [True, False]
    assert [example.name for example in examples] == [f"{path}, row 1", f"{path}, row 2"]


def test_parquet_fills_up_with_nulls(tmp_path: Path) -> None:
    """Arrow gives every message the keys of all."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": [QUESTION], "chosen": [CALL, RESULT, RIGHT], "rejected": [WRONG]}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (example,) = read_examples(path, "train", set(RowKind))
    assert example.completions[0].messages[0] == assistant(CALL_TEXT)
    assert example.completions == read_example(rows[0], "").completions


def test_splits_of_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{**BASE, "completion": name}]) for name in ("train", "extra")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data"))
    for name in parts:
        (example,) = read_examples(tmp_path / "data", name, set(RowKind))
        assert example.completions[0].messages == (assistant(name),)
    with pytest.raises(ConfigError, match=r"has no split 'test'\. Known: extra, train"):
        read_examples(tmp_path / "data", "test", set(RowKind))


def test_rows_of_no_use_and_empty_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}, BASE])
    with pytest.raises(DataError, match=r"row 2 holds prompt and completion, or messages; this recipe learns from ch"):
        read_examples(path, "train", {RowKind.PAIR})
    with pytest.raises(DataError, match="holds no row"):
        read_examples(write(tmp_path / "b.jsonl", []), "train", set(RowKind))
    with pytest.raises(DataError, match=r"a.jsonl, row 2: .*'label' must be true or false"):
        read_examples(write(tmp_path / "a.jsonl", [BASE, {**BASE, "label": 2}]), "train", set(RowKind))
    with pytest.raises(DataError, match="does not exist"):
        read_examples(tmp_path / "c.jsonl", "train", set(RowKind))
