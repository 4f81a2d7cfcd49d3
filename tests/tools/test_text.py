"""Texts are cleaned, and cut by characters."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.text import ClippedText, clean_text, clip_output

MARKER = re.compile(r"\n\[\.\.\. ([0-9,]+) characters cut \.\.\.\]\n")
# Any code point, lone surrogates and NUL included: what a tool can really return.
any_text = st.text(st.characters(exclude_categories=()))


def test_short_text_is_left_alone() -> None:
    assert clip_output("abc", 3) == ClippedText("abc", 3, False)
    assert clip_output("", 1) == ClippedText("", 0, False)


def test_head_and_tail_are_kept_and_the_marker_counts_what_is_missing() -> None:
    text = "a" * 500 + "\u20ac" * 500
    # The longest marker needed, "\n[... 1,000 characters cut ...]\n", has 32 characters: 100 - 32 = 68 = 34 + 34.
    # 1000 - 68 = 932 characters go, and their marker is two characters shorter.
    clipped = clip_output(text, 100)
    assert clipped == ClippedText("a" * 34 + "\n[... 932 characters cut ...]\n" + "\u20ac" * 34, 1000, True)
    assert len(clipped.text) == 98


def test_the_head_gets_the_odd_character() -> None:
    # 101 - 32 = 69 = 35 head + 34 tail
    assert clip_output("x" * 1000, 101).text == "x" * 35 + "\n[... 931 characters cut ...]\n" + "x" * 34


def test_the_marker_is_shown_where_there_is_room_for_nothing_else() -> None:
    assert clip_output("x" * 1_234_567, 5).text == "\n[... 1,234,567 characters cut ...]\n"


def test_ten_megabytes() -> None:
    clipped = clip_output("x" * 10_000_000, 8192)
    assert len(clipped.text) == 8191  # room was kept for "10,000,000"; the count that is shown has a digit less
    assert clipped.num_chars == 10_000_000


@given(any_text, st.integers(1, 200))
def test_clipping_keeps_the_account(text: str, max_chars: int) -> None:
    clipped = clip_output(text, max_chars)
    whole = clean_text(text)
    assert clipped.num_chars == len(whole)
    if not clipped.truncated:
        assert clipped.text == whole
        assert clipped.num_chars <= max_chars
        return
    marker = MARKER.search(clipped.text)
    assert marker is not None
    head, tail = clipped.text[: marker.start()], clipped.text[marker.end() :]
    assert len(head) + len(tail) + int(marker[1].replace(",", "")) == clipped.num_chars
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(clipped.text) <= max(max_chars, len("\n[... 9,999 characters cut ...]\n"))


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
