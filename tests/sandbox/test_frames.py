"""The border of a sandbox: nothing but checked JSON passes."""

import os
import socket
import struct
import threading

import pytest

from agentrl.sandbox.runner.frames import MAX_FRAME_BYTES, Channel, FrameError, pair


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def raw_pair() -> tuple[socket.socket, Channel]:
    sender, receiver = socket.socketpair()
    return sender, Channel(receiver)


def test_messages_arrive_whole_and_in_order() -> None:
    a, b = pair()
    messages = [{"id": i, "text": "ü\ud800\0" * i} for i in range(5)]
    for message in messages:
        a.send(message)
    assert [b.receive(60)[0] for _ in messages] == messages


def test_a_message_larger_than_the_socket_buffer_arrives() -> None:
    a, b = pair(max_bytes=1 << 24)
    message = {"text": "x" * (1 << 23)}
    sender = threading.Thread(target=a.send, args=(message,))
    sender.start()
    assert b.receive(60)[0] == message
    sender.join()


def test_descriptors_travel_and_are_not_inherited_by_programs() -> None:
    a, b = pair()
    read_end, write_end = os.pipe()
    a.send({"op": "take"}, [write_end])
    os.close(write_end)
    _, (received,) = b.receive(60)
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    os.close(received)
    assert os.read(read_end, 100) == b"through"
    assert os.read(read_end, 100) == b""  # no other copy of the write end is open
    os.close(read_end)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0", "half a header"),
        (frame(b"{}")[:-1], "half a frame"),
        (frame(b"\xff\xfe"), "not JSON"),
        (frame(b"{'a': 1}"), "not JSON"),
        (frame(b'{"a": NaN}'), "NaN is not JSON"),
        (frame(b'{"a": Infinity}'), "Infinity is not JSON"),
        (frame(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not JSON"),  # deeper than the parser's stack
        (frame(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),  # an integer above Python's limit of 4300 digits
        (frame(b"[1, 2]"), "JSON object was expected, got list"),
        (struct.pack(">I", 0xFFFFFFFF) + b"x", "4294967295 bytes; at most 1048576"),
    ],
)
def test_junk_is_refused(data: bytes, what: str) -> None:
    sender, receiver = raw_pair()
    sender.sendall(data)
    sender.close()
    with pytest.raises(FrameError, match=what):
        receiver.receive(60)


def test_the_size_is_checked_before_the_body_is_read() -> None:
    sender, receiver = raw_pair()
    sender.sendall(struct.pack(">I", MAX_FRAME_BYTES + 1))  # and no body: reading it would wait
    with pytest.raises(FrameError, match="at most"):
        receiver.receive(60)


def test_descriptors_of_a_refused_message_are_closed() -> None:
    sender, receiver = raw_pair()
    read_end, write_end = os.pipe()
    socket.send_fds(sender, [frame(b"junk")], [write_end])
    os.close(write_end)
    with pytest.raises(FrameError):
        receiver.receive(60)
    os.set_blocking(read_end, False)
    assert os.read(read_end, 1) == b"", "a write end that is still open would raise BlockingIOError"
    os.close(read_end)


def test_hang_up_and_silence_are_told_apart() -> None:
    a, b = pair()
    with pytest.raises(TimeoutError):
        b.receive(0.01)
    a.close()
    a.close()
    with pytest.raises(EOFError):
        b.receive(60)


def test_half_a_message_does_not_wait_for_ever() -> None:
    sender, receiver = raw_pair()
    sender.sendall(frame(b'{"a": 1}')[:6])
    with pytest.raises(TimeoutError):
        receiver.receive(0.05)
