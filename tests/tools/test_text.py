"""Texts are cleaned and cut by bytes, never inside a character."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.text import ClippedText, clean_text, clip_output

MARKER = re.compile(r"\n\[\.\.\. ([0-9,]+) bytes cut \.\.\.\]\n")
# Any code point, lone surrogates and NUL included: what a tool can really return.
any_text = st.text(st.characters(exclude_categories=()))


def test_short_text_is_left_alone() -> None:
    assert clip_output("abc", 3) == ClippedText("abc", 3, False)
    assert clip_output("", 1) == ClippedText("", 0, False)


def test_head_and_tail_are_kept_and_the_marker_counts_what_is_missing() -> None:
    text = "a" * 500 + "b" * 500
    # The longest marker needed, "\n[... 1,000 bytes cut ...]\n", has 27 bytes: 100 - 27 = 73 = 37 head + 36 tail.
    # 1000 - 73 = 927 bytes go, and their marker is two bytes shorter.
    clipped = clip_output(text, 100)
    assert clipped == ClippedText("a" * 37 + "\n[... 927 bytes cut ...]\n" + "b" * 36, 1000, True)
    assert len(clipped.text) == 98


def test_no_character_is_cut_in_two() -> None:
    # Each euro sign is 3 bytes. 100 - 25 = 75 = 38 head + 37 tail: 12 whole signs (36 bytes) fit into either.
    clipped = clip_output("\u20ac" * 200, 100)
    assert clipped.text == "\u20ac" * 12 + "\n[... 528 bytes cut ...]\n" + "\u20ac" * 12  # 600 - 72
    assert clipped.num_bytes == 600


def test_the_marker_is_shown_where_there_is_room_for_nothing_else() -> None:
    assert clip_output("x" * 1_234_567, 5).text == "\n[... 1,234,567 bytes cut ...]\n"


def test_ten_megabytes() -> None:
    clipped = clip_output("x" * 10_000_000, 8192)
    assert len(clipped.text) == 8191  # room was kept for "10,000,000"; the count that is shown has a digit less
    assert clipped.num_bytes == 10_000_000


@given(any_text, st.integers(1, 200))
def test_clipping_keeps_the_byte_account(text: str, max_bytes: int) -> None:
    clipped = clip_output(text, max_bytes)
    whole = clean_text(text)
    assert clipped.num_bytes == len(whole.encode())
    if not clipped.truncated:
        assert clipped.text == whole
        assert clipped.num_bytes <= max_bytes
        return
    marker = MARKER.search(clipped.text)
    assert marker is not None
    head, tail = clipped.text[: marker.start()], clipped.text[marker.end() :]
    assert len(head.encode()) + len(tail.encode()) + int(marker[1].replace(",", "")) == clipped.num_bytes
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(clipped.text.encode()) <= max(max_bytes, len("\n[... 9,999 bytes cut ...]\n"))


def by_code_unit(text: str) -> str:
    """What cleaning must give, written without codecs: join pairs, then replace."""
    joined = re.sub(
        "([\ud800-\udbff])([\udc00-\udfff])",
        lambda pair: chr(0x10000 + ((ord(pair[1]) - 0xD800) << 10) + ord(pair[2]) - 0xDC00),
        text,
    )
    return re.sub("[\0\ud800-\udfff]", "\ufffd", joined)


surrogates = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])


@given(st.one_of(any_text, st.text(st.one_of(surrogates, st.sampled_from("a\0\ufeff\U0001f600")))))
def test_cleaning_equals_the_definition(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == by_code_unit(text)
    assert cleaned.encode().decode() == cleaned
    assert json.loads(json.dumps(cleaned, ensure_ascii=False)) == cleaned


@pytest.mark.parametrize("text", ["plain", "tab\tnew\nline", "\x1b[31mred", "<|im_start|>", "\u00e9\U0001f600"])
def test_cleaning_leaves_everything_else_alone(text: str) -> None:
    assert clean_text(text) == text
