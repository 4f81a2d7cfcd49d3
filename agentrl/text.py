"""Text from outside, made safe to store and short enough to show."""

from typing import NamedTuple

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ClippedText(NamedTuple):
    r"""A text that was cut to a limit.

    Example:
        ClippedText(text="aaa\n[... 999,994 bytes cut ...]\nzzz", num_bytes=1_000_000, truncated=True)
    """

    text: str
    num_bytes: int
    """Size of the whole text in UTF-8, before the cut."""
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


def clip_output(text: str, max_bytes: int) -> ClippedText:
    """Cleans a text (see `clean_text`) and cuts its middle out if it is too long.

    What is kept of head and tail is about equally long: programs say first what they do and last how it ended.
    No character is ever cut in two.

    Args:
        text: Any string.
        max_bytes: Limit in bytes of UTF-8, marker included. The marker is shown even where it alone is longer.
    """
    data = clean_text(text).encode()
    if len(data) <= max_bytes:
        return ClippedText(data.decode(), len(data), False)
    return _join(data, data, len(data), max_bytes)


def clip_ends(head: bytes, tail: bytes, num_bytes: int, max_bytes: int) -> ClippedText:
    r"""The same as `clip_output` for a stream of bytes of which only the ends were kept.

    >>> clip_ends(b"ab\xff", b"yz", 5, 100).text == "ab\ufffdyz"
    True

    Args:
        head: How the stream began, at least `max_bytes` of it.
        tail: How it ended, likewise; head and tail are everything if their lengths add up to `num_bytes`.
        num_bytes: Length of the whole stream.
        max_bytes: As in `clip_output`.
    """
    if len(head) + len(tail) == num_bytes:
        return clip_output((head + tail).decode(errors="replace"), max_bytes)
    first, last = (clean_text(part.decode(errors="replace")).encode() for part in (head, tail))
    return _join(first, last, num_bytes, max_bytes)


def _join(head: bytes, tail: bytes, num_bytes: int, max_bytes: int) -> ClippedText:
    """The beginning of `head`, the end of `tail` and a marker between them, `max_bytes` together."""
    room = max(0, max_bytes - len(_marker(num_bytes)))
    first = head[: room - room // 2].decode(errors="ignore")
    last = tail[len(tail) - room // 2 :].decode(errors="ignore")
    num_cut = num_bytes - len(first.encode()) - len(last.encode())
    return ClippedText(first + _marker(num_cut) + last, num_bytes, True)


def _marker(num_bytes: int) -> str:
    return f"\n[... {num_bytes:,} bytes cut ...]\n"
