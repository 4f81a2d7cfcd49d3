"""Trajectories in the terminal: the exact lines of a small tree, token by token."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from agentrl.cli.tree_view import GIVEN, SAMPLED, UNSURE, VERY_UNSURE, token_pieces, tree_lines
from agentrl.trajectory import Leaf, StopReason, Tree

WORDS = ["<s>", "6*7?\n", "calc", "(6*7)", "42", "!", "\x1b[31m", "<end>", " "]
IDS = {word: number for number, word in enumerate(WORDS)}


def decode(token_ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in token_ids)


def ids(*words: str) -> list[int]:
    return [IDS[word] for word in words]


@pytest.fixture
def tree() -> Tree:
    tree = Tree("t")
    tree.add(None, "prompt", 0, ids("<s>", "6*7?\n"))
    tree.add(0, "assistant", 0, ids("calc", "(6*7)"), entropies=[0.25, 0.75])
    tree.add(1, "environment", 0, ids("42"))
    tree.add(2, "assistant", 1, ids("42", "<end>"), entropies=[2.0, 0.0])
    tree.add(2, "assistant", 1, ids("!", " ", "<end>"), action_mask=[1, 1, 0], entropies=[0.1, 0.3, 0.0])
    tree.add(0, "assistant", 0, ids("\x1b[31m"), entropies=[0.0])
    tree.leaves = [
        Leaf(3, StopReason.ANSWERED, 1.0, True, num_turns=2, tool_calls={"calc": 1}),
        Leaf(4, StopReason.MAX_TOKENS, -0.5, False, num_turns=2, tool_calls={"calc": 2}, tool_errors={"calc": 1}),
        Leaf(5, StopReason.INVALID, 0.0, False, num_turns=1, error="gone\x07"),
    ]
    return tree


def test_the_whole_tree_line_by_line(tree: Tree) -> None:
    assert [line.plain for line in tree_lines(tree, decode)] == [
        "[0] prompt: 2 given",
        "| <s>6*7?",
        "| ",
        "    sample 1 of 2",
        '    [1] assistant, turn 0: 2 sampled, entropy mean 0.50, max 0.75 at "(6*7)"',  # (0.25 + 0.75) / 2
        "    > calc(6*7)",
        "    [2] environment, turn 0: 1 given",
        "    | 42",
        "        branch after [2], 1 of 2",
        '        [3] assistant, turn 1: 2 sampled, entropy mean 1.00, max 2.00 at "42"',
        "        > 42<end>",
        "        = success, reward 1.00, answered, 2 turns, calc 1",
        "        branch after [2], 2 of 2",
        '        [4] assistant, turn 1: 2 sampled, 1 given, entropy mean 0.20, max 0.30 at " "',  # the given one is out
        "        > ! ",
        "        | <end>",
        "        = failure, reward -0.50, max_tokens, 2 turns, calc 2 (1 failed)",
        "    sample 2 of 2",
        '    [5] assistant, turn 0: 1 sampled, entropy mean 0.00, max 0.00 at "\\x1b[31m"',
        "    > \\x1b[31m",  # a model cannot steer the terminal
        "    = invalid, not counted: gone\\x07",
    ]


def styles(line: Text) -> dict[str, str]:
    """Text of each styled span to its style, gutter excluded."""
    return {line.plain[span.start : span.end]: str(span.style) for span in line.spans if span.style != "cyan"}


def test_tokens_are_colored_by_entropy_and_given_text_is_dim(tree: Tree) -> None:
    lines = {line.plain.strip(): line for line in tree_lines(tree, decode)}
    assert styles(lines["> calc(6*7)"]) == {"calc": SAMPLED, "(6*7)": UNSURE}
    assert styles(lines["> 42<end>"]) == {"42": VERY_UNSURE, "<end>": SAMPLED}
    assert styles(lines["| 42"]) == {"42": GIVEN}
    assert styles(lines["| <end>"]) == {"<end>": GIVEN}


def test_a_chain_longer_than_the_stack() -> None:
    tree = Tree("t")
    tree.add(None, "prompt", 0, ids("<s>"))
    for turn in range(3000):
        tree.add(turn, "assistant", turn, ids("42"))
    lines = [line.plain for line in tree_lines(tree, decode)]
    assert len(lines) == 2 * 3001
    assert not any(line.startswith(" ") for line in lines)  # only a branch is indented


def test_an_empty_segment(tree: Tree) -> None:
    tree.add(5, "environment", 0, [])
    assert "    [6] environment, turn 0: empty" in [line.plain for line in tree_lines(tree, decode)]


# Token pieces


def sentence_tokenizer() -> Tokenizer:
    """Words that lose their blank at the start of a text, as in SentencePiece."""
    words = ["\u2581Hi", "\u2581there", ",", "\u2581"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_pieces_join_to_the_text(byte_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    token_ids = byte_tokenizer.encode(text)
    pieces = token_pieces(token_ids, byte_tokenizer.decode)
    assert len(pieces) == len(token_ids)
    assert "".join(pieces) == text


def test_a_character_belongs_to_its_last_byte(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_pieces(byte_tokenizer.encode("aéb"), byte_tokenizer.decode) == ["a", "", "é", "b"]


def test_a_cut_character_at_the_end_is_shown_as_such(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_pieces(byte_tokenizer.encode("aé")[:-1], byte_tokenizer.decode) == ["a", "\ufffd"]


def test_blanks_between_words_survive() -> None:
    assert token_pieces([0, 1, 2, 1], sentence_tokenizer().decode) == ["Hi", " there", ",", " there"]
