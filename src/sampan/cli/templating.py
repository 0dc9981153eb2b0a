"""Go templates carried out: nodes of template.py over values of govalues.py, with docker's functions."""

from __future__ import annotations

from sampan.cli import govalues
from sampan.cli.args import quote
from sampan.cli.govalues import MISSING, Cell, Missing, Row, TemplateError, plain, show, truth
from sampan.cli.template import Node, ParseError, describe, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Template:
    """A parsed template; `render` it over a value."""

    def __init__(self, text: str, *, headers: bool = False) -> None:
        self.text = text
        self.functions = HEADER_FUNCTIONS if headers else FUNCTIONS
        try:
            self.templates = parse(text, set(FUNCTIONS) | set(SPECIAL))
        except ParseError as error:
            raise TemplateError(f"template: {error}") from None

    def render(self, data: Any, *, strict: bool = False) -> str:
        """`strict`: a key that a map does not have is an error."""
        out: list[str] = []
        run = _Run(self, strict, out)
        run.scope.append(("$", data))
        try:
            run.nodes(self.templates[""], data)
        except TemplateError as error:
            error.partial = "".join(out)
            raise
        return "".join(out)

    def with_headers(self) -> Template:
        """The same template with the functions that leave column titles whole."""
        twin = Template.__new__(Template)
        twin.text, twin.templates, twin.functions = self.text, self.templates, HEADER_FUNCTIONS
        return twin


class _Run:
    """One execution: the variables in scope and the output so far."""

    def __init__(self, template: Template, strict: bool, out: list[str]) -> None:
        self.template = template
        self.strict = strict
        self.out = out
        self.scope: list[tuple[str, Any]] = []
        self.depth = 0

    def fail(self, node: Node, position: int, error: object) -> TemplateError:
        """Go's words: where, executing what, at which node."""
        before = self.template.text[:position]
        line = before.count("\n") + 1
        column = position - (before.rfind("\n") + 1)
        shown = describe(node)
        shown = shown[:20] + "..." if len(shown) > 20 else shown
        return TemplateError(f'template: :{line}:{column}: executing "" at <{shown}>: {error}')

    # -- nodes ----------------------------------------------------------------------------------------------------

    def nodes(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            kind = node[0]
            if kind == "text":
                self.out.append(node[1])
            elif kind == "action":
                value = self.pipe(node[1], dot)
                if not node[1][1]:
                    self.out.append(show(value))
            elif kind in ("if", "with"):
                self._condition(node, dot)
            elif kind == "range":
                self._range(node, dot)
            elif kind == "template":
                self._template(node, dot)
            elif kind == "break":
                raise _Break
            elif kind == "continue":
                raise _Continue

    def _condition(self, node: Node, dot: Any) -> None:
        kind, pipe, nodes, otherwise = node
        depth = len(self.scope)
        value = self.pipe(pipe, dot)
        if truth(value):
            self.nodes(nodes, value if kind == "with" else dot)
        else:
            self.nodes(otherwise, dot)
        del self.scope[depth:]

    def _range(self, node: Node, dot: Any) -> None:
        _, pipe, nodes, otherwise = node
        depth = len(self.scope)
        value = self.pipe(pipe, dot, bind=False)
        pairs = govalues.items(value)
        if pairs is None:
            raise self.fail(pipe, pipe[4], f"range can't iterate over {show(value)}")
        names = pipe[1]
        for key, item in pairs:
            if len(names) == 2:
                self._bind(names[0], key, pipe[2])
            if names:
                self._bind(names[-1], item, pipe[2])
            try:
                self.nodes(nodes, item)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.scope[depth:]
        if not pairs:
            self.nodes(otherwise, dot)
        del self.scope[depth:]

    def _bind(self, name: str, value: Any, assign: bool) -> None:
        if assign:
            for number in range(len(self.scope) - 1, -1, -1):
                if self.scope[number][0] == name:
                    self.scope[number] = (name, value)
                    return
        self.scope.append((name, value))

    def _template(self, node: Node, dot: Any) -> None:
        _, name, pipe, position = node
        nodes = self.template.templates.get(name)
        if nodes is None:
            raise self.fail(("str", name), position, f'template "{name}" not defined')
        self.depth += 1
        if self.depth > 200:
            raise self.fail(("str", name), position, "exceeded maximum template depth")
        data = self.pipe(pipe, dot) if pipe else MISSING
        outer, self.scope = self.scope, [("$", data)]
        self.nodes(nodes, data)
        self.scope = outer
        self.depth -= 1

    # -- pipelines ------------------------------------------------------------------------------------------------

    def pipe(self, pipe: Node, dot: Any, *, bind: bool = True) -> Any:
        _, names, assign, commands, _ = pipe
        value: Any = None
        for number, command in enumerate(commands):
            value = self._command(command, dot, [value] if number else [])
        if bind:
            for name in names:
                self._bind(name, value, assign)
        return value

    def _command(self, command: list[Node], dot: Any, final: list[Any]) -> Any:
        first, rest = command[0], command[1:]
        if first[0] == "func":
            return self._call(first, rest, dot, final)
        if first[0] == "field" and (rest or final):
            return self._method(first, rest, dot, final)
        if (rest or final) and first[0] not in ("chain", "var"):
            raise self.fail(first, first[-1] if isinstance(first[-1], int) else 0,
                            f"can't give argument to non-function {describe(first)}")  # fmt: skip
        if rest or final:
            raise self.fail(first, first[3], f"{describe(first)} is not a method but has arguments")
        return self.operand(first, dot)

    def operand(self, node: Node, dot: Any) -> Any:
        kind = node[0]
        if kind == "field":
            return self._fields(node, node[1], dot, node[2])
        if kind == "dot":
            return plain(dot)
        if kind == "var":
            return self._fields(node, node[2], self._variable(node[1]), node[3])
        if kind == "chain":
            return self._fields(node, node[2], self.operand(node[1], dot), node[3])
        if kind == "paren":
            return self.pipe(node[1], dot)
        if kind == "func":
            return self._call(node, [], dot, [])
        if kind == "nil":
            raise self.fail(node, node[1], "nil is not a command")
        return node[1]

    def _variable(self, name: str) -> Any:
        for known, value in reversed(self.scope):
            if known == name:
                return value
        raise TemplateError(f"undefined variable: {name}")

    def _fields(self, node: Node, names: list[str], value: Any, position: int) -> Any:
        for name in names:
            try:
                value = govalues.field(value, name, self.strict)
            except TemplateError as error:
                raise self.fail(node, position, error) from None
        return value

    def _method(self, node: Node, rest: list[Node], dot: Any, final: list[Any]) -> Any:
        """`.Label "x"`: the last name of the chain is called."""
        names, position = node[1], node[2]
        owner = self._fields(node, names[:-1], dot, position)
        if not isinstance(owner, Row) or names[-1] not in owner.calls:
            raise self.fail(node, position, f"{names[-1]} is not a method but has arguments")
        return owner.calls[names[-1]](*[self._argument(a, dot) for a in rest], *final)

    def _argument(self, node: Node, dot: Any) -> Any:
        return None if node[0] == "nil" else self.operand(node, dot)

    def _call(self, node: Node, rest: list[Node], dot: Any, final: list[Any]) -> Any:
        name, position = node[1], node[2]
        if name in ("and", "or"):
            return self._short_circuit(name, rest, dot, final)
        arguments = [self._argument(a, dot) for a in rest] + final
        low, high = ARITY.get(name, (1, 1))
        if len(arguments) < low or (high >= 0 and len(arguments) > high):
            wanted = f"at least {low}" if high < 0 else str(low)
            raise self.fail(
                node,
                position,
                f"wrong number of args for {name}: want {wanted} got {len(arguments)}",
            )
        try:
            return self.template.functions[name](*arguments)
        except TemplateError as error:
            raise self.fail(node, position, f"error calling {name}: {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise self.fail(node, position, f"wrong type for value; {error}") from None

    def _short_circuit(self, name: str, rest: list[Node], dot: Any, final: list[Any]) -> Any:
        value: Any = None
        for number in range(len(rest) + len(final)):
            value = self._argument(rest[number], dot) if number < len(rest) else final[0]
            if truth(value) == (name == "or"):
                return value
        return value


# -- functions ----------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    value = plain(value)
    if isinstance(value, str):
        return value
    raise TemplateError(f"expected string; found {govalues.go_type(value)}")


def _texts(value: Any) -> list[str]:
    raw = value.value if isinstance(value, Cell) else value
    if raw is None and isinstance(value, Cell) and value.type.startswith("[]"):
        return []
    if isinstance(raw, (list, tuple)):
        return [str(item) for item in raw]
    raise TemplateError(f"expected []string; found {govalues.go_type(value)}")


def _length(value: Any) -> int:
    raw = value.value if isinstance(value, Cell) else value
    if isinstance(raw, str):
        return len(raw.encode("utf-8", "surrogateescape"))
    if isinstance(raw, (list, tuple, dict)):
        return len(raw)
    if raw is None and isinstance(value, Cell) and value.type.startswith(("[]", "map:")):
        return 0
    raise TemplateError(f"len of type {govalues.go_type(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        kind = value.type.removeprefix("*") if isinstance(value, Cell) else "any"
        raw = value.value if isinstance(value, Cell) else value
        key = plain(key)
        if kind.startswith("map:") or isinstance(raw, dict):
            element = kind[4:] if kind.startswith("map:") else "any"
            if raw and key in raw:
                value = plain(Cell(raw[key], element))
            else:
                value = plain(Cell(None, element)) if element != "any" else MISSING
        elif isinstance(raw, (list, tuple, str)) or kind.startswith("[]"):
            raw = raw or []
            if not isinstance(key, int):
                raise TemplateError(f"cannot index slice/array with type {govalues.go_type(key)}")
            if not 0 <= key < len(raw):
                raise TemplateError(
                                    f"index out of range: {key}")  # fmt: skip
            element = kind[2:] if kind.startswith("[]") else "any"
            item = raw[key]
            value = ord(item) if isinstance(raw, str) else plain(Cell(item, element))
        elif isinstance(value, Missing) or raw is None:
            raise TemplateError("index of untyped nil")
        else:
            raise TemplateError(f"can't index item of type {govalues.go_type(value)}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    kind = value.type if isinstance(value, Cell) else "any"
    raw = value.value if isinstance(value, Cell) else value
    if not isinstance(raw, (str, list)):
        raise TemplateError(f"can't slice item of type {govalues.go_type(value)}")
    low = bounds[0] if bounds else 0
    high = bounds[1] if len(bounds) > 1 else len(raw)
    if not 0 <= low <= high <= len(raw):
        raise TemplateError(f"index out of range: {max(low, high)}")
    part = raw[low:high]
    return part if isinstance(part, str) else Cell(part, kind)


def _compare(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, (Cell, Row, dict, list)):
        if isinstance(value, Cell) and value.value is None:
            return None
        raise TemplateError("non-comparable type")
    return None if isinstance(value, Missing) else value


def _same_kind(a: Any, b: Any) -> bool:
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool)
    return (isinstance(a, str) and isinstance(b, str)) or (
        isinstance(a, numbers) and isinstance(b, numbers)
    )


def _equal(first: Any, *others: Any) -> bool:
    a = _compare(first)
    for other in others:
        b = _compare(other)
        if a is not None and b is not None and not _same_kind(a, b):
            raise TemplateError("incompatible types for comparison")
        if a == b:
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    a, b = _compare(first), _compare(second)
    if not _same_kind(a, b) or isinstance(a, bool):
        raise TemplateError("incompatible types for comparison")
    return bool(a < b)


def _go_print(*values: Any) -> str:
    """fmt.Sprint: a space between two that are both no strings."""
    out = []
    for number, value in enumerate(values):
        value = plain(value)
        if number and not isinstance(value, str) and not isinstance(plain(values[number - 1]), str):
            out.append(" ")
        out.append("<nil>" if value is None else show(value))
    return "".join(out)


def _go_println(*values: Any) -> str:
    return " ".join("<nil>" if v is None else show(v) for v in values) + "\n"


def _printf(form: Any, *values: Any) -> str:
    """fmt.Sprintf for the verbs that people use: v s d q t x X o b e f g c U, with flags and widths."""
    out, text, position, taken = [], _text(form), 0, 0
    while position < len(text):
        char = text[position]
        position += 1
        if char != "%":
            out.append(char)
            continue
        begin = position
        while position < len(text) and text[position] in "+-# 0123456789.":
            position += 1
        flags = text[begin:position]
        verb = text[position : position + 1]
        position += 1
        if verb == "%":
            out.append("%")
        elif not verb:
            out.append("%!(NOVERB)")
        elif taken >= len(values):
            out.append(f"%!{verb}(MISSING)")
        else:
            out.append(_formatted(flags, verb, plain(values[taken])))
            taken += 1
    if taken < len(values):
        extra = ", ".join(f"{govalues.go_type(v)}={show(v)}" for v in values[taken:])
        out.append(f"%!(EXTRA {extra})")
    return "".join(out)


def _formatted(flags: str, verb: str, value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if verb in "vs":
        shown = "<nil>" if value is None else show(value)
        if verb == "s" and (number or isinstance(value, bool)):
            shown = f"%!s({govalues.go_type(value)}={shown})"
        if verb == "v" and number and "0" in flags[:1]:
            return f"{int(value):{flags}d}"
        return _padded(shown, flags)
    if verb == "q" and isinstance(value, str):
        return _padded(quote(value), flags)
    if verb == "t" and isinstance(value, bool):
        return _padded("true" if value else "false", flags)
    if verb in "xX" and isinstance(value, str):
        digits = value.encode("utf-8", "surrogateescape").hex()
        return digits.upper() if verb == "X" else digits
    if verb in "dxXo" and isinstance(value, int) and number:
        return str("%" + flags + verb) % value
    if verb == "b" and isinstance(value, int) and number:
        return bin(value)[2:]
    if verb == "c" and isinstance(value, int):
        return chr(value)
    if verb in "efgEG" and isinstance(value, float):
        return str("%" + flags + verb) % value
    return f"%!{verb}({govalues.go_type(value)}={show(value)})"


def _padded(text: str, flags: str) -> str:
    """Width and precision of %s: '-10', '10', '.3'."""
    width, _, precision = flags.strip("+# 0").partition(".")
    if precision.isdigit():
        text = text[: int(precision)]
    room = int(width.lstrip("-") or 0)
    return text.ljust(room) if width.startswith("-") else text.rjust(room)


def _title(value: Any) -> str:
    """Every word's first letter large, the rest as it is."""
    out, fresh = [], True
    for char in _text(value):
        out.append(char.upper() if fresh else char)
        fresh = not (char.isalnum() or char in "_'")
    return "".join(out)


def _pad(text: Any, before: int, after: int) -> str:
    shown = _text(text)
    return " " * before + shown + " " * after if shown else ""


def _truncate(text: Any, length: int) -> str:
    data = _text(text).encode("utf-8", "surrogateescape")
    return data[:length].decode("utf-8", "surrogateescape")


def _html(*values: Any) -> str:
    text = _go_print(*values)
    for char, code in (
        ("&", "&amp;"),
        ("'", "&#39;"),
        ('"', "&#34;"),
        ("<", "&lt;"),
        (">", "&gt;"),
    ):
        text = text.replace(char, code)
    return text


def _js(*values: Any) -> str:
    text = _go_print(*values)
    for char in "\\'\"":
        text = text.replace(char, "\\" + char)
    for char in "<>&=":
        text = text.replace(char, f"\\u{ord(char):04X}")
    return text


def _urlquery(*values: Any) -> str:
    from sampan.cli.client import SAFE, escape

    return escape(_go_print(*values), SAFE - {47, 58}).replace("%20", "+")


SPECIAL = ("and", "or")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": govalues.to_json,
    "split": lambda text, mark: Cell(
        _text(text).split(mark) if mark else list(_text(text)), "[]string"
    ),
    "join": lambda texts, mark: mark.join(_texts(texts)),
    "title": _title,
    "lower": lambda text: _text(text).lower(),
    "upper": lambda text: _text(text).upper(),
    "pad": _pad,
    "truncate": _truncate,
    "println": _go_println,
    "print": _go_print,
    "printf": _printf,
    "len": _length,
    "index": _index,
    "slice": _slice,
    "not": lambda value: not truth(value),
    "eq": _equal,
    "ne": lambda a, b: not _equal(a, b),
    "lt": _less,
    "le": lambda a, b: _less(a, b) or _equal(a, b),
    "gt": lambda a, b: not (_less(a, b) or _equal(a, b)),
    "ge": lambda a, b: not _less(a, b),
    "html": _html,
    "js": _js,
    "urlquery": _urlquery,
}
ARITY = {
    "split": (2, 2), "join": (2, 2), "pad": (3, 3), "truncate": (2, 2), "println": (0, -1), "print": (0, -1),
    "printf": (1, -1), "index": (1, -1), "slice": (1, 4), "eq": (1, -1), "ne": (2, 2), "lt": (2, 2), "le": (2, 2),
    "gt": (2, 2), "ge": (2, 2), "html": (0, -1), "js": (0, -1), "urlquery": (0, -1),
}  # fmt: skip
HEADER_FUNCTIONS = FUNCTIONS | {
    name: (lambda value, *_: value)
    for name in ("json", "split", "join", "title", "lower", "upper", "truncate")
}
