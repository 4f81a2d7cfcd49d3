"""Rows of preference and demonstration files, read by both libraries: one prompt, one completion, token for token.

Conversations only: TRL glues plain texts together without a chat template, where ours goes through one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from trl_harness import Dataset, common_settings, trl

from agentrl.chat.template import ChatFormat
from agentrl.trainers.examples import read_example
from agentrl.trainers.recorded import Surroundings, record
from agentrl.trajectory import Tree

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "6 * 7?"}
CALL = {"role": "assistant", "content": '<tool_call>\n{"name": "times"}\n</tool_call>'}
RESULT = {"role": "tool", "content": "42"}
RIGHT = {"role": "assistant", "content": "It is 42."}
WRONG = {"role": "assistant", "content": "41, perhaps"}
TOOLS = json.dumps([{"type": "function", "function": {"name": "times", "description": "", "parameters": {}}}])

PAIRS: list[dict[str, Any]] = [
    {"prompt": [QUESTION], "chosen": [RIGHT], "rejected": [WRONG], "tools": "[]"},
    {"prompt": [SYSTEM, QUESTION], "chosen": [CALL, RESULT, RIGHT], "rejected": [WRONG], "tools": TOOLS},
    {"prompt": [QUESTION, WRONG, QUESTION], "chosen": [CALL, RESULT, RIGHT], "rejected": [CALL, RESULT, WRONG]},
]


@pytest.fixture(scope="module")
def chat(byte_tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(byte_tokenizer)


def ours(chat: ChatFormat, row: dict[str, Any]) -> Tree:
    return record(read_example(row, "row"), chat, Surroundings())


def prompt(tree: Tree) -> list[int]:
    return tree.segments[0].token_ids


def completion(tree: Tree, leaf: int = 0) -> list[int]:
    return tree.token_ids(tree.leaves[leaf].segment)[len(prompt(tree)) :]


def prepared(name: str, model_dir: Path, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The rows as TRL's trainer of that name tokenizes them."""
    config = getattr(trl, f"{name}Config")(**common_settings(model_dir), **settings)
    trainer = getattr(trl, f"{name}Trainer")(model=str(model_dir), args=config, train_dataset=Dataset.from_list(rows))
    return list(trainer.train_dataset)


def with_newline(chat: ChatFormat, ids: list[int]) -> list[int]:
    """What the template writes after the last turn too; TRL learns it, though no sampler ever produces it."""
    assert ids[-1] == chat.end_of_turn_id
    return [*ids, *chat.tokenizer.encode("\n", add_special_tokens=False)]


def test_pairs(model_dir: Path, chat: ChatFormat) -> None:
    for row, theirs in zip(PAIRS, prepared("DPO", model_dir, PAIRS), strict=True):
        tree = ours(chat, row)

        assert theirs["prompt_ids"] == prompt(tree)
        assert theirs["chosen_ids"] == with_newline(chat, completion(tree, 0))
        assert theirs["rejected_ids"] == with_newline(chat, completion(tree, 1))


def test_pairs_that_share_their_opening(model_dir: Path, chat: ChatFormat) -> None:
    """All that both sides have in common is the prompt, earlier calls and their results included."""
    rows = [{side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")} for row in PAIRS]

    for row, theirs in zip(rows, prepared("DPO", model_dir, rows), strict=True):
        tree = ours(chat, row)

        assert theirs["prompt_ids"] == prompt(tree)
        assert theirs["chosen_ids"] == with_newline(chat, completion(tree, 0))
        assert theirs["rejected_ids"] == with_newline(chat, completion(tree, 1))


def test_labels(model_dir: Path, chat: ChatFormat) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ]

    for row, theirs in zip(rows, prepared("KTO", model_dir, rows), strict=True):
        tree = ours(chat, row)

        assert theirs["prompt_ids"] == prompt(tree)
        assert theirs["completion_ids"] == with_newline(chat, completion(tree))
        assert theirs["label"] == tree.leaves[0].success


def test_demonstrations(model_dir: Path, chat: ChatFormat) -> None:
    """TRL learns all of the completion, what the tool said included; ours only what the assistant said."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]

    for row, theirs in zip(rows, prepared("SFT", model_dir, rows), strict=True):
        tree = ours(chat, row)
        mask = [bit for segment in tree.path(tree.leaves[0].segment) for bit in segment.action_mask]

        assert theirs["input_ids"] == with_newline(chat, prompt(tree) + completion(tree))
        assert [label != -100 for label in theirs["labels"]] == [i >= len(prompt(tree)) for i in range(len(mask) + 1)]
        assert (0 in mask[len(prompt(tree)) :]) == (RESULT in row["completion"])
