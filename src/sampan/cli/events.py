"""`events`: what happens, a line each."""

from __future__ import annotations

from sampan.cli.client import filters
from sampan.cli.failures import Failure
from sampan.cli.session import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

SECOND = 1_000_000_000


def events(session: Session, options: Options) -> int:
    from sampan.cli.times import timestamp

    form = options.text("format")
    template = _template(form) if form else None
    query: dict[str, Any] = {"filters": filters(options.list("filter")) or None}
    for name in ("since", "until"):
        if options.text(name):
            query[name] = timestamp(options.text(name))
    for event in session.client.call("GET", "/events", query=query).lines():
        out(line(event) if template is None else _render(template, event))
    return 0


def _template(form: str) -> Any:
    from sampan.cli.govalues import Cell, TemplateError
    from sampan.cli.templating import Template

    try:
        template = Template("{{json .}}" if form == "json" else form)
        template.render(Cell({}, "*events.Message"))
    except TemplateError as error:
        raise Failure(f"Error parsing format: {error}", status=64) from None
    return template


def _render(template: Any, event: dict[str, Any]) -> str:
    from sampan.cli.govalues import Cell, TemplateError

    try:
        text: str = template.render(Cell(event, "*events.Message"))
        return text
    except TemplateError as error:
        raise Failure(f"Error parsing format: {error}", status=64) from None


def line(event: dict[str, Any]) -> str:
    """'time type action id (attributes)'."""
    from sampan.cli.times import rfc3339

    actor = event.get("Actor") or {}
    nanoseconds = event.get("timeNano") or event.get("time", 0) * SECOND
    when = rfc3339(nanoseconds // SECOND, nanoseconds % SECOND) + " " if nanoseconds else ""
    text = f"{when}{event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    attributes = actor.get("Attributes") or {}
    if attributes:
        text += " (" + ", ".join(f"{k}={attributes[k]}" for k in sorted(attributes)) + ")"
    return text
