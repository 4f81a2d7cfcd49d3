"""Cutting a stream whose middle was never kept gives what cutting the whole gives."""

from hypothesis import given
from hypothesis import strategies as st

from agentrl.text import clip_ends, clip_output


@given(st.text(max_size=300), st.integers(0, 200))
def test_the_cut_is_that_of_the_whole_text(text: str, max_bytes: int) -> None:
    data = text.replace("\0", "0").encode("utf-8", "replace")
    assert clip_ends(data[:max_bytes], data[max_bytes:], len(data), max_bytes) == clip_output(data.decode(), max_bytes)
    if len(data) > 2 * max_bytes:
        ends = clip_ends(data[:max_bytes], data[len(data) - max_bytes :], len(data), max_bytes)
        assert ends == clip_output(data.decode(), max_bytes)


def test_the_middle_is_counted_though_it_was_never_seen() -> None:
    clipped = clip_ends(b"a" * 50, b"z" * 50, 1_000_000, 60)
    # The longest marker, "\n[... 1,000,000 bytes cut ...]\n", has 31 bytes. 29 are left: 15 of the head, 14 of the end.
    assert clipped.text == "a" * 15 + "\n[... 999,971 bytes cut ...]\n" + "z" * 14
    assert (clipped.num_bytes, clipped.truncated) == (1_000_000, True)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert clip_ends(b"a\xff", b"\xfez", 4, 100).text == "a\ufffd\ufffdz"
    assert clip_ends(b"\xff" * 50, b"\xfe" * 50, 1000, 60).text.startswith("\ufffd\ufffd")
