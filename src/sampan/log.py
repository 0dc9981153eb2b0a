"""Log lines of the small processes: one line an event, as text or as JSON, to stderr or appended to a file.

    time="2026-01-02T03:04:05Z" level=error msg="container does not exist"
    {"level":"error","msg":"container does not exist","time":"2026-01-02T03:04:05Z"}

The two shapes are logrus's, which containerd, podman and cri-o read back from an OCI runtime. `logging` costs
20 ms to import; the daemon may use it, launcher, shim, init and sampan-oci use this. No state but the target.
"""

from __future__ import annotations

import posix
from time import gmtime

LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Where lines go and how they look."""

    __slots__ = ("as_json", "fd", "fields", "level")

    def __init__(self, fd: int = 2, *, as_json: bool = False, level: str = "info") -> None:
        self.fd = fd
        self.as_json = as_json
        self.level = LEVELS.index(level)
        self.fields: dict[str, str] = {}  # container id and request id, said with every line

    def write(self, level: str, message: str) -> None:
        """One line; a log that cannot be written must not fail what it reports."""
        if LEVELS.index(level) < self.level:
            return
        line = (json_line if self.as_json else text_line)(level, message, timestamp(), self.fields)
        try:
            posix.write(self.fd, line.encode("utf-8", "replace"))
        except OSError:
            pass

    def debug(self, message: str) -> None:
        self.write("debug", message)

    def info(self, message: str) -> None:
        self.write("info", message)

    def warning(self, message: str) -> None:
        self.write("warning", message)

    def error(self, message: str) -> None:
        self.write("error", message)


def open_log(path: str, *, as_json: bool = False, level: str = "info") -> Log:
    """A log that appends to a file, made readable for all as runc makes it; "" is stderr."""
    if not path:
        return Log(as_json=as_json, level=level)
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC
    return Log(posix.open(path, flags, 0o644), as_json=as_json, level=level)


def timestamp() -> str:
    """Now, RFC 3339, UTC."""
    now = gmtime()
    return (
        f"{now.tm_year:04}-{now.tm_mon:02}-{now.tm_mday:02}"
        f"T{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}Z"
    )


def text_line(level: str, message: str, time: str, fields: dict[str, str]) -> str:
    extra = "".join(f" {name}={quoted(value)}" for name, value in fields.items())
    return f"time={quoted(time)} level={level} msg={quoted(message)}{extra}\n"


def json_line(level: str, message: str, time: str, fields: dict[str, str]) -> str:
    pairs = {**fields, "level": level, "msg": message, "time": time}
    return "{" + ",".join(f"{quoted(name)}:{quoted(text)}" for name, text in pairs.items()) + "}\n"


def quoted(text: str) -> str:
    """A JSON string, which is also a Go one: no line end, quote or control character gets through."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = []
    for letter in text:
        code = ord(letter)
        if letter in '"\\':
            out.append("\\" + letter)
        elif letter == "\n":
            out.append("\\n")
        elif letter == "\t":
            out.append("\\t")
        elif (
            code < 0x20
            or 0x7F <= code < 0xA0
            or 0xD800 <= code < 0xE000
            or code in (0x2028, 0x2029)
        ):
            out.append(f"\\u{code:04x}")
        else:
            out.append(letter)
    return '"' + "".join(out) + '"'
