"""The demultiplexer against a straightforward reading of whole streams, in pieces cut anywhere."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.sandbox.docker.stream import Demultiplexer

PIECES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12)


def encode(pieces: list[tuple[int, bytes]]) -> bytes:
    """Kind, three zeros, length in four bytes, content."""
    return b"".join(bytes([kind, 0, 0, 0]) + struct.pack(">I", len(content)) + content for kind, content in pieces)


@given(PIECES, st.lists(st.integers(1, 30), max_size=60))
def test_cuts_make_no_difference(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream, demultiplexer, output = encode(pieces), Demultiplexer(max_stderr_bytes=1000), b""
    while stream:
        size = cuts.pop() if cuts else 7
        output += demultiplexer.feed(stream[:size])
        stream = stream[size:]
    assert output == b"".join(content for kind, content in pieces if kind == 1)
    error = b"".join(content for kind, content in pieces if kind == 2).decode("utf-8", "replace")
    assert demultiplexer.last_error_line() == ([line.strip() for line in error.split("\n") if line.strip()] or [""])[-1]


@given(PIECES)
def test_output_comes_as_soon_as_its_bytes_are_there(pieces: list[tuple[int, bytes]]) -> None:
    demultiplexer, output = Demultiplexer(), b""
    for kind, content in pieces:
        for byte in encode([(kind, content)]):
            output += demultiplexer.feed(bytes([byte]))
        if kind == 1:
            assert output.endswith(content)  # nothing of it is kept back for the next piece


def test_by_hand() -> None:
    demultiplexer = Demultiplexer()
    assert demultiplexer.feed(b"\1\0\0\0\0\0\0\3ab") == b"ab"
    assert demultiplexer.feed(b"c\2\0\0\0\0\0\0\6oh!\nno\1\0\0") == b"c"
    assert demultiplexer.last_error_line() == "no"
    assert demultiplexer.feed(b"\0\0\0\0\1d") == b"d"


def test_of_standard_error_only_the_end_is_kept() -> None:
    demultiplexer = Demultiplexer(max_stderr_bytes=10)
    for _ in range(100):
        assert demultiplexer.feed(encode([(2, b"0123456789abcdef\n")])) == b""
    assert demultiplexer.last_error_line() == "789abcdef"  # ten bytes, the line break is one of them
    assert len(demultiplexer._stderr) == 10


@pytest.mark.parametrize(
    "head",
    [
        b"\3\0\0\0\0\0\0\1",  # no such stream
        b"\0\0\0\0\0\0\0\1",  # standard input is not sent back
        b"\1\0\1\0\0\0\0\1",
        b"\1\0\0\0\xff\xff\xff\xff",  # 4 GiB
        b"HTTP/1.1",
    ],
)
def test_what_is_no_head_is_refused_before_anything_is_taken_for_it(head: bytes) -> None:
    with pytest.raises(OSError, match=head.hex()):
        Demultiplexer().feed(head + b"x")
