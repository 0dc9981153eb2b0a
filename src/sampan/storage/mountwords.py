"""The `o=` option of a local volume: mount(8) words to mount(2) flags, the rest is the file system's own data. Pure,
but for the name lookup that nfs needs.

Source: mount(8) "FILESYSTEM-INDEPENDENT MOUNT OPTIONS", mount(2), nfs(5) (`addr`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sampan.errors import InvalidArgument
from sampan.linux import constants as c

if TYPE_CHECKING:
    from collections.abc import Mapping

# word -> (set?, flag)
_FLAGS = {
    "async": (False, c.MS_SYNCHRONOUS),
    "atime": (False, c.MS_NOATIME),
    "bind": (True, c.MS_BIND),
    "defaults": (True, 0),
    "dev": (False, c.MS_NODEV),
    "diratime": (False, c.MS_NODIRATIME),
    "dirsync": (True, c.MS_DIRSYNC),
    "exec": (False, c.MS_NOEXEC),
    "noatime": (True, c.MS_NOATIME),
    "nodev": (True, c.MS_NODEV),
    "nodiratime": (True, c.MS_NODIRATIME),
    "noexec": (True, c.MS_NOEXEC),
    "norelatime": (False, c.MS_RELATIME),
    "nostrictatime": (False, c.MS_STRICTATIME),
    "nosuid": (True, c.MS_NOSUID),
    "rbind": (True, c.MS_BIND | c.MS_REC),
    "relatime": (True, c.MS_RELATIME),
    "ro": (True, c.MS_RDONLY),
    "rw": (False, c.MS_RDONLY),
    "strictatime": (True, c.MS_STRICTATIME),
    "suid": (False, c.MS_NOSUID),
    "sync": (True, c.MS_SYNCHRONOUS),
}


def split_options(text: str) -> tuple[int, str]:
    """(mount flags, data) of a comma-separated list."""
    flags = 0
    data: list[str] = []
    for word in text.split(","):
        if word in _FLAGS:
            wanted, flag = _FLAGS[word]
            flags = flags | flag if wanted else flags & ~flag
        elif word:
            if "\0" in word or "\n" in word:
                raise InvalidArgument(f"invalid mount option {word!r}")
            data.append(word)
    return flags, ",".join(data)


def device_and_flags(options: Mapping[str, str]) -> tuple[str, str, int, str]:
    """(type, device, flags, data) for mount(2)."""
    kind, device = options.get("type", ""), options.get("device", "")
    flags, data = split_options(options.get("o", ""))
    if kind.startswith("nfs") or kind == "cifs":
        data = ",".join(_with_address(word) for word in data.split(","))
    if kind == "cifs" and device.startswith("//"):
        host, slash, share = device[2:].partition("/")
        device = f"//{_address_of(host)}{slash}{share}"
    return kind, device, flags, data


def _with_address(word: str) -> str:
    """The kernel takes only addresses; mount.nfs(8), which nobody runs here, would look names up."""
    key, _, value = word.partition("=")
    return f"addr={_address_of(value)}" if key == "addr" and value else word


def _address_of(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = "no such host" if isinstance(error, socket.gaierror) else str(error)
        raise InvalidArgument(
            f"error resolving passed in network volume address: lookup {host}: {reason}"
        ) from None
    return str(found[0][4][0])
