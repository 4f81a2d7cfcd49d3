"""Text from outside, made safe to store and short enough to show."""

from typing import NamedTuple

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ClippedText(NamedTuple):
    r"""A text that was cut to a limit.

    Example:
        ClippedText(text="aaa\n[... 999,994 characters cut ...]\nzzz", num_chars=1_000_000, truncated=True)
    """

    text: str
    num_chars: int
    """Length of the whole text, before the cut."""
    truncated: bool


class ClippedStream(NamedTuple):
    r"""The text of a stream of bytes that was cut to a limit.

    Example:
        ClippedStream(text="aaa\n[... 999,994 bytes cut ...]\nzzz", num_bytes=1_000_000, truncated=True)
    """

    text: str
    num_bytes: int
    """Size of the whole stream in UTF-8, before the cut."""
    truncated: bool


def clean_text(text: str) -> str:
    r"""The same text without what UTF-8 or a C string cannot hold.

    Surrogate pairs become the character they stand for; lone surrogates and NUL become U+FFFD.

    >>> clean_text("a\ud83d\ude00 b\ud800 c\0") == "a\U0001f600 b\ufffd c\ufffd"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", REPLACEMENT)


def clip_output(text: str, max_chars: int) -> ClippedText:
    r"""Cleans a text (see `clean_text`) and cuts its middle out if it is too long.

    What is kept of head and tail is about equally long: programs say first what they do and last how it ended.

    >>> clip_output("a" * 50 + "z" * 50, 40).text
    'aaaaa\n[... 90 characters cut ...]\nzzzzz'

    Args:
        text: Any string.
        max_chars: Limit in characters, marker included. The marker is shown even where it alone is longer.
    """
    text = clean_text(text)
    if len(text) <= max_chars:
        return ClippedText(text, len(text), False)
    room = max(0, max_chars - len(_marker(len(text), "characters")))
    first, last = text[: room - room // 2], text[len(text) - room // 2 :]
    return ClippedText(f"{first}{_marker(len(text) - room, 'characters')}{last}", len(text), True)


def clip_ends(head: bytes, tail: bytes, num_bytes: int, max_bytes: int) -> ClippedStream:
    r"""The same for a stream of bytes of which only the ends were kept, by its size in UTF-8.

    No character is ever cut in two.

    >>> clip_ends(b"ab\xff", b"yz", 5, 100).text == "ab\ufffdyz"
    True

    Args:
        head: How the stream began, at least `max_bytes` of it.
        tail: How it ended, likewise; head and tail are everything if their lengths add up to `num_bytes`.
        num_bytes: Length of the whole stream.
        max_bytes: Limit in bytes of UTF-8, marker included. The marker is shown even where it alone is longer.
    """
    if len(head) + len(tail) == num_bytes:
        whole = _cleaned(head + tail)
        if len(whole) <= max_bytes:
            return ClippedStream(whole.decode(), len(whole), False)
        return _join(whole, whole, len(whole), max_bytes)
    return _join(_cleaned(head), _cleaned(tail), num_bytes, max_bytes)


def _cleaned(data: bytes) -> bytes:
    return clean_text(data.decode(errors="replace")).encode()


def _join(head: bytes, tail: bytes, num_bytes: int, max_bytes: int) -> ClippedStream:
    """The beginning of `head`, the end of `tail` and a marker between them, `max_bytes` together."""
    room = max(0, max_bytes - len(_marker(num_bytes, "bytes")))
    first = head[: room - room // 2].decode(errors="ignore")
    last = tail[len(tail) - room // 2 :].decode(errors="ignore")
    num_cut = num_bytes - len(first.encode()) - len(last.encode())
    return ClippedStream(first + _marker(num_cut, "bytes") + last, num_bytes, True)


def _marker(count: int, unit: str) -> str:
    return f"\n[... {count:,} {unit} cut ...]\n"
