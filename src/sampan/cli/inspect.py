"""`inspect` of every kind of object: the engine's JSON as it came, indented; or a template over it.

A template sees docker's Go types first (`.ID`, zero values); where it fails on them it is tried on the raw JSON
(`.Id`), as docker does.
"""

from __future__ import annotations

from sampan.cli import wire
from sampan.cli.client import escape
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import emit, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

    Find = Callable[[str], tuple[str, str]]  # reference -> (its Go type, its JSON text)

KINDS = (
    "config",
    "container",
    "image",
    "network",
    "node",
    "plugin",
    "secret",
    "service",
    "task",
    "volume",
)
PATHS = {
    "container": ("/containers/{}/json", "ContainerInspect"),
    "image": ("/images/{}/json", "ImageInspect"),
    "network": ("/networks/{}", "NetworkInspect"),
    "volume": ("/volumes/{}", "Volume"),
    "plugin": ("/plugins/{}/json", "any"),
    "node": ("/nodes/{}", "any"),
    "service": ("/services/{}", "any"),
    "task": ("/tasks/{}", "any"),
    "secret": ("/secrets/{}", "any"),
    "config": ("/configs/{}", "any"),
}


def container(session: Session, options: Options) -> int:
    return show(options, finder(session, "container", {"size": options.flag("size")}))


def image(session: Session, options: Options) -> int:
    return show(options, finder(session, "image", {"platform": platform(options.text("platform"))}))


def network(session: Session, options: Options) -> int:
    return show(options, finder(session, "network", {"verbose": options.flag("verbose")}))


def volume(session: Session, options: Options) -> int:
    return show(options, finder(session, "volume"))


def plugin(session: Session, options: Options) -> int:
    return show(options, finder(session, "plugin"))


def any_(session: Session, options: Options) -> int:
    """Whatever goes by the name: containers first, then images, networks, volumes."""
    kind = options.text("type")
    allowed = '", "'.join(KINDS)
    if options.has("type") and not kind:
        raise Failure(f'type is empty: must be one of "{allowed}"')
    if kind and kind not in KINDS:
        raise Failure(f'unknown type: "{kind}": must be one of "{allowed}"')
    size = options.flag("size")

    def find(reference: str) -> tuple[str, str]:
        for candidate in [kind] if kind else ["container", "image", "network", "volume", "plugin"]:
            query = {"size": True} if size and candidate == "container" else {}
            try:
                found = finder(session, candidate, query)(reference)
            except Refused as refused:
                if not kind and _is_other_kind(refused):
                    continue
                raise
            if size and candidate != "container":
                warn(f"WARNING: --size ignored for {candidate}")
            return found
        raise Failure(f"Error: No such object: {reference}")

    return show(options, find)


def _is_other_kind(refused: Refused) -> bool:
    words = ("not supported", "invalid reference format", "not implemented")
    return refused.code == 404 or any(word in refused.reason for word in words)


def platform(text: str) -> dict[str, str] | None:
    """'linux/arm64/v8' as the API's JSON platform."""
    if not text:
        return None
    parts = text.split("/")
    names = ("os", "architecture", "variant")
    return dict(zip(names, parts, strict=False))


def finder(session: Session, kind: str, query: dict[str, Any] | None = None) -> Find:
    path, go_type = PATHS[kind]

    def find(reference: str) -> tuple[str, str]:
        if not reference:
            raise Failure(f"Error: No such object: {reference}")
        reply = session.client.call("GET", path.format(escape(reference)), query=query)
        return go_type, reply.read().decode("utf-8", "surrogateescape")

    return find


def show(options: Options, find: Find, references: list[str] | None = None) -> int:
    """Print every object found; the messages of the rest go to stderr, and the status is 1."""
    form = options.text("format")
    template = _template(form)
    out: list[str] = []
    wrong: list[Failure] = []
    for reference in options.args if references is None else references:
        try:
            kind, text = find(reference)
            out.append(text if template is None else rendered(template, kind, text) + "\n")
        except Failure as failure:
            wrong.append(failure)
    if template is not None:
        emit("".join(out) or "\n")
    elif not out:
        emit("[]\n")
    elif form == "json":
        emit(compact("[" + ",".join(out) + "]") + "\n")
    else:
        emit(wire.indent("[" + ",".join(out) + "]") + "\n")
    for problem in wrong:
        warn(problem.message)
    return 1 if wrong else 0


def _template(form: str) -> Any:
    if form in ("", "json"):
        return None
    from sampan.cli.govalues import TemplateError
    from sampan.cli.templating import Template

    try:
        return Template(form)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}", status=64) from None


def rendered(template: Any, kind: str, text: str) -> str:
    """The template over the typed object, or else over the raw one."""
    from sampan.cli.govalues import Cell, TemplateError

    value = wire.loads(text)
    try:
        return str(template.render(Cell(value, kind)))
    except TemplateError:
        pass
    try:
        return str(template.render(Cell(value), strict=True))
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None


def compact(text: str) -> str:
    """Go's json.Compact: no space between, everything else as it was written."""
    out, position = [], 0
    while position < len(text):
        char = text[position]
        if char == '"':
            end = wire.string_end(text, position)
            out.append(text[position:end])
            position = end
        else:
            if char not in wire.BLANK:
                out.append(char)
            position += 1
    return "".join(out)
