"""Which mounts a container has: `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's VOLUMEs, resolved. Pure.

Order of precedence for one destination: --mount and -v (a second one is "Duplicate mount point"), then --tmpfs,
then --volumes-from, then the image's VOLUME, which only fills what nobody named.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NoReturn

import msgspec

from sampan import ids
from sampan.engine.records import ContainerRecord, MountRecord
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import ContainerConfig, HostConfig, MountRequest

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_LABELS = ("z", "Z")
_CONSISTENCY = ("consistent", "cached", "delegated", "default")
_FORBIDDEN_VOLUME_TARGETS = ("/proc", "/sys", "/dev")


def collect(
    config: ContainerConfig,
    host: HostConfig,
    *,
    find_container: Callable[[str], ContainerRecord],
) -> tuple[MountRecord, ...]:
    """Every mount, by destination; anonymous volumes have their names already."""
    found: dict[str, MountRecord] = {}
    explicit: set[str] = set()
    inherited: dict[str, MountRecord] = {}
    for text in host.volumes_from or ():
        for mount in _volumes_from(text, find_container):
            inherited[mount.destination] = mount
    for mount in [
        *(parse_bind(text, host.volume_driver) for text in host.binds or ()),
        *(from_request(wanted) for wanted in host.mounts or ()),
    ]:
        if mount.destination in explicit:
            raise InvalidArgument(f"Duplicate mount point: {mount.destination}")
        explicit.add(mount.destination)
        found[mount.destination] = mount
    for destination, options in host.tmpfs.items():
        mount = from_tmpfs(destination, options)
        if mount.destination in explicit:
            if found[mount.destination].type == "tmpfs":
                continue
            raise InvalidArgument(f"Duplicate mount point: {mount.destination}")
        explicit.add(mount.destination)
        found[mount.destination] = mount
    for destination, mount in inherited.items():
        found.setdefault(destination, mount)
    for target in config.volumes or ():
        destination = _clean(target)
        if destination in found or destination == "/":
            if destination == "/":
                raise InvalidArgument("invalid volume specification: '/': invalid mount path: '/'")
            continue
        _refuse_system_target(destination)
        found[destination] = anonymous(destination, host.volume_driver)
    return tuple(found.values())


def anonymous(destination: str, driver: str = "") -> MountRecord:
    return MountRecord(
        type="volume",
        destination=destination,
        name=ids.new_id(),
        driver=driver or "local",
        anonymous=True,
    )


def _refuse_system_target(destination: str) -> None:
    """An image's VOLUME on /proc or below /dev hides the container's own (CVE-2019-16884, CVE-2022-23648)."""
    for system in _FORBIDDEN_VOLUME_TARGETS:
        if destination == system or destination.startswith(system + "/"):
            raise InvalidArgument(
                f"invalid volume specification: '{destination}': volumes cannot be mounted on {system}"
            )


def _clean(path: str) -> str:
    """Lexical cleaning of an absolute container path: what '..' means inside is the kernel's business later."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _destination(text: str, whole: str) -> str:
    if "\0" in whole:
        raise InvalidArgument("invalid volume specification: it contains a NUL byte")
    kind = "bind" if whole.startswith("/") and ":" in whole else "volume"
    where = f"invalid volume specification: '{whole}': invalid mount config for type \"{kind}\""
    if not text.startswith("/"):
        raise InvalidArgument(f"{where}: invalid mount path: '{text}' mount path must be absolute")
    cleaned = _clean(text)
    if cleaned == "/":
        raise InvalidArgument(f"{where}: invalid specification: destination can't be '/'")
    return cleaned


# -- -v --------------------------------------------------------------------------------------------


def parse_bind(text: str, volume_driver: str = "") -> MountRecord:
    """'SRC:DST[:OPTIONS]' or 'DST'. A source with a slash is a host path, otherwise a volume's name."""
    parts = text.split(":")
    if not text or len(parts) > 3 or any(not part for part in parts[:2]):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return anonymous(_destination(parts[0], text), volume_driver)
    if len(parts) == 2 and not parts[1].startswith("/") and _looks_like_mode(parts[1]):
        destination = _destination(parts[0], text)
        mode = _parse_mode(parts[1], text, is_bind=False)
        return msgspec.structs.replace(anonymous(destination, volume_driver), **mode)
    source, destination = parts[0], _destination(parts[1], text)
    mode_text = parts[2] if len(parts) == 3 else ""
    if len(parts) == 3 and not mode_text:
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if source.startswith("/"):
        mode = _parse_mode(mode_text, text, is_bind=True)
        mode.setdefault("propagation", "rprivate")
        return MountRecord(
            type="bind",
            source=_clean(source),
            destination=destination,
            create_source=True,
            **mode,
        )
    _check_volume_name(source)
    mode = _parse_mode(mode_text, text, is_bind=False)
    return MountRecord(
        type="volume",
        name=source,
        destination=destination,
        driver=volume_driver or "local",
        **{**mode, "mode": mode_text or "z"},
    )


def _check_volume_name(name: str) -> None:
    if not ids.is_name(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def _looks_like_mode(text: str) -> bool:
    known = ("rw", "ro", "nocopy", "U", *_LABELS, *PROPAGATIONS, *_CONSISTENCY)
    return all(word in known for word in text.split(","))


def _parse_mode(text: str, whole: str, *, is_bind: bool) -> dict[str, Any]:
    """The options after the second colon; each group at most once."""
    result: dict[str, Any] = {"mode": text}
    if not text:
        return result
    seen: set[str] = set()
    value: bool | str
    for word in text.split(","):
        if word in ("rw", "ro"):
            group, key, value = "access", "writable", word == "rw"
        elif word in _LABELS:
            group, key, value = "label", "", False
        elif word in PROPAGATIONS and is_bind:
            group, key, value = "propagation", "propagation", word
        elif word == "nocopy" and not is_bind:
            group, key, value = "copy", "no_copy", True
        elif word in _CONSISTENCY:
            group, key, value = "consistency", "", False
        elif word == "U":
            group, key, value = "owner", "map_owner", True
        elif word == "bind-nonrecursive" and is_bind:
            group, key, value = "recursion", "non_recursive", True
        else:
            _refuse_mode(word, text, whole, is_bind=is_bind)
        if group in seen:
            raise InvalidArgument(f"invalid mode: {text}")
        seen.add(group)
        if key:
            result[key] = value
    return result


def _refuse_mode(word: str, text: str, whole: str, *, is_bind: bool) -> NoReturn:
    """A word of the other kind of mount is told apart from one that there is not."""
    kind, field = ("bind", "VolumeOptions") if is_bind else ("volume", "BindOptions")
    if word == "nocopy" if is_bind else word in PROPAGATIONS:
        raise InvalidArgument(
            f"invalid volume specification: '{whole}': invalid mount config for type \"{kind}\": "
            f"field {field} must not be specified"
        )
    raise InvalidArgument(f"invalid mode: {text}")


# -- --mount ---------------------------------------------------------------------------------------


def _mount_error(wanted: MountRequest, text: str) -> InvalidArgument:
    return InvalidArgument(f'invalid mount config for type "{wanted.type}": {text}')


def from_request(wanted: MountRequest) -> MountRecord:
    """One entry of HostConfig.Mounts."""
    if wanted.type not in ("bind", "volume", "tmpfs", "image"):
        raise InvalidArgument(f'invalid mount config for type "{wanted.type}": mount type unknown')
    if not wanted.target:
        raise _mount_error(wanted, "field Target must not be empty")
    if "\0" in wanted.target + wanted.source:
        raise _mount_error(wanted, "a path must not contain NUL")
    if not wanted.target.startswith("/"):
        raise _mount_error(
            wanted, f"invalid mount path: '{wanted.target}' mount path must be absolute"
        )
    destination = _clean(wanted.target)
    if destination == "/":
        raise _mount_error(wanted, "invalid specification: destination can't be '/'")
    _refuse_foreign_options(wanted)
    return _BUILDERS[wanted.type](wanted, destination)


def _refuse_foreign_options(wanted: MountRequest) -> None:
    given = {
        "bind": ("BindOptions", wanted.bind_options),
        "volume": ("VolumeOptions", wanted.volume_options),
        "tmpfs": ("TmpfsOptions", wanted.tmpfs_options),
        "image": ("ImageOptions", wanted.image_options),
    }
    for kind, (field, options) in given.items():
        if kind != wanted.type and options is not None:
            raise _mount_error(wanted, f"field {field} must not be specified")


def _bind_request(wanted: MountRequest, destination: str) -> MountRecord:
    options = wanted.bind_options
    if not wanted.source:
        raise _mount_error(wanted, "field Source must not be empty")
    if not wanted.source.startswith("/"):
        raise _mount_error(
            wanted, f"invalid mount path: '{wanted.source}' mount path must be absolute"
        )
    propagation = options.propagation if options else ""
    if propagation and propagation not in PROPAGATIONS:
        raise _mount_error(wanted, f"invalid propagation mode: {propagation}")
    return MountRecord(
        type="bind",
        source=_clean(wanted.source),
        destination=destination,
        writable=not wanted.read_only,
        propagation=propagation or "rprivate",
        non_recursive=bool(options and options.non_recursive),
        read_only_non_recursive=bool(options and options.read_only_non_recursive),
        read_only_force_recursive=bool(options and options.read_only_force_recursive),
        create_source=bool(options and options.create_mountpoint),
        from_mounts=True,
    )


def _subpath(wanted: MountRequest, subpath: str) -> str:
    if subpath and (subpath.startswith("/") or ".." in PurePosixPath(subpath).parts):
        raise _mount_error(wanted, "subpath must be a relative path within the volume")
    return subpath


def _volume_request(wanted: MountRequest, destination: str) -> MountRecord:
    options = wanted.volume_options
    if wanted.source:
        _check_volume_name(wanted.source)
    elif options and options.subpath:
        raise _mount_error(wanted, "must not set Subpath when using anonymous volumes")
    driver = options.driver_config if options else None
    return MountRecord(
        type="volume",
        name=wanted.source or ids.new_id(),
        destination=destination,
        driver=(driver.name if driver else "") or "local",
        mode="z",
        writable=not wanted.read_only,
        no_copy=bool(options and options.no_copy),
        subpath=_subpath(wanted, options.subpath if options else ""),
        anonymous=not wanted.source,
        volume_options=dict(driver.options) if driver else {},
        volume_labels=dict(options.labels) if options else {},
        from_mounts=True,
    )


def _tmpfs_request(wanted: MountRequest, destination: str) -> MountRecord:
    options = wanted.tmpfs_options
    if wanted.source:
        raise _mount_error(wanted, "field Source must not be specified")
    data = ["noexec", "nosuid", "nodev"]
    if options:
        if options.size_bytes < 0:
            raise _mount_error(wanted, f"invalid tmpfs size: {options.size_bytes}")
        if options.size_bytes:
            data.append(f"size={options.size_bytes}")
        if options.mode:
            data.append(f"mode={options.mode:o}")
        data += ["=".join(pair) for pair in options.options or []]
    if wanted.read_only:
        data.append("ro")
    return MountRecord(
        type="tmpfs",
        destination=destination,
        writable=not wanted.read_only,
        options=tuple(data),
        from_mounts=True,
    )


def _image_request(wanted: MountRequest, destination: str) -> MountRecord:
    if not wanted.source:
        raise _mount_error(wanted, "field Source must not be empty")
    options = wanted.image_options
    return MountRecord(
        type="image",
        source=wanted.source,
        destination=destination,
        writable=False,
        subpath=_subpath(wanted, options.subpath if options else ""),
        from_mounts=True,
    )


_BUILDERS: dict[str, Callable[[MountRequest, str], MountRecord]] = {
    "bind": _bind_request,
    "volume": _volume_request,
    "tmpfs": _tmpfs_request,
    "image": _image_request,
}


# -- --tmpfs and --volumes-from --------------------------------------------------------------------

_TMPFS_WORDS = (
    "ro rw suid nosuid dev nodev exec noexec sync async dirsync remount mand nomand atime noatime "
    "diratime nodiratime bind rbind unbindable runbindable private rprivate shared rshared slave rslave "
    "relatime norelatime strictatime nostrictatime defaults"
)
_TMPFS_FLAGS = frozenset(_TMPFS_WORDS.split())
_TMPFS_DATA = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"))


def from_tmpfs(destination: str, options: str) -> MountRecord:
    """'--tmpfs DST:OPTIONS', on top of noexec, nosuid and nodev."""
    if not destination.startswith("/"):
        raise InvalidArgument(f"invalid mount path: '{destination}' mount path must be absolute")
    cleaned = _clean(destination)
    if cleaned == "/":
        raise InvalidArgument("invalid specification: destination can't be '/'")
    words = [word for word in options.split(",") if word]
    for word in words:
        key, equals, _ = word.partition("=")
        if (key not in _TMPFS_DATA) if equals else (word not in _TMPFS_FLAGS):
            raise InvalidArgument(f'invalid tmpfs option "{word}"')
    return MountRecord(
        type="tmpfs",
        destination=cleaned,
        writable="ro" not in words,
        mode=options,
        options=("noexec", "nosuid", "nodev", *words),
    )


def _volumes_from(text: str, find_container: Callable[[str], ContainerRecord]) -> list[MountRecord]:
    """'CONTAINER[:ro|rw|z|Z]': its binds and volumes, not its tmpfs."""
    ref, _, mode = text.partition(":")
    if not text:
        raise InvalidArgument("volumes-from specification cannot be an empty string")
    if not ref:
        raise InvalidArgument(f"invalid volumes-from specification: '{text}'")
    if mode and mode not in ("ro", "rw", *_LABELS, "ro,z", "ro,Z"):
        raise InvalidArgument(f"invalid mode: {mode}")
    read_only = mode.startswith("ro")
    return [
        msgspec.structs.replace(
            mount, writable=mount.writable and not read_only, mode=mode, from_mounts=False
        )
        for mount in find_container(ref).mounts
        if mount.type in ("bind", "volume")
    ]
