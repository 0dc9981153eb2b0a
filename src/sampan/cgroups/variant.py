"""GVariant text, as far as `org.systemd.property.*` annotations use it: a typed value in one line.

    true        uint64 30000000        'text'        ['a.service', 'b.service']        @t 5

    parse("uint32 7") == ("u", 7)        (D-Bus signature, value)

Without a prefix a whole number is an i, a number with a point a d, quoted text an s.

Source: GLib Reference Manual, "GVariant Text Format"; D-Bus Specification, "Type System".
"""

from __future__ import annotations

from sampan.linux.dbus import INTEGERS, end_of_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEYWORDS = {
    "boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "handle": "h",
    "int64": "x", "uint64": "t", "double": "d", "string": "s", "objectpath": "o", "signature": "g",
}  # fmt: skip
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
BLANK = " \t\n"
MAX_DEPTH = 16


def parse(text: str) -> tuple[str, Any]:
    """(signature, value) of the whole text; ValueError where it is not one value."""
    parser = Parser(text)
    signature, value = parser.value("")
    if parser.peek():
        raise ValueError(f"unexpected text in variant {text!r} at {parser.position}")
    return signature, value


class Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        """The next character that is no blank, '' at the end."""
        while self.position < len(self.text) and self.text[self.position] in BLANK:
            self.position += 1
        return self.text[self.position : self.position + 1]

    def fail(self) -> ValueError:
        return ValueError(f"invalid variant {self.text!r} at {self.position}")

    def expect(self, letter: str) -> None:
        if self.peek() != letter:
            raise self.fail()
        self.position += 1

    def value(self, wanted: str) -> tuple[str, Any]:
        """One value; `wanted` is the signature that it must have, '' for any."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail()
        try:
            return self.one(wanted)
        finally:
            self.depth -= 1

    def one(self, wanted: str) -> tuple[str, Any]:
        letter = self.peek()
        if letter == "@":
            self.position += 1
            start = self.position
            self.position = end_of_type(self.text, start)
            return self.value(self.text[start : self.position])
        if letter in ("'", '"'):
            return self.typed(wanted or "s", "sog", self.quoted(letter))
        if letter == "[":
            return self.array(wanted)
        if letter == "(":
            return self.tuple(wanted)
        word = self.word()
        if word in ("true", "false"):
            return self.typed(wanted or "b", "b", word == "true")
        if word in KEYWORDS:
            return self.value(KEYWORDS[word])
        return self.number(word, wanted)

    def typed(self, signature: str, allowed: str, value: Any) -> tuple[str, Any]:
        if len(signature) != 1 or signature not in allowed:
            raise self.fail()
        return signature, value

    def word(self) -> str:
        start = self.position
        while self.position < len(self.text) and self.text[self.position] not in BLANK + ",])}'\"":
            self.position += 1
        if start == self.position:
            raise self.fail()
        return self.text[start : self.position]

    def number(self, word: str, wanted: str) -> tuple[str, Any]:
        digits = word.removeprefix("-").removeprefix("+")
        if digits.isascii() and digits.isdigit() and len(digits) <= 20 and wanted != "d":
            signature = wanted or "i"
            value = int(word)
            if (
                signature not in INTEGERS
                or not INTEGERS[signature][2] <= value <= INTEGERS[signature][3]
            ):
                raise self.fail()
            return signature, value
        try:
            return self.typed(wanted or "d", "d", float(word.encode("ascii")))
        except ValueError:
            raise self.fail() from None

    def quoted(self, quote: str) -> str:
        self.position += 1
        out = ""
        while self.position < len(self.text):
            letter = self.text[self.position]
            self.position += 1
            if letter == quote:
                return out
            if letter == "\\":
                letter = self.text[self.position : self.position + 1]
                self.position += 1
                letter = ESCAPES.get(letter, letter)
            out += letter
        raise self.fail()

    def array(self, wanted: str) -> tuple[str, list[Any]]:
        if wanted and wanted[0] != "a":
            raise self.fail()
        member = wanted[1:]
        values: list[Any] = []
        self.expect("[")
        while self.peek() != "]":
            if values:
                self.expect(",")
            member, value = self.value(member)
            values.append(value)
        self.position += 1
        if not member:
            raise self.fail()  # an empty array without a type
        return "a" + member, values

    def tuple(self, wanted: str) -> tuple[str, Any]:
        inner = wanted[1:-1] if wanted[:1] == "(" else ""
        if wanted and not inner:
            raise self.fail()
        signature, at = "", 0
        values: list[Any] = []
        self.expect("(")
        while self.peek() != ")":
            if values:
                self.expect(",")
            kind = ""
            if inner:
                end = end_of_type(inner, at)
                kind, at = inner[at:end], end
            kind, value = self.value(kind)
            signature += kind
            values.append(value)
        self.position += 1
        if not values or at < len(inner):
            raise self.fail()
        return f"({signature})", tuple(values)
