"""Protocol buffers' wire format: byte vectors worked out by hand from the encoding's rules, and what is refused."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.buildkit import messages as m
from sampan.buildkit.wire import Message, WireError, decode, encode


class Inner(Message):
    a: Annotated[int, 1] = 0


class Outer(Message):
    text: Annotated[str, 2] = ""
    inner: Annotated[Inner | None, 3] = None
    numbers: Annotated[list[int], 4] = []
    labels: Annotated[dict[str, str], 5] = {}
    flag: Annotated[bool, 6] = False
    blobs: Annotated[list[bytes], 7] = []
    inners: Annotated[dict[str, Inner], 8] = {}


VECTORS = [
    (Inner(a=150), "089601"),
    (Inner(a=-2), "08feffffffffffffffff01"),
    (Outer(text="testing"), "120774657374696e67"),
    (Outer(inner=Inner(a=150)), "1a03089601"),
    (Outer(inner=Inner()), "1a00"),
    (Outer(numbers=[3, 270]), "2003208e02"),
    (Outer(labels={"a": "b"}), "2a060a0161120162"),
    (Outer(flag=True), "3001"),
    (Outer(blobs=[b"", b"x"]), "3a003a0178"),
    (Outer(inners={"k": Inner(a=1)}), "42070a016b12020801"),
    (Outer(), ""),
]


@pytest.mark.parametrize(("message", "data"), VECTORS)
def test_a_message_has_its_bytes_both_ways(message: Message, data: str) -> None:
    assert encode(message).hex() == data
    assert decode(type(message), bytes.fromhex(data)) == message


def test_a_packed_list_is_read_too() -> None:
    assert decode(Outer, bytes.fromhex("2206038e029ea705")).numbers == [3, 270, 86942]


def test_unknown_fields_of_every_width_are_passed_over() -> None:
    data = bytes.fromhex("089601990600000000000000009d0600000000a20603616263a006ff01")
    assert decode(Inner, data) == Inner(a=150)


def test_the_last_of_several_values_counts() -> None:
    assert decode(Inner, bytes.fromhex("08010802")) == Inner(a=2)


def test_a_map_entry_may_leave_out_what_is_empty() -> None:
    assert decode(Outer, bytes.fromhex("2a00")).labels == {"": ""}


def test_a_file_name_that_is_not_utf8_keeps_its_bytes() -> None:
    stat = decode(m.Stat, b"\x0a\x02\xff\xfe")
    assert encode(stat) == b"\x0a\x02\xff\xfe"


@pytest.mark.parametrize(
    "data",
    [
        "08",  # no number
        "08" + "ff" * 11,  # more than 64 bits
        "0a",  # no length
        "12057465",  # cut off
        "0800" + "1201",  # cut off after a good field
        "1001",  # text as a number
        "0b",  # a group
        "00",  # field 0
        "99060000",  # a fixed-width field cut off
    ],
)
def test_what_is_no_message_is_refused(data: str) -> None:
    with pytest.raises(WireError):
        decode(Outer, bytes.fromhex(data))
        decode(Inner, bytes.fromhex(data))


class Nest(Message):
    child: Annotated[list[Nest], 1] = []


def test_nesting_has_an_end() -> None:
    data = b""
    for _ in range(100):
        data = b"\x0a" + bytes([len(data)]) + data if len(data) < 128 else data
    with pytest.raises(WireError, match="deeper"):
        decode(Nest, data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for kind in (m.Packet, m.SolveRequest, m.GatewaySolveRequest, m.Status):
        try:
            encode(decode(kind, data))
        except WireError:
            continue


@given(
    st.builds(
        m.Stat,
        path=st.text(),
        mode=st.integers(0, 2**32 - 1),
        mtime_ns=st.integers(-(2**63), 2**63 - 1),
        xattrs=st.dictionaries(st.text(max_size=5), st.binary(max_size=5), max_size=3),
    )
)
def test_what_was_written_is_read(stat: m.Stat) -> None:
    assert decode(m.Packet, encode(m.Packet(stat=stat))).stat == stat
