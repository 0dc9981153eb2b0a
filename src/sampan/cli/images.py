"""images, history, tag, rmi, load, save, import, commit."""

from __future__ import annotations

import posix
import sys
import time

from sampan.cli import human, names
from sampan.cli.client import escape, filters
from sampan.cli.failures import Failure, Refused
from sampan.cli.govalues import Row
from sampan.cli.inspect import platform
from sampan.cli.ps import ellipsis
from sampan.cli.session import out, warn
from sampan.cli.table import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

AGE = "{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}"
TABLE = f"table {{{{.Repository}}}}\\t{{{{.Tag}}}}\\t{{{{.ID}}}}\\t{AGE}\\t{{{{.Size}}}}"
TABLE_DIGESTS = f"table {{{{.Repository}}}}\\t{{{{.Tag}}}}\\t{{{{.Digest}}}}\\t{{{{.ID}}}}\\t{AGE}\\t{{{{.Size}}}}"
RAW = """repository: {{ .Repository }}
tag: {{.Tag}}
image_id: {{.ID}}
created_at: {{.CreatedAt}}
virtual_size: {{.Size}}
"""
HEADERS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
NONE = "<none>"


# -- images -------------------------------------------------------------------------------------------------------


def ls(session: Session, options: Options) -> int:
    digests, quiet = options.flag("digests"), options.flag("quiet")
    wanted = list(options.list("filter"))
    if options.args:
        wanted.append(("reference", options.args[0]))
    query = {"all": options.flag("all"), "filters": filters(wanted) or None}
    found: list[dict[str, Any]] = session.client.json("/images/json", query=query)
    form = (
        options.text("format") or (session.setting("imagesFormat") if not quiet else "") or "table"
    )
    if form == "table":
        form = "{{.ID}}" if quiet else TABLE_DIGESTS if digests else TABLE
    elif form == "raw":
        raw = RAW.replace("image_id", "digest: {{.Digest}}\nimage_id") if digests else RAW
        form = "image_id: {{.ID}}" if quiet else raw
    elif form.startswith("table") and digests and "{{.Digest}}" not in form:
        form += "\\t{{.Digest}}"
    truncate = not options.flag("no-trunc")
    show_digest = digests or "{{.Digest}}" in form
    lines = [line for image in found for line in image_rows(image, digests, show_digest, truncate)]
    listing(form, lines, HEADERS)
    if options.args and not found and options.name == "images":
        _hint(options.args[0])
    return 0


def _hint(name: str) -> None:
    from sampan.cli.tables.index import GROUPS

    if name in GROUPS["image"]:
        warn(f'\nNo images found matching "{name}": did you mean "sampan image {name}"?')


def image_rows(
    image: dict[str, Any], digests: bool, show_digest: bool, truncate: bool
) -> Iterator[Row]:
    """One row for each name of the image (and digest, where those are asked for)."""
    for repository, tag, digest in _names_of(image, digests, show_digest):
        yield _image_row(image, repository, tag, digest, truncate)


def _names_of(
    image: dict[str, Any], digests: bool, show_digest: bool
) -> Iterator[tuple[str, str, str]]:
    tags = [t for t in image.get("RepoTags") or [] if t != "<none>:<none>"]
    known = [d for d in image.get("RepoDigests") or [] if d != "<none>@<none>"]
    if not tags and not known:
        yield NONE, NONE, NONE
        return
    by_repository: dict[str, list[str]] = {}
    for text in known:
        parsed = _parsed(text)
        if parsed is not None:
            by_repository.setdefault(parsed.familiar, []).append(parsed.digest)
    tagged: dict[str, list[str]] = {}
    for text in tags:
        parsed = _parsed(text)
        if parsed is not None:
            tagged.setdefault(parsed.familiar, []).append(parsed.tag)
    for repository, its_tags in tagged.items():
        found = by_repository.pop(repository, []) if show_digest else []
        by_repository.pop(repository, None)
        for tag in its_tags:
            for digest in found or [NONE]:
                yield repository, tag, digest
    for repository, found in by_repository.items():
        for digest in found if digests else [""]:
            yield repository, NONE, digest


def _parsed(text: str) -> names.Name | None:
    try:
        return names.parse(text)
    except Failure:
        return None


def ago(created: int) -> str:
    return human.age(time.time() - created) + " ago"


def _image_row(
    image: dict[str, Any], repository: str, tag: str, digest: str, truncate: bool
) -> Row:
    from sampan.cli.times import local

    size, shared = image.get("Size", 0), image.get("SharedSize", -1)
    containers = image.get("Containers", -1)
    return Row(
        "*formatter.imageContext",
        {
            "Containers": lambda: "N/A" if containers == -1 else str(containers),
            "CreatedAt": lambda: local(image["Created"]),
            "CreatedSince": lambda: ago(image["Created"]),
            "Digest": lambda: digest,
            "ID": lambda: names.truncated(image["Id"]) if truncate else image["Id"],
            "Repository": lambda: repository,
            "SharedSize": lambda: "N/A" if shared == -1 else human.size(shared),
            "Size": lambda: human.size(size, 3),
            "Tag": lambda: tag,
            "UniqueSize": lambda: "N/A" if -1 in (size, shared) else human.size(size - shared),
            "VirtualSize": lambda: human.size(size),
        },
    )


# -- history ------------------------------------------------------------------------------------------------------

HISTORY_HEADERS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
YEAR_2000 = 946684800


def history(session: Session, options: Options) -> int:
    people, truncate = options.flag("human"), not options.flag("no-trunc")
    query = {"platform": platform(options.text("platform"))}
    path = f"/images/{escape(options.args[0])}/history"
    steps: list[dict[str, Any]] = session.client.json(path, query=query)
    when = "CreatedSince" if people else "CreatedAt"
    form = options.text("format") or "table"
    if form == "table":
        table = f"table {{{{.ID}}}}\\t{{{{.{when}}}}}\\t{{{{.CreatedBy}}}}\\t{{{{.Size}}}}\\t{{{{.Comment}}}}"
        form = "{{.ID}}" if options.flag("quiet") else table
    listing(form, [_history_row(step, people, truncate) for step in steps], HISTORY_HEADERS)
    return 0


def _history_row(step: dict[str, Any], people: bool, truncate: bool) -> Row:
    from sampan.cli.times import rfc3339

    def created_at() -> str:
        return rfc3339(step["Created"]).replace(".000000000", "")

    def created_since() -> str:
        if not people:
            return created_at()
        return ago(step["Created"]) if step["Created"] > YEAR_2000 else "N/A"

    def created_by() -> str:
        text = step.get("CreatedBy", "").replace("\t", " ")
        return ellipsis(text, 45) if truncate else text

    return Row(
        "*image.historyContext",
        {
            "Comment": lambda: step.get("Comment", ""),
            "CreatedAt": created_at,
            "CreatedBy": created_by,
            "CreatedSince": created_since,
            "ID": lambda: names.truncated(step["Id"]) if truncate else step["Id"],
            "Size": lambda: (
                human.size(step.get("Size", 0), 3) if people else str(step.get("Size", 0))
            ),
        },
    )


# -- names and removal --------------------------------------------------------------------------------------------


def tag(session: Session, options: Options) -> int:
    source, target = options.args
    try:
        parsed = names.parse(target)
    except Failure as failure:
        raise Failure(
            f'Error parsing reference: "{target}" is not a valid repository/tag: {failure.message}'
        ) from None
    if parsed.digest:
        raise Failure("refusing to create a tag with a digest reference")
    query = {"repo": parsed.familiar, "tag": parsed.tag or "latest"}
    session.client.call("POST", f"/images/{escape(source)}/tag", query=query).read()
    return 0


def rm(session: Session, options: Options) -> int:
    force = options.flag("force")
    query: dict[str, Any] = {"force": force, "noprune": options.flag("no-prune")}
    chosen = [platform(text) for text in options.list("platform")]
    if chosen:
        from sampan.cli import wire

        query["platforms"] = [wire.dumps(p) for p in chosen]
    wrong: list[Failure] = []
    for name in options.args:
        try:
            gone: list[dict[str, str]] = session.client.delete(
                f"/images/{escape(name)}", query=query
            )
        except Failure as failure:
            wrong.append(failure)
            continue
        for item in gone or []:
            out(
                f"Deleted: {item['Deleted']}"
                if item.get("Deleted")
                else f"Untagged: {item['Untagged']}"
            )
    for problem in wrong:
        warn(problem.message)
    fatal = any(not (isinstance(f, Refused) and f.code == 404) for f in wrong)
    return 1 if wrong and (fatal or not force) else 0


# -- archives -----------------------------------------------------------------------------------------------------


def pieces(descriptor: int) -> Iterator[bytes]:
    while piece := posix.read(descriptor, 1 << 18):
        yield piece


def opened(path: str) -> int:
    """A file for reading, refused with Go's words."""
    try:
        return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}") from None


def load(session: Session, options: Options) -> int:
    from sampan.cli.progress import show

    path = options.text("input")
    if not path and posix.isatty(0):
        raise Failure("requested load from stdin, but stdin is empty")
    descriptor = opened(path) if path else 0
    quiet = options.flag("quiet") or not posix.isatty(1)
    query: dict[str, Any] = {
        "quiet": "1" if quiet else "0",
        "platform": platform(options.text("platform")),
    }
    reply = session.client.call(
        "POST",
        "/images/load",
        query=query,
        stream=pieces(descriptor),
        headers={"Content-Type": "application/x-tar"},
    )
    show(reply.lines())
    return 0


def save(session: Session, options: Options) -> int:
    path = options.text("output")
    if not path and posix.isatty(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    check_output(path, "failed to save image")
    query: dict[str, Any] = {"names": options.args, "platform": platform(options.text("platform"))}
    reply = session.client.call("GET", "/images/get", query=query)
    write_out(reply.chunks(), path, "failed to save image")
    return 0


def check_output(path: str, words: str) -> None:
    """The directory must be there: seen before the engine is asked for the archive."""
    directory = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    try:
        posix.stat(directory)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Failure(f"{words}: invalid output path: stat {directory}: {reason}") from None


def write_out(chunks: Iterator[bytes], path: str, words: str) -> None:
    """To stdout, or to a file that appears when it is whole."""
    if not path:
        for piece in chunks:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    special = _is_special(path)
    target = path if special else f"{path}.sampan-{posix.getpid()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC | (0 if special else posix.O_EXCL)
    try:
        descriptor = posix.open(target, flags, 0o600)
    except OSError as error:
        raise Failure(f"{words}: open {path}: {(error.strerror or '').lower()}") from None
    try:
        with open(descriptor, "wb") as file:
            for piece in chunks:
                file.write(piece)
        if not special:
            posix.rename(target, path)
    except BaseException:
        if not special:
            posix.unlink(target)
        raise


def _is_special(path: str) -> bool:
    """A device or a pipe: it is written to, not replaced."""
    from stat import S_ISDIR, S_ISREG

    try:
        mode = posix.stat(path).st_mode
    except OSError:
        return False
    if S_ISDIR(mode):
        raise Failure(f"failed to save image: open {path}: is a directory")
    return not S_ISREG(mode)


def import_(session: Session, options: Options) -> int:
    from sampan.cli.progress import show

    source = options.args[0]
    reference = options.args[1] if len(options.args) > 1 else ""
    if reference:
        names.parse(reference)
    remote = source.startswith(("http://", "https://"))
    query: dict[str, Any] = {
        "fromSrc": source if remote else "-",
        "repo": reference,
        "message": options.text("message"),
        "changes": options.list("change"),
        "platform": options.text("platform"),
    }
    stream = None
    if not remote:
        stream = pieces(0 if source == "-" else opened(source))
    reply = session.client.call(
        "POST", "/images/create", query=query, stream=stream, headers={"Content-Type": "text/plain"}
    )
    show(reply.lines())
    return 0


def commit(session: Session, options: Options) -> int:
    reference = options.args[1] if len(options.args) > 1 else ""
    repository, tag_ = "", ""
    if reference:
        parsed = names.parse(reference)
        if parsed.digest:
            raise Failure("refusing to create a tag with a digest reference")
        repository, tag_ = parsed.familiar, parsed.tag or "latest"
    pause = options.flag("pause") and not options.flag("no-pause")
    query: dict[str, Any] = {
        "container": options.args[0],
        "repo": repository,
        "tag": tag_,
        "comment": options.text("message"),
        "author": options.text("author"),
        "changes": options.list("change"),
        "pause": "1" if pause else "0",
    }
    out(session.client.post("/commit", query=query, body={})["Id"])
    return 0
