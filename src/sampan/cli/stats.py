"""`stats`: what containers use. Processor time in percent of one processor, memory without the page cache."""

from __future__ import annotations

import _thread
import time

from sampan.cli import human
from sampan.cli.client import escape
from sampan.cli.failures import Failure
from sampan.cli.govalues import Row
from sampan.cli.session import Session, emit, warn
from sampan.cli.table import columns, header_row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options

TABLE = "table {{.ID}}\\t{{.Name}}\\t{{.CPUPerc}}\\t{{.MemUsage}}\\t{{.MemPerc}}\\t{{.NetIO}}\\t{{.BlockIO}}\\t{{.PIDs}}"
HEADERS = {
    "Container": "CONTAINER",
    "Name": "NAME",
    "ID": "CONTAINER ID",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
EVERY = 0.5
STALE = 2.0


class Watched:
    """One container's newest figures, kept by a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: dict[str, Any] | None = None
        self.failure: Failure | None = None
        self.seen = 0.0
        self.first = _thread.allocate_lock()
        self.first.acquire()

    def collect(self, session: Session, stream: bool) -> None:
        try:
            query = {"stream": "1" if stream else "0"}
            reply = session.client.call(
                "GET", f"/containers/{escape(self.name)}/stats", query=query
            )
            for figures in reply.lines():
                self.figures, self.seen = figures, time.monotonic()
                self._arrived()
                if not stream:
                    break
        except Failure as failure:
            self.failure = failure
        except OSError as error:
            self.failure = Failure(str(error))
        self._arrived()

    def _arrived(self) -> None:
        if self.first.locked():
            self.first.release()

    def wait(self) -> None:
        self.first.acquire(timeout=STALE + 1)

    @property
    def current(self) -> dict[str, Any] | None:
        return self.figures


def stats(session: Session, options: Options) -> int:
    stream = not options.flag("no-stream")
    named = bool(options.args)
    watched = {name: Watched(name) for name in options.args or _running(session, options)}
    for one in watched.values():
        _watch(session, one, stream)
    for one in watched.values():
        one.wait()
    failures = [one.failure for one in watched.values() if one.failure is not None]
    if named and failures:
        for failure in failures:
            warn(failure.message)
        return 1
    form = options.text("format") or session.setting("statsFormat") or "table"
    form = TABLE if form == "table" else form
    truncate = not options.flag("no-trunc")
    if not stream:
        emit(rendered(form, list(watched.values()), truncate))
        return 0
    while True:
        text = rendered(form, list(watched.values()), truncate)
        emit("\x1b[H" + "".join(f"{line} \x1b[K\n" for line in text.splitlines()) + "\x1b[J")
        if named and all(one.failure for one in watched.values()):
            return 0
        time.sleep(EVERY)
        if not named:
            _refresh(session, options, watched)


def _watch(session: Session, one: Watched, stream: bool) -> None:
    own = Session(hosts=[session.host])
    own.tls = session.tls
    _thread.start_new_thread(one.collect, (own, stream))


def _running(session: Session, options: Options) -> list[str]:
    query = {"all": options.flag("all")}
    return [c["Id"][:12] for c in session.client.json("/containers/json", query=query)]


def _refresh(session: Session, options: Options, watched: dict[str, Watched]) -> None:
    now = _running(session, options)
    for name in now:
        if name not in watched:
            watched[name] = Watched(name)
            _watch(session, watched[name], True)
    for name in [n for n in watched if n not in now]:
        del watched[name]


def rendered(form: str, watched: list[Watched], truncate: bool) -> str:
    from sampan.cli.govalues import TemplateError
    from sampan.cli.table import unescaped
    from sampan.cli.templating import Template

    table = form.startswith("table")
    text = form[5:] if table else "{{json .}}" if form == "json" else form
    try:
        template = Template(unescaped(text.strip(" ")))
        lines = [template.render(row(one, truncate)) for one in watched]
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None
    if table:
        return columns([template.with_headers().render(header_row(HEADERS)), *lines])
    return "".join(f"{line}\n" for line in lines)


def row(one: Watched, truncate: bool) -> Row:
    figures = one.current
    if not figures:
        nothing = {name: (lambda: "--") for name in HEADERS}
        nothing["MemUsage"] = lambda: "-- / --"
        nothing["Container"] = lambda: one.name
        nothing["ID"] = lambda: one.name
        return Row("*container.statsContext", dict(sorted(nothing.items())))
    used, limit = memory_used(figures.get("memory_stats") or {})
    read, written = _block_io(figures.get("blkio_stats") or {})
    networks = (figures.get("networks") or {}).values()
    received = sum(n.get("rx_bytes", 0) for n in networks)
    sent = sum(n.get("tx_bytes", 0) for n in networks)
    identity: str = figures.get("id") or ""
    percent = used / limit * 100 if limit else 0.0
    return Row(
        "*container.statsContext",
        {
            "BlockIO": lambda: f"{human.size(read, 3)} / {human.size(written, 3)}",
            "CPUPerc": lambda: f"{cpu_percent(figures):.2f}%",
            "Container": lambda: one.name,
            "ID": lambda: identity[:12] if truncate else identity,
            "MemPerc": lambda: f"{percent:.2f}%",
            "MemUsage": lambda: f"{human.memory(used)} / {human.memory(limit)}",
            "Name": lambda: (figures.get("name") or "--")[1:],
            "NetIO": lambda: f"{human.size(received, 3)} / {human.size(sent, 3)}",
            "PIDs": lambda: str((figures.get("pids_stats") or {}).get("current", 0)),
        },
    )


def cpu_percent(figures: dict[str, Any]) -> float:
    """The container's share of the time that passed since the last figures, times the processors."""
    now, before = figures.get("cpu_stats") or {}, figures.get("precpu_stats") or {}
    usage = now.get("cpu_usage") or {}
    used = usage.get("total_usage", 0) - (before.get("cpu_usage") or {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    processors = now.get("online_cpus") or len(usage.get("percpu_usage") or [])
    return used / passed * processors * 100 if used > 0 and passed > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> tuple[int, int]:
    """(use without inactive file pages, limit)."""
    use, detail = memory.get("usage", 0), memory.get("stats") or {}
    cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    return (use - cache if cache < use else use), memory.get("limit", 0)


def _block_io(blkio: dict[str, Any]) -> tuple[int, int]:
    read = written = 0
    for entry in blkio.get("io_service_bytes_recursive") or []:
        letter = (entry.get("op") or "")[:1].lower()
        if letter == "r":
            read += entry["value"]
        elif letter == "w":
            written += entry["value"]
    return read, written
