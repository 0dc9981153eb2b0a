"""mount(8) words of a spec's mount, parsed into what the new mount calls take.

    "ro"        attribute of this mount               "rro"        of it and all mounts below it
    "rbind"     copy a subtree                        "rslave"     propagation
    "tmpcopyup" fill a tmpfs from what it covers      "idmap"/"ridmap" owners by the container's (or own) mappings
    "size=64m"  anything unknown is the filesystem's own and passed on in order

Sources: runtime-spec config.md "Linux mount options"; mount_setattr(2).
"""

from __future__ import annotations

from sampan.errors import InvalidArgument
from sampan.linux import constants as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime import Mount

# word -> (attribute, on?). Access-time words replace each other, the others are single bits.
_ATTRIBUTES = {
    "ro": (c.MOUNT_ATTR_RDONLY, True),
    "rw": (c.MOUNT_ATTR_RDONLY, False),
    "nosuid": (c.MOUNT_ATTR_NOSUID, True),
    "suid": (c.MOUNT_ATTR_NOSUID, False),
    "nodev": (c.MOUNT_ATTR_NODEV, True),
    "dev": (c.MOUNT_ATTR_NODEV, False),
    "noexec": (c.MOUNT_ATTR_NOEXEC, True),
    "exec": (c.MOUNT_ATTR_NOEXEC, False),
    "nodiratime": (c.MOUNT_ATTR_NODIRATIME, True),
    "diratime": (c.MOUNT_ATTR_NODIRATIME, False),
    "nosymfollow": (c.MOUNT_ATTR_NOSYMFOLLOW, True),
    "symfollow": (c.MOUNT_ATTR_NOSYMFOLLOW, False),
}
_ACCESS_TIMES = {
    "relatime": c.MOUNT_ATTR_RELATIME,
    "norelatime": c.MOUNT_ATTR_STRICTATIME,
    "noatime": c.MOUNT_ATTR_NOATIME,
    "atime": c.MOUNT_ATTR_RELATIME,
    "strictatime": c.MOUNT_ATTR_STRICTATIME,
    "nostrictatime": c.MOUNT_ATTR_RELATIME,
}
_PROPAGATION = {
    "private": c.MS_PRIVATE,
    "slave": c.MS_SLAVE,
    "shared": c.MS_SHARED,
    "unbindable": c.MS_UNBINDABLE,
}
# Flags of the superblock: fsconfig knows them by these names.
_SUPERBLOCK = frozenset(
    {
        "sync",
        "async",
        "dirsync",
        "mand",
        "nomand",
        "lazytime",
        "nolazytime",
        "iversion",
        "noiversion",
    }
)
_IGNORED = frozenset(
    {"", "defaults", "silent", "loud", "nofail", "auto", "noauto", "user", "nouser", "_netdev"}
)
KNOWN_OPTIONS = (
    *(word for base in (_ATTRIBUTES, _ACCESS_TIMES, _PROPAGATION) for word in base),
    *("r" + word for base in (_ATTRIBUTES, _ACCESS_TIMES, _PROPAGATION) for word in base),
    "async", "bind", "copy-symlink", "defaults", "dest-nofollow", "dirsync", "idmap", "iversion", "lazytime",
    "loud", "mand", "noiversion", "nolazytime", "nomand", "rbind", "remount", "ridmap", "silent",
    "src-nofollow", "sync", "tmpcopyup",
)  # fmt: skip


class MountOptions:
    """One mount's words, sorted by what will be done with them."""

    __slots__ = (
        "bind", "clear", "copy_symlink", "copy_up", "data", "destination_nofollow", "idmap",
        "propagation", "recursive", "recursive_clear", "recursive_idmap", "recursive_set", "remount",
        "set", "source_nofollow", "superblock",
    )  # fmt: skip

    def __init__(self) -> None:
        self.bind = False
        self.recursive = False  # rbind
        self.set = 0
        self.clear = 0
        self.recursive_set = 0
        self.recursive_clear = 0
        self.propagation: list[tuple[int, bool]] = []  # (MS_*, recursive)
        self.superblock: list[str] = []
        self.data: list[str] = []
        self.copy_up = False
        self.copy_symlink = False
        self.idmap = False
        self.recursive_idmap = False
        self.remount = False
        self.source_nofollow = False
        self.destination_nofollow = False

    @property
    def read_only(self) -> bool:
        return bool(self.set & c.MOUNT_ATTR_RDONLY)


def parse_options(mount: Mount) -> MountOptions:
    """Sort a mount's options; a later word beats an earlier one, as with mount(8)."""
    parsed = MountOptions()
    kind = mount.get("type", "")
    parsed.bind = kind == "bind"
    for word in mount.get("options") or ():
        _add(parsed, word)
    if kind == "rbind":
        parsed.bind = parsed.recursive = True
    if parsed.copy_up and kind != "tmpfs":
        raise InvalidArgument(
            f"mount {mount['destination']!r}: tmpcopyup needs type tmpfs, not {kind!r}"
        )
    return parsed


def _add(parsed: MountOptions, word: str) -> None:
    if word in ("bind", "rbind"):
        parsed.bind = True
        parsed.recursive = parsed.recursive or word == "rbind"
    elif word in _ATTRIBUTES:
        bit, on = _ATTRIBUTES[word]
        parsed.set, parsed.clear = _switch(parsed.set, parsed.clear, bit, on)
    elif word in _ACCESS_TIMES:
        parsed.set = parsed.set & ~c.MOUNT_ATTR__ATIME | _ACCESS_TIMES[word]
        parsed.clear |= c.MOUNT_ATTR__ATIME
    elif word in _PROPAGATION:
        parsed.propagation.append((_PROPAGATION[word], False))
    elif word in _SUPERBLOCK:
        parsed.superblock.append(word)
    elif word == "tmpcopyup":
        parsed.copy_up = True
    elif word in ("idmap", "ridmap"):
        parsed.idmap = True
        parsed.recursive_idmap = parsed.recursive_idmap or word == "ridmap"
    elif word == "remount":
        parsed.remount = True
    elif word == "copy-symlink":
        parsed.copy_symlink = True
    elif word == "src-nofollow":
        parsed.source_nofollow = True
    elif word == "dest-nofollow":
        parsed.destination_nofollow = True
    elif word in _IGNORED or word.startswith("x-"):
        return
    elif not _add_recursive(parsed, word):
        parsed.data.append(word)


def _add_recursive(parsed: MountOptions, word: str) -> bool:
    base = word[1:]
    if not word.startswith("r"):
        return False
    if base in _PROPAGATION:
        parsed.propagation.append((_PROPAGATION[base], True))
    elif base in _ATTRIBUTES:
        bit, on = _ATTRIBUTES[base]
        parsed.recursive_set, parsed.recursive_clear = _switch(
            parsed.recursive_set, parsed.recursive_clear, bit, on
        )
    elif base in _ACCESS_TIMES:
        parsed.recursive_set = parsed.recursive_set & ~c.MOUNT_ATTR__ATIME | _ACCESS_TIMES[base]
        parsed.recursive_clear |= c.MOUNT_ATTR__ATIME
    else:
        return False
    return True


def _switch(set_: int, clear: int, bit: int, on: bool) -> tuple[int, int]:
    return (set_ | bit, clear & ~bit) if on else (set_ & ~bit, clear | bit)
