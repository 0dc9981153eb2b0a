"""Images that need no network: `hello`, a program that Python writes, and `host`, this machine's own programs.

They are made when somebody asks for the name and it is not there, and are ordinary images afterwards (list, tag, rmi).

`host` is a layer of empty directories. What fills them is mounted for each container, under its writable layer:

    /usr /opt /etc ... of the host   lower directory, read-only
    secrets of /etc                  hidden by whiteouts: whatever other users may not read
    the container's own directory    upper directory: what it writes goes here
    /root /home /srv /tmp /var ...   empty

An image cannot ask for this by a label or an annotation, for then any image from anywhere could (CVE-2014-6408
and its kin): the configuration of our `host` carries a random word that only this engine's store knows.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from sampan.errors import InvalidArgument
from sampan.images import elf
from sampan.images.assemble import NewLayer, Parts, assemble
from sampan.images.catalog import Catalog, Image
from sampan.images.platform import host_platform
from sampan.images.unpack import unpack
from sampan.spec.image import OCI_LAYER, Descriptor, History, RunConfig
from sampan.spec.reference import DEFAULT_TAG, Reference, digest_of, parse_normalized
from sampan.storage.extract import Whiteouts
from sampan.storage.snapshots import chain_ids
from sampan.storage.stack import default_rules
from sampan.storage.tar import DIRECTORY, FILE, SYMLINK, Entry
from sampan.storage.tar_writer import TarWriter

if TYPE_CHECKING:
    from sampan.spec.runtime import Mount

HELLO, HOST = "hello", "host"
EPOCH = "1970-01-01T00:00:00Z"  # the same bytes make the same id on every machine
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_LABEL = "dev.sampan.host"
_KEY_FILE = "host-image.key"

# Directories of the host that make its programs work. The ones that are links on this host stay links.
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc")
_DATABASES = ("var/lib/dpkg", "var/lib/rpm", "var/lib/pacman", "lib/apk")
_EMPTY = (
    *("dev", "home", "media", "mnt", "proc", "run", "srv", "sys", "var"),
    *("var/cache", "var/lib", "var/local", "var/log", "var/mail", "var/opt", "var/spool"),
)
_PRIVATE_DIRECTORIES = (b"ssl/private", b"ssh", b"sampan", b"docker", b"wireguard", b"krb5kdc")


def offline_hint() -> str:
    """What to say when a registry cannot be reached."""
    return (
        "without a network there are: `sampan run --rm hello`, `sampan run -it host sh`, "
        "`sampan load -i FILE`, `sampan import FILE`"
    )


def is_builtin(text: str) -> bool:
    """Could this name be made here?"""
    return _name_of(text) is not None


def ensure(catalog: Catalog, text: str) -> Image | None:
    """The image of this name, made now if it is one of ours and not there. None for any other name."""
    name = _name_of(text)
    if name is None:
        return None
    with catalog.lock:
        found = catalog.find(text)
        if found is not None:
            return found
        return _make_hello(catalog) if name == HELLO else _make_host(catalog)


def _name_of(text: str) -> str | None:
    try:
        reference = parse_normalized(text)
    except InvalidArgument:
        return None
    if reference.digest or reference.tag not in {"", DEFAULT_TAG}:
        return None
    name = reference.familiar_name
    return name if name in {HELLO, HOST} else None


# --- hello ---------------------------------------------------------------------------------------------


def _make_hello(catalog: Catalog) -> Image | None:
    architecture = host_platform().architecture
    if architecture not in elf.MACHINES:
        return None
    program = elf.program(elf.GREETING, architecture)
    layer = _tar([(Entry(b"hello", FILE, mode=0o755, size=len(program)), program)])
    config = RunConfig(env=(PATH,), cmd=("/hello",), working_dir="/")
    return _add(catalog, HELLO, layer, config, "sampan: a greeting, written by Python")


# --- host ----------------------------------------------------------------------------------------------


def _make_host(catalog: Catalog) -> Image:
    config = RunConfig(
        env=(PATH, "LANG=C.UTF-8"),
        cmd=("/bin/sh",),
        working_dir="/",
        labels={HOST_LABEL: _host_key(catalog)},
    )
    return _add(catalog, HOST, _tar(_skeleton()), config, "sampan: this host's system directories")


def is_host(catalog: Catalog, image: Image) -> bool:
    """Is this the image that we made, not one that claims to be?"""
    claimed = image.labels.get(HOST_LABEL, "")
    return bool(claimed) and secrets.compare_digest(claimed.encode(), _host_key(catalog).encode())


def host_mounts(catalog: Catalog, image: Image, directory: str) -> list[Mount]:
    """What fills a container of `host`: overlays of the host's directories, writes going below `directory`.

    Nothing for every other image. The directories are made here; who removes the container removes them.
    """
    if not is_host(catalog, image):
        return []
    mounts: list[Mount] = []
    for name in (*_SYSTEM, *_DATABASES):
        source = f"/{name}"
        if not _is_real_directory(source) or _contains(source, directory):
            continue
        base = os.path.join(directory, name.replace("/", "-"))
        for part in ("upper", "work"):
            os.makedirs(os.path.join(base, part), mode=0o755, exist_ok=True)
        _copy_owner_and_mode(source, os.path.join(base, "upper"))
        lowers = [source]
        if name == "etc":
            mask = os.path.join(base, "hidden")
            hide_secrets(source, mask)
            lowers.insert(0, mask)
        options = [
            "lowerdir=" + ":".join(_escaped(path) for path in lowers),
            f"upperdir={_escaped(os.path.join(base, 'upper'))}",
            f"workdir={_escaped(os.path.join(base, 'work'))}",
            *("index=off", "metacopy=off", "redirect_dir=nofollow"),
        ]
        if default_rules().whiteouts is Whiteouts.OVERLAY_USER:
            options.append("userxattr")  # in a user namespace trusted.* cannot be written
        mounts.append(
            {"destination": source, "type": "overlay", "source": "overlay", "options": options}
        )
    return mounts


def hide_secrets(source: str, mask: str) -> int:
    """Make a directory of whiteouts, one for each thing below `source` that other users may not read."""
    os.makedirs(mask, mode=0o755, exist_ok=True)
    hidden = 0
    root = os.fsencode(source)
    for folder, directories, files in os.walk(root):
        relative = os.path.relpath(folder, root)
        inside = b"" if relative == b"." else relative + b"/"
        for name in [*directories, *files]:
            path = inside + name
            if not _is_secret(os.path.join(root, path), path):
                continue
            target = os.path.join(os.fsencode(mask), path)
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            if not os.path.lexists(target):
                os.mknod(target, stat.S_IFCHR, 0)  # overlayfs.rst "whiteouts": device 0/0
            hidden += 1
        directories[:] = [
            d for d in directories if not _is_secret(os.path.join(folder, d), inside + d)
        ]
    return hidden


def _is_secret(path: str | bytes, relative: bytes) -> bool:
    if relative in _PRIVATE_DIRECTORIES:
        return True
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return True
    if stat.S_ISLNK(mode):
        return False
    return not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH)


def _skeleton() -> list[tuple[Entry, bytes]]:
    """Directories and links of the host's root, without anything in them."""
    entries = [(Entry(name.encode(), DIRECTORY, mode=0o755), b"") for name in _EMPTY]
    entries.append((Entry(b"root", DIRECTORY, mode=0o700), b""))
    entries += [(Entry(name, DIRECTORY, mode=0o1777), b"") for name in (b"tmp", b"var/tmp")]
    entries.append((Entry(b"var/run", SYMLINK, mode=0o777, linkname=b"/run"), b""))
    for name in _SYSTEM:
        if os.path.islink(f"/{name}"):
            target = os.fsencode(os.readlink(f"/{name}"))
            entries.append((Entry(name.encode(), SYMLINK, mode=0o777, linkname=target), b""))
        elif os.path.isdir(f"/{name}"):
            entries.append((Entry(name.encode(), DIRECTORY, mode=0o755), b""))
    for name in _DATABASES:
        if _is_real_directory(f"/{name}") and name.startswith("var/"):
            entries.append((Entry(name.encode(), DIRECTORY, mode=0o755), b""))
    return sorted(entries, key=lambda pair: pair[0].name)


def _host_key(catalog: Catalog) -> str:
    """The word that marks our own image, made once for a store."""
    path = os.path.join(catalog.blobs.root, _KEY_FILE)
    try:
        with open(path, encoding="ascii") as file:
            key = file.read(64).strip()
        if len(key) == 32:
            return key
    except FileNotFoundError:
        pass
    key = secrets.token_hex(16)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(key)
    return key


def _is_real_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _contains(directory: str, inside: str) -> bool:
    """overlayfs refuses an upper directory below its own lower one."""
    return os.path.realpath(inside).startswith(os.path.realpath(directory) + "/")


def _copy_owner_and_mode(source: str, target: str) -> None:
    info = os.stat(source)
    os.chmod(target, stat.S_IMODE(info.st_mode))
    try:
        os.chown(target, info.st_uid, info.st_gid)
    except OSError:
        pass  # in a user namespace the host's root is nobody that we could name


def _escaped(path: str) -> str:
    for character in "\\:,":
        path = path.replace(character, "\\" + character)
    return path


# --- both ----------------------------------------------------------------------------------------------


def _tar(entries: list[tuple[Entry, bytes]]) -> bytes:
    chunks: list[bytes] = []
    tar = TarWriter(chunks.append)
    for entry, data in entries:
        tar.add(entry, data)
    tar.close()
    return b"".join(chunks)


def _add(catalog: Catalog, name: str, layer: bytes, config: RunConfig, comment: str) -> Image:
    with catalog.holding() as hold:
        hold.blobs(digest_of(layer))
        hold.layers(*chain_ids([digest_of(layer)]))
        blob = catalog.blobs.put(layer)
        descriptor = Descriptor(media_type=OCI_LAYER, digest=blob.digest, size=blob.size)
        unpack(catalog, [descriptor], [blob.digest])
        parts = Parts(
            config=config,
            layers=(NewLayer(descriptor=descriptor, diff_id=blob.digest),),
            history=(History(created=EPOCH, created_by=comment),),
            created=EPOCH,
        )
        reference: Reference = parse_normalized(name).with_default_tag()
        return assemble(catalog, parts, references=(reference,))
