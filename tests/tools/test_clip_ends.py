"""Cutting a stream whose middle was never kept gives what cutting the whole gives."""

import re

from hypothesis import given
from hypothesis import strategies as st

from agentrl.text import ClippedStream, clean_text, clip_ends

MARKER = re.compile(r"\n\[\.\.\. ([0-9,]+) bytes cut \.\.\.\]\n")


@given(st.text(max_size=300), st.integers(0, 200))
def test_the_cut_is_that_of_the_whole_text(text: str, max_bytes: int) -> None:
    data = text.replace("\0", "0").encode("utf-8", "replace")
    whole = clip_ends(data, b"", len(data), max_bytes)
    assert clip_ends(data[:max_bytes], data[max_bytes:], len(data), max_bytes) == whole
    if len(data) > 2 * max_bytes:
        assert clip_ends(data[:max_bytes], data[len(data) - max_bytes :], len(data), max_bytes) == whole


def test_the_middle_is_counted_though_it_was_never_seen() -> None:
    clipped = clip_ends(b"a" * 50, b"z" * 50, 1_000_000, 60)
    # The longest marker, "\n[... 1,000,000 bytes cut ...]\n", has 31 bytes. 29 are left: 15 of the head, 14 of the end.
    assert clipped.text == "a" * 15 + "\n[... 999,971 bytes cut ...]\n" + "z" * 14
    assert (clipped.num_bytes, clipped.truncated) == (1_000_000, True)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert clip_ends(b"a\xff", b"\xfez", 4, 100).text == "a\ufffd\ufffdz"
    assert clip_ends(b"\xff" * 50, b"\xfe" * 50, 1000, 60).text.startswith("\ufffd\ufffd")


def whole(text: str, max_bytes: int) -> ClippedStream:
    data = text.encode()
    return clip_ends(data, b"", len(data), max_bytes)


def test_what_fits_is_left_alone() -> None:
    assert whole("abc", 3) == ClippedStream("abc", 3, False)


def test_no_character_is_cut_in_two() -> None:
    # Each euro sign is 3 bytes. 100 - 25 = 75 = 38 head + 37 tail: 12 whole signs (36 bytes) fit into either.
    clipped = whole("\u20ac" * 200, 100)
    assert clipped.text == "\u20ac" * 12 + "\n[... 528 bytes cut ...]\n" + "\u20ac" * 12  # 600 - 72
    assert clipped.num_bytes == 600


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 200))
def test_clipping_keeps_the_byte_account(text: str, max_bytes: int) -> None:
    clipped = whole(text, max_bytes)
    cleaned = clean_text(text)
    assert clipped.num_bytes == len(cleaned.encode())
    if not clipped.truncated:
        assert clipped.text == cleaned
        assert clipped.num_bytes <= max_bytes
        return
    marker = MARKER.search(clipped.text)
    assert marker is not None
    head, tail = clipped.text[: marker.start()], clipped.text[marker.end() :]
    assert len(head.encode()) + len(tail.encode()) + int(marker[1].replace(",", "")) == clipped.num_bytes
    assert cleaned.startswith(head)
    assert cleaned.endswith(tail)
    assert len(clipped.text.encode()) <= max(max_bytes, len("\n[... 9,999 bytes cut ...]\n"))
