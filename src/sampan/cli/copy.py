"""`cp`: files between a container and here, with cp -r's rules about what lands where.

destination exists, is a directory       the source goes into it ('src/.' : its contents)
destination exists, is a file            a file replaces it, a directory is refused
destination is missing                   its parent must exist; the source gets the destination's name
"""

from __future__ import annotations

import os
import posix
import sys

from sampan.cli import human, tarball, wire
from sampan.cli.client import escape
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.client import Client
    from sampan.cli.session import Session

# Go's os.FileMode bits, which the engine's stat header speaks.
GO_DIRECTORY, GO_SYMLINK, GO_DEVICE, GO_IRREGULAR = 1 << 31, 1 << 27, 1 << 26, 1 << 19


def copy(session: Session, options: Options) -> int:
    source, destination = options.args
    if not source or not destination:
        raise Failure(f"{'source' if not source else 'destination'} can not be empty")
    quiet = options.flag("quiet") if options.has("quiet") else not posix.isatty(1)
    from_container, from_path = split(source)
    to_container, to_path = split(destination)
    if from_container and to_container:
        raise Failure("copying between containers is not supported")
    if not from_container and not to_container:
        raise Failure("must specify at least one container source")
    follow = options.flag("follow-link")
    if from_container:
        return _out(session.client, from_container, from_path, to_path, follow, quiet)
    return _into(session.client, from_path, to_container, to_path, options, quiet)


def split(text: str) -> tuple[str, str]:
    """'container:path' taken apart; ('', path) for one of ours."""
    if text.startswith(("/", ".")) or ":" not in text:
        return "", text
    container, _, path = text.partition(":")
    return container, path


def absolute(path: str) -> str:
    """Absolute and clean, but a trailing '/' or '/.' is kept: it says 'directory' and 'its contents'."""
    whole = os.path.normpath(os.path.join(os.getcwd(), path))
    if path.endswith("/.") or path == ".":
        return whole.rstrip("/") + "/."
    return whole.rstrip("/") + "/" if path.endswith("/") else whole


def says_directory(path: str) -> bool:
    return path.endswith(("/", "/.")) or path == "."


def base_of(path: str) -> str:
    """The name that members of an archive of `path` begin with."""
    if path.endswith("/.") or path == ".":
        return "."
    return os.path.basename(path.rstrip("/")) or "/"


def renaming(old: str, new: str) -> Callable[[str], str]:
    """Members below `old` go below `new`."""

    def rename(name: str) -> str:
        plain = name.removeprefix("./") if old != "." else name
        if old == new:
            return name
        if plain.rstrip("/") == old:
            return new
        return f"{new}/{plain[len(old) + 1 :]}" if plain.startswith(f"{old}/") else name

    return rename


def _stat(client: Client, container: str, path: str) -> dict[str, Any]:
    reply = client.call("HEAD", f"/containers/{escape(container)}/archive", query={"path": path})
    reply.read()
    return _decoded(reply.headers)


def _decoded(headers: dict[str, str]) -> dict[str, Any]:
    from binascii import a2b_base64

    facts: dict[str, Any] = wire.loads(a2b_base64(headers["x-docker-container-path-stat"]))
    return facts


# -- out of a container -------------------------------------------------------------------------------------------


def _out(
    client: Client, container: str, source: str, destination: str, follow: bool, quiet: bool
) -> int:
    to_stdout = destination == "-"
    if not to_stdout:
        destination = absolute(destination)
        parent = os.path.dirname(destination.rstrip("/")) or "/"
        if not os.path.isdir(parent):
            raise Failure(f'invalid output path: directory "{parent}" does not exist')
    rebased = ""
    if follow:
        source, rebased = _followed(client, container, source)
    path = f"/containers/{escape(container)}/archive"
    reply = client.call("GET", path, query={"path": source})
    if to_stdout:
        for piece in reply.chunks():
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return 0
    is_directory = bool(_decoded(reply.headers)["mode"] & GO_DIRECTORY)
    counted = Counter(reply.chunks())
    base = rebased or base_of(source)
    archived = base_of(source)
    directory, name = _landing(destination, is_directory, base)
    tarball.unpack(counted, directory, renaming(archived, name))
    if not quiet:
        warn(f"Successfully copied {human.size(counted.total, 3)} to {destination}")
    return 0


def _followed(client: Client, container: str, source: str) -> tuple[str, str]:
    """Where a link leads, and the name that the copy keeps."""
    try:
        facts = _stat(client, container, source)
    except Refused:
        return source, ""
    if not facts["mode"] & GO_SYMLINK:
        return source, ""
    target: str = facts["linkTarget"]
    if not target.startswith("/"):
        target = os.path.normpath(os.path.join(os.path.dirname(source.rstrip("/")), target))
    return target, base_of(source)


def _landing(destination: str, is_directory: bool, base: str) -> tuple[str, str]:
    """(directory to unpack in, name for the source there)."""
    exists = os.path.exists(destination.rstrip("/") or "/")
    if exists and os.path.isdir(destination):
        return destination, base
    parent, name = os.path.split(destination.rstrip("/").removesuffix("/."))
    if exists:
        if is_directory:
            raise Failure("cannot copy directory")
        if says_directory(destination):
            raise Failure("not a directory")
        return parent, name
    if not is_directory and says_directory(destination):
        raise Failure("no such directory")
    return parent, name


class Counter:
    """Counts what passes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.total = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.total += len(piece)
            yield piece


# -- into a container ---------------------------------------------------------------------------------------------


def _into(
    client: Client, source: str, container: str, destination: str, options: Options, quiet: bool
) -> int:
    path, facts = _target(client, container, destination)
    exists, is_directory = facts is not None, bool(facts and facts["mode"] & GO_DIRECTORY)
    if facts and facts["mode"] & (GO_DEVICE | GO_IRREGULAR):
        raise Failure(
            f'destination "{container}:{destination}" must be a directory or a regular file: got a device'
        )
    if source == "-":
        if not is_directory:
            raise Failure(f'destination "{container}:{destination}" must be a directory')
        from sampan.cli.images import pieces

        counted, directory = Counter(pieces(0)), path
    else:
        source = absolute(source)
        directory, name = _remote_landing(source, options, path, exists, is_directory)
        follow = options.flag("follow-link") or source.endswith(("/.", "/"))
        counted = Counter(_packed(source, name, follow))
    client.call(
        "PUT",
        f"/containers/{escape(container)}/archive",
        query={
            "path": directory,
            "noOverwriteDirNonDir": "true",
            "copyUIDGID": "true" if options.flag("archive") else "",
        },
        stream=counted,
        headers={"Content-Type": "application/x-tar"},
    ).read()
    if not quiet:
        warn(f"Successfully copied {human.size(counted.total, 3)} to {container}:{path}")
    return 0


def _packed(source: str, name: str, follow: bool) -> Iterator[bytes]:
    real = os.path.realpath(source) if follow else source.rstrip("/") or "/"
    return tarball.pack(real, name)


def _target(client: Client, container: str, path: str) -> tuple[str, dict[str, Any] | None]:
    """The destination, one link followed; None where it does not exist."""
    try:
        facts = _stat(client, container, path)
        if facts["mode"] & GO_SYMLINK:
            target: str = facts["linkTarget"]
            if not target.startswith("/"):
                target = os.path.normpath(os.path.join(os.path.dirname(path.rstrip("/")), target))
            path = target
            facts = _stat(client, container, path)
        return path, facts
    except Refused:
        return path, None  # if it is the container that is missing, the copy itself will say so


def _remote_landing(
    source: str, options: Options, path: str, exists: bool, is_directory: bool
) -> tuple[str, str]:
    try:
        follow = options.flag("follow-link") or says_directory(source)
        facts = os.stat(source, follow_symlinks=follow)
    except OSError as error:
        raise Failure(f"lstat {source}: {(error.strerror or '').lower()}") from None
    from stat import S_ISDIR

    from_directory = S_ISDIR(facts.st_mode)
    if says_directory(source) and not from_directory:
        raise Failure("not a directory")
    if exists and is_directory:
        return path, base_of(source)
    whole = path if path.startswith("/") else f"/{path}"
    parent, name = os.path.split(whole.rstrip("/").removesuffix("/."))
    if exists and from_directory:
        raise Failure("cannot copy directory")
    if exists and says_directory(path):
        raise Failure("not a directory")
    if not exists and not from_directory and says_directory(path):
        raise Failure("no such directory")
    return parent, name
