"""`build` on an engine of ours: everything that docker's build and buildx know, in one request.

    flags ──order()──► Order ─┐
    directories, packed ──────┴──► POST /build/run ──► lines: progress, outputs for this disk, facts, a failure

What the engine's answer looks like stands in build/own.py of the engine.
"""

from __future__ import annotations

import base64
import os
import posix
import sys

from sampan.cli import build, buildlog, tarball, wire
from sampan.cli.create import pairs
from sampan.cli.failures import Failure
from sampan.cli.ignore import Ignore
from sampan.cli.ignore import read as read_ignore
from sampan.cli.session import getenv, warn, write_all
from sampan.cli.values import csv_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

MOST_SECRET = 500 * 1024
CALLS = ("build", "check", "lint", "outline", "targets")
TO_DISK = ("local", "tar", "docker", "oci")


def run(session: Session, options: Options) -> int:
    """The whole command."""
    call = _call(options)
    exports = [] if call != "build" else _exports(options)
    order = _order(session, options, call, exports)
    files = _Files(options, order["attributes"])
    for number, cache in enumerate(order["cache_from"]):
        if cache["type"] == "local" and os.path.isdir(cache["attrs"].get("src", "")):
            files.caches[number] = os.path.realpath(cache["attrs"]["src"])
    if call == "build":
        files.paths = _paths(session, order, files)
    log = _log(options, call)
    outputs = _Outputs(exports, order["cache_to"])
    order["flat"] = files.archive is not None
    reply = session.client.call(
        "POST",
        "/build/run",
        stream=_body(order, files),
        headers={"Content-Type": "application/octet-stream"},
    )
    facts: dict[str, str] = {}
    answer: dict[str, str] = {}
    failure: dict[str, Any] = {}
    for line in reply.lines():
        if "output" in line:
            outputs.add(line["output"], base64.b64decode(line["data"]))
        elif "result" in line:
            facts = line["result"]
        elif "answer" in line:
            answer = line["answer"]
        elif "errorDetail" in line:
            failure = line
        else:
            log.take(line)
    log.end()
    outputs.close(complete=not failure)
    if failure:
        return _failed(session, options, failure, log)
    if call != "build":
        return _answered(call, answer, options)
    return _done(options, facts, exports)


def _paths(session: Session, order: dict[str, Any], files: _Files) -> list[str] | None:
    """What of the context the engine may read; None for all of it."""
    if not files.context or files.archive is not None:
        return None
    attributes = {**order["attributes"], "requestid": "frontend.paths"}
    question = {"attributes": attributes, "auths": {}}
    body = _body(question, files, only_dockerfile=True)
    reply = session.client.call("POST", "/build/run", stream=body)
    found: list[str] | None = None
    for line in reply.lines():
        if "answer" in line:
            found = wire.loads(line["answer"]["result.json"])
    return found


# -- what was asked -----------------------------------------------------------------------------------------------


def _call(options: Options) -> str:
    call = "check" if options.flag("check") else options.text("call").partition(",")[0] or "build"
    if call not in CALLS:
        raise Failure(f"invalid call {call}: must be one of {', '.join(CALLS)}")
    return call


def _order(
    session: Session, options: Options, call: str, exports: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "attributes": _attributes(session, options, call),
        "exports": exports,
        "cache_from": [_cache(text, "registry", "ref") for text in options.list("cache-from")],
        "cache_to": [_cache(text, "registry", "ref") for text in options.list("cache-to")],
        "allow": [
            *options.list("allow"),
            *(["network.host"] if options.text("network") == "host" else []),
        ],
        "secrets": _secrets(options.list("secret")),
        "ssh": _agents(options.list("ssh")),
        "auths": _auths(session),
        "keep_failed": options.text("on-error") == "shell",
    }


def _attributes(session: Session, options: Options, call: str) -> dict[str, str]:
    """As BuildKit's frontend has them."""
    made: dict[str, str] = {}
    for name, value in build.build_args(session, options).items():
        if value is not None:
            made[f"build-arg:{name}"] = value
    for name, value in pairs(options.list("label")).items():
        made[f"label:{name}"] = value
    given = {
        "target": options.text("target"), "platform": ",".join(_platforms(options)),
        "no-cache": ",".join(options.list("no-cache-filter")), "cgroup-parent": options.text("cgroup-parent"),
        "add-hosts": ",".join(_host(text) for text in options.list("add-host")),
        "ulimit": ",".join(f"{u['Name']}={u['Soft']}:{u['Hard']}" for u in options.list("ulimit")),
        "image-resolve-mode": "pull" if options.flag("pull") else "",
        "cpusetcpus": options.text("cpuset-cpus"), "cpusetmems": options.text("cpuset-mems"),
    }  # fmt: skip
    numbers = {
        "shm-size": "shm-size", "memory": "memory", "memswap": "memory-swap", "cpushares": "cpu-shares",
        "cpuperiod": "cpu-period", "cpuquota": "cpu-quota",
    }  # fmt: skip
    given |= {
        key: str(options.number(flag)) for key, flag in numbers.items() if options.number(flag)
    }
    made |= {key: value for key, value in given.items() if value}
    if options.flag("no-cache"):
        made["no-cache"] = ""
    network = options.text("network")
    if network not in ("", "default"):
        made["force-network-mode"] = network
    if call != "build":
        made["requestid"] = "frontend." + ("lint" if call == "check" else call)
    return made


def _platforms(options: Options) -> list[str]:
    given = [name for text in options.list("platform") for name in text.split(",") if name]
    default = getenv("DOCKER_DEFAULT_PLATFORM")
    return given or ([default] if default else [])


def _host(text: str) -> str:
    name, _, address = text.partition(":")
    return f"{name}={address}"


def _keys(text: str) -> dict[str, str]:
    """`a=b,c=d`"""
    made = {}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise Failure(f"invalid value {field}")
        made[key.strip().lower()] = value
    return made


def _cache(text: str, kind: str, key: str) -> dict[str, Any]:
    if "=" not in text:
        return {
            "type": "inline" if text == "inline" else kind,
            "attrs": {} if text == "inline" else {key: text},
        }
    attrs = _keys(text)
    return {"type": attrs.pop("type", kind), "attrs": attrs}


def _secrets(given: list[str]) -> dict[str, str]:
    """`id=NAME[,src=FILE|,env=VARIABLE]`: a file or a variable, the one that exists without a word."""
    made = {}
    for text in given:
        fields = _keys(text)
        kind, ident = fields.pop("type", ""), fields.pop("id", "")
        path = fields.pop("src", "") or fields.pop("source", "")
        variable = fields.pop("env", "")
        if fields:
            raise Failure(f"unexpected key '{next(iter(fields))}' in '{text}'")
        if not ident:
            raise Failure(f'secret missing "id": {text}')
        if kind == "env" and path:
            variable, path = path, ""
        if not path and not variable:
            variable, path = (ident, "") if ident in os.environ and kind != "file" else ("", ident)
        made[ident] = base64.b64encode(_secret(ident, path, variable)).decode()
    return made


def _secret(ident: str, path: str, variable: str) -> bytes:
    if variable:
        return os.environ.get(variable, "").encode("utf-8", "surrogateescape")
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(MOST_SECRET + 1)
    except OSError as error:
        raise Failure(
            f"failed to stat {path}: stat {path}: {(error.strerror or '').lower()}"
        ) from None
    if len(data) > MOST_SECRET:
        raise Failure(f"secret {ident} too big. max size {MOST_SECRET // 1024}KB")
    return data


def _agents(given: list[str]) -> dict[str, str]:
    """`default`, `NAME=/path/of/socket`."""
    made = {}
    for text in given:
        name, _, path = text.partition("=")
        path = path or getenv("SSH_AUTH_SOCK")
        if not path:
            raise Failure("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
        made[name] = os.path.abspath(path)
    return made


def _auths(session: Session) -> dict[str, dict[str, str]]:
    from sampan.cli.registry import credentials

    known = session.config.get("auths")
    made = {}
    for key in known if isinstance(known, dict) else {}:
        found = credentials(session, "docker.io" if "index.docker.io" in key else key)
        if found:
            made[key] = {name.lower(): value for name, value in found.items()}
    return made


# -- outputs ------------------------------------------------------------------------------------------------------


def _exports(options: Options) -> list[dict[str, Any]]:
    """What becomes of the result; an image in the store where nothing else is said."""
    names = ",".join(options.list("tag"))
    made: list[dict[str, Any]] = []
    for text in options.list("output"):
        made.append(_export(text, names))
    if options.flag("push"):
        made.append({"type": "image", "attrs": {"name": names, "push": "true"}})
    if not made or (options.flag("load") and not any(e["type"] == "image" for e in made)):
        made.append({"type": "image", "attrs": {"name": names}})
    for number, export in enumerate(made):
        export["id"] = str(number)
    return made


def _export(text: str, names: str) -> dict[str, Any]:
    if "=" not in text:
        kind = "tar" if text == "-" else "local"
        return {"type": kind, "attrs": {}, "dest": text}
    attrs = _keys(text)
    kind, dest = attrs.pop("type", ""), attrs.pop("dest", "")
    if not kind:
        raise Failure(f"type is required for output: {text}")
    if kind == "registry":
        kind, attrs = "image", {"push": "true", **attrs}
    if kind in ("image", "docker", "oci"):
        attrs.setdefault("name", names)
    if kind == "docker" and not dest:
        return {"type": "image", "attrs": attrs}
    if kind in TO_DISK:
        if kind == "local" and dest in ("", "-"):
            raise Failure(
                "dest is required for local exporter"
                if not dest
                else "dest must be a directory for local exporter"
            )
        if kind != "local" and dest in ("", "-") and posix.isatty(1):
            raise Failure(
                f"dest file is required for {kind} exporter. refusing to write to console"
            )
        return {"type": kind, "attrs": attrs, "dest": dest or "-"}
    return {"type": kind, "attrs": attrs}


class _Outputs:
    """Where the pieces of exports go: a file, standard output, or a directory by way of a tar."""

    def __init__(self, exports: list[dict[str, Any]], caches: list[dict[str, Any]]) -> None:
        self._exports = list(exports)
        for cache in caches:  # a local cache is written as a directory's export is
            if cache["type"] == "local":
                cache["attrs"]["id"] = str(len(self._exports))
                self._exports.append({"type": "local", "attrs": cache["attrs"]})
        self._files: dict[int, Any] = {}
        for export in exports:
            export_dest = export.pop("dest", None)
            if export_dest is not None:
                export["attrs"]["dest"] = export_dest

    def add(self, number: int, data: bytes) -> None:
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = self._open(number)
        if file == 1:
            write_all(1, data)
        else:
            file.write(data)

    def _open(self, number: int) -> Any:
        from tempfile import TemporaryFile

        export = self._exports[number]
        dest = export["attrs"].get("dest", "-")
        if export["type"] == "local":
            return TemporaryFile()
        if dest == "-":
            return 1
        return open(dest, "wb")

    def close(self, *, complete: bool) -> None:
        for number, file in self._files.items():
            if file == 1:
                continue
            export = self._exports[number]
            if complete and export["type"] == "local":
                file.seek(0)
                dest = export["attrs"]["dest"]
                os.makedirs(dest, exist_ok=True)
                tarball.unpack(_pieces(file), dest, str)
            file.close()


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(1 << 18):
        yield piece


# -- the body -----------------------------------------------------------------------------------------------------


class _Files:
    """The directories that go along."""

    def __init__(self, options: Options, attributes: dict[str, str]) -> None:
        self.context = ""  # a directory of this disk, '' for none
        self.archive: Iterator[bytes] | None = None  # a tar from standard input
        self.patterns: list[str] = []
        self.dockerfile = b""
        self.name = "Dockerfile"
        self.named: dict[str, str] = {}
        self.caches: dict[int, str] = {}  # directories of --cache-from, by its number
        self.paths: list[str] | None = None  # only these of the context
        self._find(options, attributes)
        for text in options.list("build-context"):
            name, equals, value = text.partition("=")
            if not equals or not name or not value:
                raise Failure(f"invalid context value: {text}, expected key=value")
            if "://" in value or value.startswith("git@"):
                attributes[f"context:{name}"] = value
            elif os.path.isdir(value):
                attributes[f"context:{name}"] = f"local:{name}"
                self.named[name] = value
            else:
                raise Failure(
                    f"failed to get build context path {{{value} <nil>}}: stat {value}: no such file or directory"
                )

    def _find(self, options: Options, attributes: dict[str, str]) -> None:
        where, dockerfile = options.args[0], options.text("file")
        if where == "-":
            self._from_stdin(dockerfile, attributes)
        elif os.path.isdir(where):
            self._from_directory(os.path.realpath(where), dockerfile)
            attributes["filename"] = self.name
        elif where.startswith(build.URLS):
            attributes["context"] = f"https://{where}" if where.startswith("github.com/") else where
            if dockerfile:
                attributes["filename"] = dockerfile
        elif os.path.exists(where):
            raise Failure(
                f"unable to prepare context: context must be a directory: {os.path.abspath(where)}"
            )
        else:
            raise Failure(f'unable to prepare context: path "{where}" not found')

    def _from_directory(self, root: str, dockerfile: str) -> None:
        self.context = root
        if dockerfile == "-":
            self.dockerfile = sys.stdin.buffer.read()
            self.patterns = read_ignore(f"{root}/.dockerignore")
            return
        path = dockerfile if dockerfile else os.path.join(root, "Dockerfile")
        if not dockerfile and not os.path.exists(path) and os.path.exists(f"{root}/dockerfile"):
            path = f"{root}/dockerfile"
        try:
            with open(path, "rb") as file:
                self.dockerfile = file.read()
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise Failure(
                f"failed to read dockerfile: open {os.path.basename(path)}: {reason}"
            ) from None
        self.name = os.path.basename(path)
        own = f"{path}.dockerignore"
        self.patterns = read_ignore(own if os.path.exists(own) else f"{root}/.dockerignore")

    def _from_stdin(self, dockerfile: str, attributes: dict[str, str]) -> None:
        found = build.from_stdin(dockerfile)
        if isinstance(found, bytes):
            self.dockerfile = found
            return
        self.archive = found
        attributes["filename"] = dockerfile or "Dockerfile"

    def tar(self, *, only_dockerfile: bool = False) -> Iterator[bytes]:
        """All of it."""
        yield tarball.header(_directory("dockerfile"))
        if self.archive is None:
            yield tarball.single(f"dockerfile/{self.name}", self.dockerfile, 0o600)
            # What stands in front of the engine's eyes has been left out here already.
            yield tarball.single(
                f"dockerfile/{self.name}.dockerignore",
                "\n".join([*self.patterns, ""]).encode(),
                0o600,
            )
        if only_dockerfile:
            yield b"\0" * 1024
            return
        if self.context:
            yield from _members(self.context, "context", self.patterns, self.paths)
        for number, path in self.caches.items():
            yield from _members(path, f"named/cache-from-{number}", [])
        for name, path in self.named.items():
            yield from _members(
                os.path.realpath(path), f"named/{name}", read_ignore(f"{path}/.dockerignore")
            )
        yield b"\0" * 1024


def _members(
    root: str, prefix: str, patterns: list[str], paths: list[str] | None = None
) -> Iterator[bytes]:
    """What a directory holds, without what the ignore file leaves out and, where `paths` are given, only those."""
    ignore = Ignore(patterns)
    chosen = _Chosen(root, paths)
    links: dict[tuple[int, int], str] = {}

    def skip(path: str, directory: bool) -> bool:
        inner = path[len(prefix) + 1 :]
        return chosen.skip(inner) or ignore.skip(inner, directory)

    is_empty = True
    for child in sorted(os.listdir(root)):
        full = f"{root}/{child}"
        if not skip(f"{prefix}/{child}", os.path.isdir(full) and not os.path.islink(full)):
            is_empty = False
            yield from tarball.members(full, f"{prefix}/{child}", skip, links, owner=(0, 0))
    if is_empty:
        yield tarball.header(_directory(prefix))


def _directory(name: str) -> tarball.Entry:
    return tarball.Entry(f"{name}/", tarball.DIRECTORY, mode=0o755)


class _Chosen:
    """Paths of a context that are read, up to their first wildcard. A link on the way, and everything is."""

    def __init__(self, root: str, paths: list[str] | None) -> None:
        self._fixed: list[str] | None = None
        if paths is None:
            return
        fixed = [_before_wildcards(path) for path in paths]
        if all(
            os.path.realpath(f"{root}/{path}") == os.path.normpath(f"{root}/{path}")
            for path in fixed
        ):
            self._fixed = fixed

    def skip(self, path: str) -> bool:
        """Whether the path is neither read, nor below what is, nor on the way to it."""
        if self._fixed is None:
            return False
        return not any(
            not fixed or f"{path}/".startswith(f"{fixed}/") or f"{fixed}/".startswith(f"{path}/")
            for fixed in self._fixed
        )


def _before_wildcards(path: str) -> str:
    parts = []
    for part in path.split("/"):
        if any(letter in part for letter in "*?[\\"):
            break
        parts.append(part)
    return "/".join(parts)


def _body(
    order: dict[str, Any], files: _Files, *, only_dockerfile: bool = False
) -> Iterator[bytes]:
    data = wire.dumps(order).encode("utf-8", "surrogateescape")
    yield len(data).to_bytes(4, "big") + data
    if files.archive is not None:
        yield from files.archive
    else:
        yield from files.tar(only_dockerfile=only_dockerfile)


# -- the end ------------------------------------------------------------------------------------------------------


def _log(options: Options, call: str) -> buildlog.Log:
    mode = "quiet" if options.flag("quiet") or call != "build" else options.text("progress")
    if mode == "auto":
        mode = getenv("BUILDKIT_PROGRESS") or ("tty" if posix.isatty(2) else "plain")
    if mode == "tty":
        return buildlog.Screen(colour=not getenv("NO_COLOR"))
    if mode == "rawjson":
        return buildlog.Raw()
    return buildlog.Plain() if mode == "plain" else buildlog.Log()


def _failed(session: Session, options: Options, failure: dict[str, Any], log: buildlog.Log) -> int:
    if not isinstance(log, buildlog.Raw):
        log.failure()
        if failure.get("lines"):
            write_all(2, str(failure["lines"]).encode("utf-8", "surrogateescape"))
    message = failure["errorDetail"]["message"]
    hint = failure.get("hint")
    warn(f"ERROR: failed to solve: {message}" + (f"\n{hint}" if hint else ""))
    if failure.get("image") and posix.isatty(0):
        from sampan.cli.buildshell import shell

        shell(session, failure["image"])
    return 1


def _answered(call: str, answer: dict[str, str], options: Options) -> int:
    if options.text("call").endswith(("format=json", ",json")):
        write_all(1, (answer["result.json"] + "\n").encode())
    elif (
        call in ("check", "lint")
        and not answer["result.txt"]
        and answer.get("result.statuscode") == "0"
    ):
        write_all(1, b"Check complete, no warnings found.\n")
    elif call in ("check", "lint"):
        _checked(answer)
    else:
        write_all(1, answer["result.txt"].encode("utf-8", "surrogateescape"))
    return int(answer.get("result.statuscode") or 0)


def _checked(answer: dict[str, str]) -> None:
    found = wire.loads(answer["result.json"])
    count = len(found.get("warnings") or [])
    if count:
        write_all(
            1,
            f"Check complete, {count} warning{'s' if count > 1 else ''} have been found!\n".replace(
                "1 warning have", "1 warning has"
            ).encode(),
        )
    write_all(1, answer["result.txt"].encode("utf-8", "surrogateescape"))
    if found.get("buildError"):
        warn("ERROR: " + found["buildError"]["message"])


def _done(options: Options, facts: dict[str, str], exports: list[dict[str, Any]]) -> int:
    ident = facts.get("containerimage.config.digest") or facts.get("containerimage.digest") or ""
    if options.text("iidfile"):
        with open(options.text("iidfile"), "w", encoding="ascii") as file:
            file.write(ident)
    if options.text("metadata-file"):
        known: dict[str, Any] = dict(facts)
        if "containerimage.descriptor" in known:
            known["containerimage.descriptor"] = wire.loads(
                base64.b64decode(known["containerimage.descriptor"])
            )
        import json

        with open(options.text("metadata-file"), "w", encoding="utf-8") as file:
            json.dump(known, file, indent=2, sort_keys=True)
    to_stdout = any(export["attrs"].get("dest") == "-" for export in exports)
    if (options.flag("quiet") or options.text("progress") == "quiet") and ident and not to_stdout:
        write_all(1, f"{ident}\n".encode())
    return 0
