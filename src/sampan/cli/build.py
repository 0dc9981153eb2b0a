"""`build`: the context packed and sent, the engine's steps shown. An engine of ours gets it another way, which knows
more (cli/buildrun.py); here is what every engine of Docker's kind understands.

A context is a directory (packed here, .dockerignore honoured), `-` (a Dockerfile or a tar archive on standard input),
or a URL (of a git repository, an archive or a Dockerfile), which the engine fetches itself.
"""

from __future__ import annotations

import os
import posix
import sys
import zlib

from sampan.cli import human, tarball, wire
from sampan.cli.create import pairs
from sampan.cli.failures import Failure
from sampan.cli.ignore import Ignore
from sampan.cli.ignore import read as read_ignore
from sampan.cli.progress import show
from sampan.cli.session import getenv, warn, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

URLS = ("http://", "https://", "git://", "git@", "github.com/")
ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
SENDING = "Sending build context to Docker daemon"  # docker's words: scripts cut this line off
PROGRESS = ("auto", "plain", "tty", "rawjson", "quiet")


class Context:
    """What is sent: the stream (or none, for a URL), the Dockerfile's name in it."""

    __slots__ = ("dockerfile", "remote", "stream")

    def __init__(self, stream: Iterator[bytes] | None, dockerfile: str, remote: str = "") -> None:
        self.stream = stream
        self.dockerfile = dockerfile
        self.remote = remote


def build(session: Session, options: Options) -> int:
    progress = options.text("progress")
    if progress not in PROGRESS:
        raise Failure(f"invalid progress mode {progress}: must be one of {', '.join(PROGRESS)}")
    id_file = options.text("iidfile")
    if id_file and os.path.exists(id_file):
        os.unlink(id_file)
    if _is_ours(session):
        from sampan.cli import buildrun

        return buildrun.run(session, options)
    context = context_of(options)
    stream = context.stream
    if stream is not None and options.flag("compress"):
        stream = compressed(stream)
    quiet = options.flag("quiet") or options.text("progress") in ("quiet", "rawjson")
    if stream is not None and not quiet:
        stream = _announced(stream)
    reply = session.client.call(
        "POST",
        "/build",
        query=_query(session, options, context),
        stream=stream,
        headers={"Content-Type": "application/x-tar", "X-Registry-Config": _credentials(session)},
    )
    return _show(reply.lines(), options, id_file)


def _is_ours(session: Session) -> bool:
    """Whether the engine knows builds of our own kind."""
    reply = session.client.send("GET", "/build/run")
    reply.read()
    return reply.status == 200


def _announced(stream: Iterator[bytes]) -> Iterator[bytes]:
    """Tell how much was sent: as it goes on a terminal, else once."""
    terminal = posix.isatty(1)
    sent, told = 0, 0
    for piece in stream:
        sent += len(piece)
        if terminal and sent - told > 1 << 19:
            told = sent
            write_all(1, f"{SENDING}  {human.size(sent)}\r".encode())
        yield piece
    write_all(1, f"{SENDING}  {human.size(sent)}\r\r\n".encode())


def _show(messages: Iterator[Any], options: Options, id_file: str) -> int:
    made: list[str] = []

    def keep(value: Any) -> None:
        if isinstance(value, dict) and value.get("ID"):
            made.append(str(value["ID"]))

    progress = options.text("progress")
    quiet = options.flag("quiet") or progress == "quiet"
    if progress == "rawjson":
        _raw(messages, keep)
    elif quiet:
        _quiet(messages, keep)
    else:
        show(messages, aux=keep, plain=progress == "plain", codes=True)
    if id_file:
        if not made:
            raise Failure(f"Server did not provide an image ID. Cannot write {id_file}")
        with open(id_file, "w", encoding="ascii") as file:
            file.write(made[-1])
    return 0


def _raw(messages: Iterator[Any], keep: Any) -> None:
    for message in messages:
        write_all(1, (wire.dumps(message) + "\n").encode("utf-8", "surrogateescape"))
        keep(message.get("aux"))
        error = (message.get("errorDetail") or {}).get("message") or message.get("error")
        if error:
            raise Failure(str(error))


def _quiet(messages: Iterator[Any], keep: Any) -> None:
    """Only the ID; after a failure everything that was said."""
    said = ""
    for message in messages:
        keep(message.get("aux"))
        error = (message.get("errorDetail") or {}).get("message") or message.get("error")
        if error:
            warn(said.rstrip("\n"))
            raise Failure(str(error))
        said += message.get("stream") or ""
    write_all(1, said.encode("utf-8", "surrogateescape"))


# -- the context --------------------------------------------------------------------------------------------------


def context_of(options: Options) -> Context:
    where, dockerfile = options.args[0], options.text("file")
    if dockerfile == "-" and where == "-":
        raise Failure("invalid argument: can't use stdin for both build context and dockerfile")
    if where == "-":
        return _from_stdin(dockerfile)
    if os.path.isdir(where):
        return _from_directory(where, dockerfile)
    if os.path.exists(where):
        raise Failure(
            f"unable to prepare context: context must be a directory: {os.path.abspath(where)}"
        )
    if where.startswith(URLS):
        return Context(None, dockerfile, where)
    raise Failure(f'unable to prepare context: path "{where}" not found')


def _from_stdin(dockerfile: str) -> Context:
    found = from_stdin(dockerfile)
    if isinstance(found, bytes):
        return Context(
            iter([tarball.single("Dockerfile", found, 0o600), b"\0" * 1024]), "Dockerfile"
        )
    return Context(found, dockerfile or "Dockerfile")


def from_stdin(dockerfile: str) -> bytes | Iterator[bytes]:
    """A Dockerfile, or the pieces of an archive."""
    first = b""
    while len(first) < 512 and (piece := posix.read(0, 1 << 18)):
        first += piece
    if first.startswith(ARCHIVES) or first[257:262] == b"ustar" or _is_old_tar(first):
        return _rest(first)
    if dockerfile:
        raise Failure("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
    text = b"".join(_rest(first))
    if not text.strip():
        raise Failure("unable to prepare context: the Dockerfile (Dockerfile) cannot be empty")
    return text


def _is_old_tar(first: bytes) -> bool:
    """A header without the ustar mark: its checksum tells."""
    if len(first) < 512:
        return False
    try:
        tarball.parsed(first[:512])
    except Failure:
        return False
    return True


def _rest(first: bytes) -> Iterator[bytes]:
    yield first
    while piece := posix.read(0, 1 << 18):
        yield piece


def _from_directory(where: str, dockerfile: str) -> Context:
    root = os.path.realpath(where)
    if dockerfile == "-":
        content = sys.stdin.buffer.read()
        return _with_dockerfile(root, content, read_ignore(f"{root}/.dockerignore"))
    path = dockerfile or os.path.join(root, "Dockerfile")
    if (
        not dockerfile
        and not os.path.exists(path)
        and os.path.exists(os.path.join(root, "dockerfile"))
    ):
        path = os.path.join(root, "dockerfile")
    if not os.path.exists(path):
        alternative = os.path.join(root, dockerfile)
        if not dockerfile or not os.path.exists(alternative):
            lead = "unable to prepare context: unable to evaluate symlinks in Dockerfile path"
            shown = os.path.abspath(os.path.join(root, path))
            raise Failure(f"{lead}: lstat {shown}: no such file or directory")
        path = alternative
    real = os.path.realpath(path)
    own = f"{real}.dockerignore"
    patterns = read_ignore(own if os.path.exists(own) else f"{root}/.dockerignore")
    if not real.startswith(root.rstrip("/") + "/"):
        with open(real, "rb") as file:
            return _with_dockerfile(root, file.read(), patterns)
    name = os.path.relpath(real, root)
    patterns += [f"!{kept}" for kept in (".dockerignore", name) if Ignore(patterns).matches(kept)]
    return Context(_packed(root, patterns), name)


def _with_dockerfile(root: str, content: bytes, patterns: list[str]) -> Context:
    """A Dockerfile from elsewhere travels under a name that the context cannot have."""
    from os import urandom

    name = f".dockerfile.{urandom(10).hex()}"

    def stream() -> Iterator[bytes]:
        yield tarball.single(name, content, 0o600)
        yield tarball.single(".dockerignore", "\n".join([*patterns, name, ""]).encode(), 0o600)
        yield from _packed(root, [*patterns, ".dockerignore"])

    return Context(stream(), name)


def _packed(root: str, patterns: list[str]) -> Iterator[bytes]:
    """The directory's members, owned by root as docker sends them."""
    ignore = Ignore(patterns)
    links: dict[tuple[int, int], str] = {}
    for child in sorted(os.listdir(root)):
        full = f"{root}/{child}"
        directory = os.path.isdir(full) and not os.path.islink(full)
        if not ignore.skip(child, directory):
            yield from tarball.members(full, child, ignore.skip, links, owner=(0, 0))
    yield b"\0" * 1024


def compressed(stream: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    for piece in stream:
        yield packer.compress(piece)
    yield packer.flush()


# -- the request --------------------------------------------------------------------------------------------------


def _query(session: Session, options: Options, context: Context) -> dict[str, Any]:
    def number(name: str) -> str:
        value = options.number(name)
        return str(value) if value else ""

    limits = {i["Name"]: i for i in options.list("ulimit")}
    query: dict[str, Any] = {
        "dockerfile": context.dockerfile,
        "remote": context.remote,
        "t": options.list("tag"),
        "q": options.flag("quiet") or options.text("progress") == "quiet",
        "nocache": options.flag("no-cache"),
        "nocachefilter": ",".join(options.list("no-cache-filter")),
        "rm": "1" if options.flag("rm") else "0",
        "forcerm": options.flag("force-rm"),
        "pull": "1" if options.flag("pull") else "",
        "memory": number("memory"),
        "memswap": number("memory-swap"),
        "cpushares": number("cpu-shares"),
        "cpuquota": number("cpu-quota"),
        "cpuperiod": number("cpu-period"),
        "cpusetcpus": options.text("cpuset-cpus"),
        "cpusetmems": options.text("cpuset-mems"),
        "cgroupparent": options.text("cgroup-parent"),
        "shmsize": number("shm-size"),
        "networkmode": options.text("network"),
        "extrahosts": options.list("add-host"),
        "platform": ",".join(options.list("platform")) or getenv("DOCKER_DEFAULT_PLATFORM"),
        "target": options.text("target"),
        "squash": options.flag("squash"),
        "securityopt": wire.dumps(options.list("security-opt"))
        if options.list("security-opt")
        else "",
        "buildargs": wire.dumps(build_args(session, options)),
        "labels": wire.dumps(pairs(options.list("label"))),
        "cachefrom": wire.dumps(options.list("cache-from")),
        "ulimits": wire.dumps([limits[name] for name in sorted(limits)]) if limits else "",
        "version": "1",
    }
    return query


def build_args(session: Session, options: Options) -> dict[str, str | None]:
    from sampan.cli.create import proxy_environment

    made: dict[str, str | None] = dict(
        text.partition("=")[::2]
        for text in proxy_environment(session.config, session.host, options.list("build-arg"))
    )
    for text in options.list("build-arg"):
        name, equals, value = text.partition("=")
        made[name] = value if equals else os.environ.get(name)
    return made


def _credentials(session: Session) -> str:
    """Every registry's password that is kept, for the base images."""
    from sampan.cli.registry import credentials, encoded

    auths = session.config.get("auths")
    known: dict[str, Any] = {}
    for key in auths if isinstance(auths, dict) else {}:
        found = credentials(session, "docker.io" if "index.docker.io" in key else key)
        if found:
            known[key] = found
    return encoded(known)
