"""The D-Bus codec: known bytes, round trips, and messages that lie about their lengths."""

from __future__ import annotations

import random
import socket
import threading
from typing import Any

import pytest

from sampan.linux import dbus


def round_trip(signature: str, values: list[Any]) -> list[Any]:
    data = dbus.encode_message(dbus.METHOD_CALL, 1, {dbus.FIELD_PATH: "/"}, signature, values)
    assert dbus.message_size(data[:16]) == len(data)
    return dbus.decode_message(data).body


def test_a_message_is_the_bytes_of_the_specification() -> None:
    fields = {dbus.FIELD_PATH: "/a", dbus.FIELD_MEMBER: "Hi"}
    assert dbus.encode_message(dbus.METHOD_CALL, 2, fields, "u", [7]) == (
        b"l\x01\x00\x01\x04\x00\x00\x00\x02\x00\x00\x00\x27\x00\x00\x00"
        b"\x01\x01o\x00\x02\x00\x00\x00/a\x00\x00\x00\x00\x00\x00"
        b"\x03\x01s\x00\x02\x00\x00\x00Hi\x00\x00\x00\x00\x00\x00"
        b"\x08\x01g\x00\x01u\x00\x00"
        b"\x07\x00\x00\x00"
    )


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("", []),
        ("ybnqiuxt", [255, True, -2, 65535, -1, 1 << 31, -(1 << 63), (1 << 64) - 1]),
        ("sog", ["héllo", "/a/b", "a(sv)"]),
        ("as", [[]]),
        ("ay", [[1, 2, 3]]),
        ("at", [[]]),
        ("a(sv)", [[("Name", ("au", [5])), ("Other", ("s", "x"))]]),
        ("a{sv}", [{"k": ("b", False)}]),
        ("a(sa(sv))", [[("u", [("p", ("t", 1))])]]),
        ("d", [1.5]),
        ("v", [("v", ("s", "deep"))]),
    ],
)
def test_round_trips(signature: str, values: list[Any]) -> None:
    assert round_trip(signature, values) == values


def test_big_endian_messages_are_read() -> None:
    data = (
        b"B\x02\x00\x01\x00\x00\x00\x04\x00\x00\x00\x09\x00\x00\x00\x0f"
        b"\x05\x01u\x00\x00\x00\x00\x03\x08\x01g\x00\x01u\x00\x00"
        b"\x00\x00\x00\x2a"
    )
    message = dbus.decode_message(data)
    assert (message.serial, message.fields[dbus.FIELD_REPLY_SERIAL], message.body) == (9, 3, [42])


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("y", 256),
        ("u", -1),
        ("u", True),
        ("b", 1),
        ("s", "a\0b"),
        ("s", 5),
        ("v", ("ss", "x")),
        ("i", 1 << 31),
    ],
)
def test_a_value_that_does_not_fit_is_refused(signature: str, value: Any) -> None:
    with pytest.raises(ValueError):
        dbus.encode_message(dbus.METHOD_CALL, 1, {}, signature, [value])


@pytest.mark.parametrize("signature", ["a", "(", "()", "(s", "a{s}", "a{sss}", "z", "a" * 40, "}"])
def test_signatures_that_are_none(signature: str) -> None:
    with pytest.raises(ValueError):
        dbus.split_signature(signature)


def test_the_number_of_values_must_match() -> None:
    with pytest.raises(ValueError):
        dbus.encode_message(dbus.METHOD_CALL, 1, {}, "ss", ["one"])


def test_damaged_messages_never_do_worse_than_valueerror() -> None:
    rng = random.Random(5)
    good = dbus.encode_message(
        dbus.SIGNAL,
        3,
        {dbus.FIELD_MEMBER: "X"},
        "uosa(sv)",
        [1, "/a", "s", [("n", ("au", [1, 2]))]],
    )
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = bytes(data[: rng.randrange(16, len(data) + 1)])
        try:
            dbus.message_size(cut[:16])
            dbus.decode_message(cut)
        except (ValueError, TypeError):
            continue


def test_a_refused_login_says_so() -> None:
    ours, theirs = socket.socketpair()

    def refuse() -> None:
        theirs.recv(4096)
        theirs.sendall(b"REJECTED EXTERNAL\r\n")

    thread = threading.Thread(target=refuse)
    thread.start()
    with ours, theirs, pytest.raises(OSError, match="REJECTED"):
        dbus.Bus(ours).authenticate(0)
    thread.join()
