"""Build contexts: what a client sent, as a directory of ours, and what its files' content is worth to the cache.

    body (tar, any compression, or one Dockerfile)  ──receive()──►  <root>/builder/contexts/<random>/  ──► Context

Extraction is by descriptor (storage/extract.py); what the ignore file leaves out is deleted. A digest of chosen
files covers names, kinds, permission bits, owners, link targets, xattrs and bytes, but no times: a checkout made
again is the same (BuildKit counts so too).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sampan.build.ignore import Matcher
from sampan.errors import InvalidArgument
from sampan.storage import decompress, layers
from sampan.storage.access import read_small
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.transfer import Selected, real_path
from sampan.storage.tree import FILE_FLAGS, Walker, remove_tree, xattrs_of

if TYPE_CHECKING:
    from sampan.storage.tar import Readable

MAX_DOCKERFILE = 4 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
CONTEXT_RULES = Rules(whiteouts=Whiteouts.PLAIN, owner=(0, 0), devices=False, touch_root=False)


def new_directory(parent: Path) -> Path:
    """An empty directory for a context. It looks like that of a `COPY . /new`; nobody gets past the one above."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = parent / secrets.token_hex(8)
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    return path


class Context:
    """A directory with the files of one build. `close()` deletes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, _DIRECTORY)
        self.lent: set[tuple[int, int]] = (
            set()
        )  # files that became a layer's: they are not written again

    @classmethod
    def new(cls, parent: Path) -> Context:
        """An empty one."""
        return cls(new_directory(parent))

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            parent = os.open(self.path.parent, _DIRECTORY)
            try:
                remove_tree(self.path.name, parent)
            finally:
                os.close(parent)

    def read(self, name: str, *, limit: int = MAX_DOCKERFILE) -> bytes | None:
        """A file of the context; None where there is no regular file of that name inside."""
        return read_small(self.fd, name, limit)

    def receive(self, stream: Readable, dockerfile: str) -> bool:
        """Blocking: take a tar (True), or a single Dockerfile where it is no tar."""
        plain = _Peek(decompress.open_stream(stream))
        head = plain.peek(512)
        if looks_like_tar(head):
            layers.apply(plain, self.fd, rules=CONTEXT_RULES)
            return True
        data = plain.read_all(MAX_DOCKERFILE)
        target = os.open(
            dockerfile_name(dockerfile), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self.fd
        )
        with os.fdopen(target, "wb") as file:
            file.write(data)
        return False

    def leave_out(self, patterns: Sequence[str]) -> None:
        """Delete what the ignore file's patterns leave out."""
        ignored = Matcher(list(patterns))
        with Walker(self.fd, leave=True) as walker:
            for step in walker:
                path = os.fsdecode(step.path)
                if step.leaving:
                    if ignored.ignores(path):
                        _remove_empty(step.directory, step.name)
                elif step.child >= 0 and ignored.ignores_all_below(path):
                    walker.prune()
                    remove_tree(step.name, step.directory)
                elif step.child < 0 and ignored.ignores(path):
                    os.unlink(step.name, dir_fd=step.directory)


def _remove_empty(directory: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise


class _Peek:
    """A stream whose head was looked at."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._head = b""

    def peek(self, size: int) -> bytes:
        while len(self._head) < size and (more := self._stream.read(size - len(self._head))):
            self._head += more
        return self._head

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)

    def read_all(self, limit: int) -> bytes:
        data = b""
        while chunk := self.read(1 << 16):
            data += chunk
            if len(data) > limit:
                raise InvalidArgument(f"the Dockerfile has more than {limit} bytes")
        return data


def dockerfile_name(text: str) -> str:
    """A single Dockerfile is kept under its last component."""
    name = text.rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") else "Dockerfile"


def content_digest(
    root: int,
    selected: list[Selected],
    exclusion: Callable[[int], Callable[[str, bool], bool] | None],
) -> bytes:
    """SHA-256 over every chosen entry and all below it, in order.

    `exclusion`: for an open directory, what of it to pass over.
    """
    total = hashlib.sha256()
    for each in selected:
        fd = real_path(root, each.path)
        try:
            info = os.fstat(fd)
            # A directory's content counts, not its name: COPY puts the content.
            name = b"" if each.is_directory else os.fsencode(each.path.rpartition("/")[2])
            _add(total, name, info, fd)
            if each.is_directory:
                _add_tree(total, fd, exclusion(fd))
        finally:
            os.close(fd)
    return total.digest()


def _add_tree(total: hashlib._Hash, fd: int, exclude: Callable[[str, bool], bool] | None) -> None:
    with Walker(fd) as walker:
        for step in walker:
            path = os.fsdecode(step.path)
            if exclude is not None and exclude(path, step.child >= 0):
                walker.prune()
                continue
            if step.child >= 0:
                _add(total, step.path, step.info, step.child)
            elif stat.S_ISREG(step.info.st_mode):
                file = os.open(step.name, FILE_FLAGS, dir_fd=step.directory)
                try:
                    _add(total, step.path, step.info, file)
                finally:
                    os.close(file)
            else:
                _add(total, step.path, step.info, -1)
                if stat.S_ISLNK(step.info.st_mode):
                    total.update(os.readlink(step.name, dir_fd=step.directory) + b"\0")


def _add(total: hashlib._Hash, name: bytes, info: os.stat_result, fd: int) -> None:
    total.update(b"%d:%b %o %d %d " % (len(name), name, info.st_mode, info.st_uid, info.st_gid))
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        total.update(b"%d " % info.st_rdev)
    if fd < 0:
        return
    for key, value in sorted(xattrs_of(fd).items()):
        total.update(b"%b=%d:%b " % (key, len(value), value))
    if stat.S_ISREG(info.st_mode):
        total.update(b"%d:" % info.st_size)
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            file.seek(0)
            total.update(hashlib.file_digest(file, "sha256").digest())


def looks_like_tar(head: bytes) -> bool:
    """A header block whose checksum fits (a v7 archive has no other mark)."""
    if len(head) < 512:
        return False
    field = head[148:156].replace(b"\0", b" ").strip()
    if not field or any(c not in b"01234567" for c in field):
        return False
    return int(field, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:512])
