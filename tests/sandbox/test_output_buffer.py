"""What is remembered of a stream of output."""

import os

from hypothesis import given
from hypothesis import strategies as st

from agentrl.sandbox.runner.output import OutputBuffer


@given(st.integers(1, 20), st.lists(st.binary(max_size=50), max_size=20))
def test_head_and_tail_are_those_of_the_whole_stream(max_bytes: int, chunks: list[bytes]) -> None:
    buffer, whole = OutputBuffer(max_bytes), b"".join(chunks)
    for chunk in chunks:
        buffer.add(chunk)
    head, tail = buffer.head.encode("latin-1"), buffer.tail.encode("latin-1")
    assert buffer.num_bytes == len(whole)
    assert head == whole[:max_bytes]
    assert tail == whole[max_bytes:][-max_bytes:]
    if len(whole) <= 2 * max_bytes:
        assert head + tail == whole


def test_memory_is_bounded() -> None:
    buffer = OutputBuffer(1000)
    for _ in range(1000):
        buffer.add(b"x" * 10_000)
    assert len(buffer._head) == 1000
    assert len(buffer._tail) <= 2 * 1000 + 1000  # trimmed to 1000 whenever it passes 2000; one chunk adds at most 1000


def test_reading_stops_where_the_pipe_is_empty_or_closed() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    buffer = OutputBuffer(100)
    assert buffer.read_from(read_end), "an empty pipe is not a closed one"
    os.write(write_end, b"a" * 60_000)
    buffer.read_rest(read_end)
    assert buffer.num_bytes == 60_000
    os.close(write_end)
    assert not buffer.read_from(read_end)
    os.close(read_end)
