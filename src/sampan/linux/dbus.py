"""The little D-Bus that systemd's cgroup interface needs: one connection, method calls, one signal.

    bus = Bus.connect("/run/dbus/system_bus_socket")
    reply = bus.call(DESTINATION, PATH, INTERFACE, "StartTransientUnit", "ssa(sv)a(sa(sv))", [...])

Values go by their D-Bus signature: y b n q i u x t d s o g, arrays (aX), structs ((...)), dictionaries (a{..}) as
dict, and v, a variant, as a pair (signature, value). Both directions are checked against the signature: a value
that does not fit is a ValueError, never a malformed message.

Source: D-Bus Specification 0.43, "Type System", "Marshaling", "Message Protocol", "Authentication Protocol".
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket
from _struct import pack, unpack_from
from errno import ECONNRESET, EPROTO, ETIMEDOUT
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
FIELD_PATH, FIELD_INTERFACE, FIELD_MEMBER, FIELD_ERROR = 1, 2, 3, 4
FIELD_REPLY_SERIAL, FIELD_DESTINATION, FIELD_SENDER, FIELD_SIGNATURE = 5, 6, 7, 8
FIELD_SIGNATURES = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}
MAX_MESSAGE = 1 << 27
MAX_ARRAY = 1 << 26
MAX_DEPTH = 32
CALL_TIMEOUT = 30.0

# type -> (struct format, size and alignment, least, most)
INTEGERS = {
    "y": ("B", 1, 0, 0xFF),
    "n": ("h", 2, -0x8000, 0x7FFF),
    "q": ("H", 2, 0, 0xFFFF),
    "i": ("i", 4, -0x80000000, 0x7FFFFFFF),
    "u": ("I", 4, 0, 0xFFFFFFFF),
    "x": ("q", 8, -(1 << 63), (1 << 63) - 1),
    "t": ("Q", 8, 0, (1 << 64) - 1),
}
ALIGNMENT = {
    "y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "b": 4, "i": 4, "u": 4, "s": 4, "o": 4, "a": 4, "x": 8, "t": 8, "d": 8,
    "(": 8, "{": 8,
}  # fmt: skip
CLOSING = {"(": ")", "{": "}"}


class BusError(Exception):
    """The other side answered with an error: its D-Bus name, and its words."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}" if message else name)
        self.name = name
        self.message = message


# -------------------------------------------------------------------------------- signatures


def split_signature(signature: str) -> list[str]:
    """The complete types of a signature: 'sa(sv)u' is ['s', 'a(sv)', 'u']."""
    types = []
    position = 0
    while position < len(signature):
        end = end_of_type(signature, position)
        types.append(signature[position:end])
        position = end
    return types


def end_of_type(signature: str, position: int, depth: int = 0) -> int:
    if position >= len(signature) or depth > MAX_DEPTH:
        raise ValueError(f"invalid D-Bus signature: {signature!r}")
    code = signature[position]
    if code == "a":
        return end_of_type(signature, position + 1, depth + 1)
    if code in CLOSING:
        at = position + 1
        members = 0
        while at < len(signature) and signature[at] != CLOSING[code]:
            at = end_of_type(signature, at, depth + 1)
            members += 1
        if at >= len(signature) or not members or (code == "{" and members != 2):
            raise ValueError(f"invalid D-Bus signature: {signature!r}")
        return at + 1
    if code not in ALIGNMENT:
        raise ValueError(f"invalid D-Bus signature: {signature!r}")
    return position + 1


# -------------------------------------------------------------------------------- writing


class Writer:
    """Values into bytes, little-endian; alignment counts from the start of the buffer."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, boundary: int) -> None:
        self.data += bytes(-len(self.data) % boundary)

    def write_all(self, signature: str, values: Sequence[Any]) -> None:
        types = split_signature(signature)
        if len(types) != len(values):
            raise ValueError(f"{len(values)} values for D-Bus signature {signature!r}")
        for kind, value in zip(types, values, strict=True):
            self.write(kind, value)

    def write(self, kind: str, value: Any) -> None:
        code = kind[0]
        self.align(ALIGNMENT[code])
        if code in INTEGERS:
            form, _, least, most = INTEGERS[code]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{value!r} does not fit D-Bus type {code!r}")
            self.data += pack("<" + form, value)
        elif code == "b":
            if not isinstance(value, bool):
                raise ValueError(f"{value!r} is not a boolean")
            self.data += pack("<I", value)
        elif code == "d":
            self.data += pack("<d", value)
        elif code in "so":
            self.write_text(value, "<I")
        elif code == "g":
            self.write_text(value, "<B")
        elif code == "v":
            inner, content = value
            if end_of_type(inner, 0) != len(inner):
                raise ValueError(f"a variant holds one type, not {inner!r}")
            self.write("g", inner)
            self.write(inner, content)
        elif code == "a":
            self.write_array(kind[1:], value)
        else:
            self.write_all(kind[1:-1], value)

    def write_text(self, value: Any, length: str) -> None:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{value!r} is not a D-Bus string")
        encoded = value.encode()
        self.data += pack(length, len(encoded)) + encoded + b"\0"

    def write_array(self, kind: str, values: Any) -> None:
        at = len(self.data)
        self.data += bytes(4)
        self.align(ALIGNMENT[kind[0]])
        start = len(self.data)
        for value in values.items() if kind[0] == "{" else values:
            self.write(kind, value)
        self.data[at : at + 4] = pack("<I", len(self.data) - start)


# -------------------------------------------------------------------------------- reading


class Reader:
    """Bytes into values. Every length is checked before it is used."""

    def __init__(self, data: bytes, order: str, position: int = 0) -> None:
        self.data = data
        self.order = order
        self.position = position

    def align(self, boundary: int) -> None:
        self.position += -self.position % boundary

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise ValueError("truncated D-Bus message")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, form: str, size: int) -> Any:
        self.align(size)
        return unpack_from(self.order + form, self.take(size))[0]

    def read_all(self, signature: str) -> list[Any]:
        return [self.read(kind) for kind in split_signature(signature)]

    def read(self, kind: str, depth: int = 0) -> Any:
        if depth > 2 * MAX_DEPTH:
            raise ValueError("D-Bus value is nested too deeply")
        code = kind[0]
        if code in INTEGERS:
            return self.number(INTEGERS[code][0], INTEGERS[code][1])
        if code == "b":
            return bool(self.number("I", 4))
        if code == "d":
            return self.number("d", 8)
        if code in "so":
            return self.text(self.number("I", 4))
        if code == "g":
            return self.text(self.number("B", 1))
        if code == "v":
            inner = self.read("g")
            if end_of_type(inner, 0) != len(inner):
                raise ValueError(f"a variant holds one type, not {inner!r}")
            return (inner, self.read(inner, depth + 1))
        if code == "a":
            return self.array(kind[1:], depth)
        self.align(8)
        return tuple(self.read(member, depth + 1) for member in split_signature(kind[1:-1]))

    def text(self, length: int) -> str:
        return self.take(length + 1)[:-1].decode("utf-8", "replace")

    def array(self, kind: str, depth: int) -> Any:
        length = self.number("I", 4)
        if length > MAX_ARRAY:
            raise ValueError("D-Bus array is too long")
        self.align(ALIGNMENT[kind[0]])
        end = self.position + length
        if end > len(self.data):
            raise ValueError("truncated D-Bus message")
        values = []
        while self.position < end:
            values.append(self.read(kind, depth + 1))
        if self.position != end:
            raise ValueError("D-Bus array does not end where it says")
        return dict(values) if kind[0] == "{" else values


# -------------------------------------------------------------------------------- messages


class Message:
    """A message taken apart; `body` are the values of its signature."""

    def __init__(self, kind: int, serial: int, fields: dict[int, Any], body: list[Any]) -> None:
        self.kind = kind
        self.serial = serial
        self.fields = fields
        self.body = body


def encode_message(
    kind: int, serial: int, fields: dict[int, Any], signature: str = "", values: Sequence[Any] = ()
) -> bytes:
    body = Writer()
    body.write_all(signature, values)
    if signature:
        fields = {**fields, FIELD_SIGNATURE: signature}
    head = Writer()
    head.data += pack("<cBBBII", b"l", kind, 0, 1, len(body.data), serial)
    rows = [(number, (FIELD_SIGNATURES[number], value)) for number, value in sorted(fields.items())]
    head.write("a(yv)", rows)
    head.align(8)
    return bytes(head.data + body.data)


def message_size(head: bytes) -> int:
    """The length of a whole message by its first 16 bytes."""
    order = byte_order(head)
    body, _, fields = unpack_from(order + "III", head, 4)
    size: int = 16 + fields + -fields % 8 + body
    if size > MAX_MESSAGE:
        raise ValueError("D-Bus message is too long")
    return size


def byte_order(head: bytes) -> str:
    if head[:1] == b"l":
        return "<"
    if head[:1] == b"B":
        return ">"
    raise ValueError("not a D-Bus message")


def decode_message(data: bytes) -> Message:
    order = byte_order(data)
    kind = data[1]
    serial = unpack_from(order + "I", data, 8)[0]
    reader = Reader(data, order, 12)
    fields = {number: value for number, (_, value) in reader.read("a(yv)")}
    reader.align(8)
    # Alignment of the body counts from its own start, which is aligned to 8 already.
    return Message(kind, serial, fields, reader.read_all(fields.get(FIELD_SIGNATURE, "")))


# -------------------------------------------------------------------------------- the connection


class Bus:
    """An authenticated connection; calls wait for their answer, signals are kept meanwhile."""

    def __init__(self, sock: Socket) -> None:
        self.socket = sock
        self.serial = 0
        self.pending = b""
        self.signals: list[Message] = []

    @classmethod
    def connect(cls, path: str, *, hello: bool = True, uid: int | None = None) -> Bus:
        """`hello` registers at a message bus; a private socket (systemd's own) has no bus to greet."""
        sock = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        sock.settimeout(CALL_TIMEOUT)
        try:
            sock.connect(path)
            bus = cls(sock)
            bus.authenticate(os.geteuid() if uid is None else uid)
            if hello:
                bus.call(
                    "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"
                )
        except BaseException:
            sock.close()
            raise
        return bus

    def close(self) -> None:
        self.socket.close()

    def authenticate(self, uid: int) -> None:
        """SASL EXTERNAL: the kernel vouches for our uid, we only name it.

        BEGIN goes along with AUTH, as libsystemd sends it: a message that reaches systemd in one read with
        BEGIN would lie in its buffer until the next one comes.
        """
        name = str(uid).encode().hex().encode()
        self.socket.sendall(b"\0AUTH EXTERNAL " + name + b"\r\nBEGIN\r\n")
        line = self.read_line()
        if not line.startswith(b"OK"):
            raise OSError(EPROTO, f"D-Bus authentication refused: {line.decode(errors='replace')}")

    def read_line(self) -> bytes:
        while b"\r\n" not in self.pending:
            if len(self.pending) > 4096:
                raise OSError(EPROTO, "D-Bus authentication: endless line")
            self.pending += self.receive(4096)
        line, _, self.pending = self.pending.partition(b"\r\n")
        return line

    def receive(self, size: int) -> bytes:
        chunk = self.socket.recv(size)
        if not chunk:
            raise OSError(ECONNRESET, "D-Bus connection closed")
        return chunk

    def read_message(self) -> Message:
        while len(self.pending) < 16:
            self.pending += self.receive(65536)
        size = message_size(self.pending[:16])
        while len(self.pending) < size:
            self.pending += self.receive(65536)
        data, self.pending = self.pending[:size], self.pending[size:]
        return decode_message(data)

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: Sequence[Any] = (),
    ) -> list[Any]:
        """Call a method and return the values of its answer; BusError where it answers with an error."""
        self.serial += 1
        fields = {
            FIELD_PATH: path,
            FIELD_INTERFACE: interface,
            FIELD_MEMBER: member,
            FIELD_DESTINATION: destination,
        }
        self.socket.sendall(encode_message(METHOD_CALL, self.serial, fields, signature, values))
        while True:
            message = self.read_message()
            if message.fields.get(FIELD_REPLY_SERIAL) == self.serial:
                if message.kind == ERROR:
                    text = str(message.body[0]) if message.body else ""
                    raise BusError(message.fields.get(FIELD_ERROR, "error"), text)
                return message.body
            if message.kind == SIGNAL:
                self.signals.append(message)

    def wait_signal(self, member: str, matches: Any, timeout: float = CALL_TIMEOUT) -> Message:
        """The first signal of that name for whose body matches(body) is true; earlier ones count."""
        deadline = monotonic() + timeout
        while True:
            for message in self.signals:
                if message.fields.get(FIELD_MEMBER) == member and matches(message.body):
                    self.signals.remove(message)
                    return message
            left = deadline - monotonic()
            if left <= 0:
                raise OSError(ETIMEDOUT, f"no {member} signal within {timeout:g} s")
            self.socket.settimeout(left)
            try:
                message = self.read_message()
            except TimeoutError:
                continue
            finally:
                self.socket.settimeout(CALL_TIMEOUT)
            if message.kind == SIGNAL:
                self.signals.append(message)
