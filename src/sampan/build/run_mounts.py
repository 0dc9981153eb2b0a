"""RUN --mount: what a mount's words mean, and what is wrong with them. Pure.

    --mount=type=cache,target=/c,uid=$U ── mount_flag() ──► MountFlag ── mount_of(flag, expand) ──► Mount
                                           the stage it comes from      when variables are known

The stage a mount comes from must be known before variables are, for the graph depends on it; so `from` takes none.

Source: the Dockerfile reference, "RUN --mount"; wording of errors as Docker's builder has it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable

import msgspec

from sampan.build.expand import go_quote
from sampan.build.parser import DockerfileError
from sampan.build.suggest import suggestion
from sampan.errors import InvalidArgument
from sampan.units import parse_size

MOUNT_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
MOUNT_KEYS = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid",
    "gid", "src", "dst", "destination", "ro", "rw", "readwrite", "env",
)  # fmt: skip


class MountError(DockerfileError):
    """A --mount that means nothing; told without the words that other parse errors begin with, as BuildKit does."""


class MountFlag(msgspec.Struct, frozen=True, kw_only=True):
    """One --mount as written; `mount_of` gives its meaning when variables are known."""

    text: str
    from_: str = ""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One --mount of RUN."""

    type: str = "bind"
    from_: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = True
    size_bytes: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


def _fields(text: str) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise MountError(f"failed to parse csv mounts: {error}") from None
    return rows[0] if rows else []


def mount_flag(text: str) -> MountFlag:
    """What must be known before variables are: the stage it comes from."""
    from_ = ""
    for field in _fields(text):
        key, equals, value = field.partition("=")
        if equals and key.lower() == "from":
            if "$" in value[:-1]:
                raise DockerfileError(
                    "'from' doesn't support variable expansion, define alias stage instead"
                )
            from_ = value
    flag = MountFlag(text=text, from_=from_)
    if "$" not in text:
        mount_of(flag, lambda value: value)
    return flag


def mount_of(flag: MountFlag, expand: Callable[[str], str]) -> Mount:
    """The mount with its variables expanded. Raises DockerfileError naming the key."""
    made: dict[str, object] = {}
    kind = "bind"
    for field in _fields(flag.text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            _bare_key(made, kind, key, field)
            continue
        value = expand(value)
        if key == "type":
            kind = value.lower()
            if kind not in MOUNT_TYPES:
                hint = suggestion(value, MOUNT_TYPES, exact_case=True)
                raise MountError(f"unsupported mount type {go_quote(value)}{hint}")
            made["type"] = kind
        else:
            _valued_key(made, kind, key, value, field)
    made.setdefault("read_only", kind not in ("cache", "tmpfs"))
    mount = msgspec.convert(made, Mount)
    _check_mount(mount)
    return mount


def _bare_key(made: dict[str, object], kind: str, key: str, field: str) -> None:
    if key in ("readonly", "ro", "readwrite", "rw"):
        made["read_only"] = key in ("readonly", "ro")
    elif key == "required":
        _only_for(kind, key, "secret", "ssh")
        made["required"] = True
    else:
        raise MountError(f"invalid field '{field}' must be a key=value pair")


_MOUNT_FIELDS = {
    "from": "from_", "source": "source", "src": "source", "target": "target", "dst": "target",
    "destination": "target", "id": "id", "env": "env",
}  # fmt: skip


def _valued_key(made: dict[str, object], kind: str, key: str, value: str, field: str) -> None:
    if key in _MOUNT_FIELDS:
        made[_MOUNT_FIELDS[key]] = value
    elif key in ("readonly", "ro"):
        made["read_only"] = _go_bool(key, value)
    elif key in ("readwrite", "rw"):
        made["read_only"] = not _go_bool(key, value)
    elif key == "required":
        _only_for(kind, key, "secret", "ssh")
        made["required"] = _go_bool(key, value)
    elif key == "size":
        _only_for(kind, key, "tmpfs")
        try:
            made["size_bytes"] = parse_size(value)
        except InvalidArgument:
            raise MountError(f"invalid value for {key}: {value}") from None
    elif key == "sharing":
        if value.lower() not in SHARING:
            hint = suggestion(value, SHARING, exact_case=True)
            raise MountError(f"unsupported sharing value {go_quote(value)}{hint}")
        made["sharing"] = value.lower()
    elif key in ("mode", "uid", "gid"):
        made[key] = _number(key, value)
    else:
        hint = suggestion(key, MOUNT_KEYS, exact_case=True)
        raise MountError(f"unexpected key '{key}' in '{field}'{hint}")


def _only_for(kind: str, key: str, *kinds: str) -> None:
    if kind not in kinds:
        raise MountError(f"unexpected key '{key}' for mount type '{kind}'")


def _go_bool(key: str, value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise MountError(f"invalid value for {key}: {value}")


def _number(key: str, value: str) -> int:
    digits = r"[0-7]{1,11}" if key == "mode" else r"[0-9]{1,10}"
    number = int(value, 8 if key == "mode" else 10) if re.fullmatch(digits, value, re.ASCII) else -1
    if not 0 <= number < 1 << 32:
        raise MountError(f"invalid value {value} for {key}")
    return number


def _check_mount(mount: Mount) -> None:
    if mount.type not in ("secret", "ssh", "cache"):
        for key in ("mode", "uid", "gid"):
            if getattr(mount, key) is not None:
                raise MountError(f"{key} not allowed for {go_quote(mount.type)} type mounts")
    if mount.type == "secret":
        if mount.from_:
            raise MountError("secret mount should not have a from")
        if mount.sharing:
            raise MountError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise MountError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise MountError("both source and id can't be set")
    if mount.sharing and mount.type != "cache":
        raise MountError(f"invalid cache sharing set for {mount.type} mount")
