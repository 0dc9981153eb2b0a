"""Lists: aligned columns, and the `--format` of every list command.

    listing('table {{.ID}}\\t{{.Names}}', rows, headers)      a template, its column titles made from the same template
    listing('json', rows, ...) / listing('{{.ID}}', rows, ...)

Column rules are Go's text/tabwriter as docker uses it: cells end at a tab, a column is as wide as its widest cell and
three spaces, at least ten; the last cell of a line is not padded.
"""

from __future__ import annotations

from sampan.cli.failures import Failure
from sampan.cli.govalues import Row, TemplateError
from sampan.cli.session import emit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def columns(lines: list[str], *, least: int = 10, gap: int = 3) -> str:
    """Lines with cells that end in tabs, aligned."""
    cells = [line.split("\t") for line in lines]
    out = [""] * len(cells)
    _align(cells, out, 0, len(cells), 0, least, gap)
    return "".join(f"{line}\n" for line in out)


def _align(
    cells: list[list[str]], out: list[str], start: int, stop: int, column: int, least: int, gap: int
) -> None:
    """Fill `out` for a run of lines, column by column: only neighbours that have the column share its width."""
    row = start
    while row < stop:
        if column >= len(cells[row]) - 1:
            out[row] += cells[row][column] if column < len(cells[row]) else ""
            row += 1
            continue
        end = row
        while end < stop and column < len(cells[end]) - 1:
            end += 1
        width = max(least, *(display_width(cells[n][column]) + gap for n in range(row, end)))
        for number in range(row, end):
            cell = cells[number][column]
            out[number] += cell + " " * (width - display_width(cell))
        _align(cells, out, row, end, column + 1, least, gap)
        row = end


def display_width(text: str) -> int:
    if text.isascii():
        return len(text)
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def unescaped(form: str) -> str:
    """`\\t` and `\\n` as people type them."""
    return form.replace("\\t", "\t").replace("\\n", "\n")


def listing(form: str, rows: list[Row], headers: dict[str, str]) -> None:
    """Print `rows` as `form` says."""
    from sampan.cli.templating import Template

    table = form.startswith("table")
    text = form[5:] if table else "{{json .}}" if form == "json" else form
    try:
        template = Template(unescaped(text.strip(" ")))
        body = [template.render(row) for row in rows]
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None
    if not table:
        emit("".join(f"{line}\n" for line in body))
        return
    title = template.with_headers().render(header_row(headers))
    lines = [title]
    for line in body:
        lines += line.split("\n")
    emit(columns(lines))


def header_row(headers: dict[str, str]) -> Row:
    """The titles as a row, so that the lines' own template makes the heading."""

    def label(name: str) -> str:
        return name.rsplit(".", 1)[-1].replace("-", " ").replace("_", " ")

    def constant(title: str) -> Callable[[], str]:
        return lambda: title

    getters = {name: constant(title) for name, title in headers.items()}
    return Row("formatter.SubHeaderContext", getters, {"Label": label}, lenient=True)


def check(form: str, row: Row) -> None:
    """Refuse a template that cannot be read before anything is asked of an engine."""
    from sampan.cli.templating import Template

    if form.startswith("table") or form == "json":
        return
    try:
        Template(unescaped(form)).render(row)
    except TemplateError as error:
        word = "parse" if ": executing" not in str(error) else "execute"
        raise Failure(f"failed to {word} template: {error}") from None
