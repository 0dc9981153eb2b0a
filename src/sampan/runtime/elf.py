"""A static ELF program of one segment, for the two that this room writes itself: reaper.py and springboard.py.

Source: System V ABI, chapters 4 and 5 (ELF header, program header).
"""

from __future__ import annotations

from _struct import pack

BASE = 0x400000
_HEADERS = 64 + 56


def static_elf(machine: int, body: bytes) -> bytes:
    """An executable (e_machine as given) that starts at the first byte of `body`; nothing of it is writable."""
    size = _HEADERS + len(body)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    entry = BASE + _HEADERS
    header = pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x1000)  # PT_LOAD: read, execute
    return header + segment + body
