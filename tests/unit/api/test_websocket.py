"""Websocket frames, and the 8-byte frames of attach."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.api import frames
from sampan.api.websocket import BINARY, CLOSE, PING, WebsocketReader, frame
from sampan.errors import InvalidArgument


def masked(opcode: int, payload: bytes) -> bytes:
    """As a client sends it."""
    plain = frame(opcode, payload)
    head = len(plain) - len(payload)
    mask = os.urandom(4)
    body = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return plain[:1] + bytes((plain[1] | 0x80,)) + plain[2:head] + mask + body


@given(
    st.lists(
        st.tuples(st.sampled_from([BINARY, PING, CLOSE]), st.binary(max_size=300)), max_size=5
    ),
    st.data(),
)
def test_frames_come_back_whatever_the_pieces(
    sent: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    raw = b"".join(masked(opcode, payload) for opcode, payload in sent)
    cut = data.draw(st.integers(0, len(raw)))
    reader = WebsocketReader(raw[:cut])
    assert [*reader.feed(b""), *reader.feed(raw[cut:])] == sent


def test_long_frames() -> None:
    for size in (125, 126, 65535, 65536, 200_000):
        assert WebsocketReader().feed(masked(BINARY, bytes(size))) == [(BINARY, bytes(size))]


def test_what_a_client_may_not_send() -> None:
    with pytest.raises(InvalidArgument, match="mask"):
        WebsocketReader().feed(frame(BINARY, b"x"))
    with pytest.raises(InvalidArgument, match="large"):
        WebsocketReader().feed(b"\x82\xff" + (1 << 40).to_bytes(8, "big"))


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.integers(1, 7))
def test_attach_frames_come_back_whatever_the_pieces(
    sent: list[tuple[int, bytes]], step: int
) -> None:
    raw = b"".join(frames.frame(stream, payload) for stream, payload in sent)
    reader = frames.FrameReader()
    seen = [found for n in range(0, len(raw), step) for found in reader.feed(raw[n : n + step])]
    assert seen == sent
