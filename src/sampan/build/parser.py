"""A Dockerfile's text as nodes: one a line of instruction, with flags, arguments, here-documents and where it stands.

    text --lines--> logical line (comments dropped, continuations joined) --> command, --flags, arguments --> Node
                                                      `<<NAME` in ADD, COPY, RUN: the lines up to NAME go with the node

What the words mean is `instructions.py`'s; here is only the form, which differs by command:

    words      FROM EXPOSE ARG           name/value triples   ENV LABEL        one text       USER WORKDIR STOPSIGNAL ...
    JSON list or text  CMD ENTRYPOINT RUN SHELL HEALTHCHECK    JSON list or words  ADD COPY VOLUME     a node  ONBUILD

Rules that surprise: `# escape=` and its siblings count only before anything else; a comment inside a continuation
vanishes; an empty line inside one too, with a warning; JSON that does not parse is text, but a JSON list that holds
something else than texts is an error. Pure.

Source: the Dockerfile reference ("Format", "Parser directives", "Here-documents").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec

from sampan.build.expand import GO_SPACE, Lexer, go_quote
from sampan.errors import InvalidArgument

SPACES = "".join(sorted(GO_SPACE))
BLANKS = re.compile(r"[\t\v\f\r ]+")
DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*", re.ASCII)
DIRECTIVES = ("syntax", "escape", "check")
HEREDOC = re.compile(r"([0-9]*)<<(-?)[ \t\n\f\r]*([^<]*)", re.ASCII)
MAX_LINE = 65535
MAX_DOCKERFILE_BYTES = 16 << 20


class DockerfileError(InvalidArgument):
    """A Dockerfile that cannot be read; `line` and `end` (from 1) say where."""

    def __init__(self, message: str, *, line: int = 0, end: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line
        self.end = end or line


class Heredoc(msgspec.Struct, frozen=True, kw_only=True):
    """A here-document. `expand`: its name was not quoted; `chomp`: leading tabs go (`<<-`)."""

    name: str
    content: str = ""
    expand: bool = True
    chomp: bool = False
    descriptor: int = 0

    @property
    def text(self) -> str:
        """The content as the instruction gets it."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.chomp else self.content


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction's form. `command` as written; `json`: the arguments were a JSON list."""

    command: str
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    json: bool = False
    child: Node | None = None
    heredocs: tuple[Heredoc, ...] = ()
    original: str = ""
    start: int = 0
    end: int = 0
    comments: tuple[str, ...] = ()

    def dump(self) -> str:
        """The node as an S-expression, the form in which parsers are compared."""
        out = self.command.lower()
        if self.flags:
            out += " [" + " ".join(go_quote(flag) for flag in self.flags) + "]"
        if self.child is not None:
            out += f" ({self.child.dump()})"
        for argument in self.args:
            out += " " + go_quote(argument)
        return out.strip(SPACES)


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """A parser directive: `# name=value`."""

    name: str
    value: str
    line: int


class ParseWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something that will be an error one day."""

    message: str
    line: int


class Dockerfile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    nodes: tuple[Node, ...]
    directives: tuple[Directive, ...] = ()
    escape: str = "\\"
    warnings: tuple[ParseWarning, ...] = ()
    lines: tuple[str, ...] = ()

    def dump(self) -> str:
        """Every node, as parsers are compared."""
        return "".join(f"({node.dump()})\n" for node in self.nodes).strip(SPACES)


def parse(data: bytes) -> Dockerfile:
    """Raises DockerfileError with the line."""
    return _Reader(data).run()


class _Reader:
    """Goes through the lines once."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_DOCKERFILE_BYTES:
            raise DockerfileError(f"the Dockerfile has more than {MAX_DOCKERFILE_BYTES} bytes")
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        self.lines = text.split("\n")
        self.has_final_newline = self.lines[-1] == ""
        if self.has_final_newline:
            self.lines.pop()
        self.at = 0
        self.escape = "\\"
        self.directives: list[Directive] = []
        self.directives_over = False
        self.warnings: list[ParseWarning] = []
        self.comments: list[str] = []

    def run(self) -> Dockerfile:
        nodes = []
        while self.at < len(self.lines):
            node = self._instruction()
            if node is not None:
                nodes.append(node)
        if not nodes:
            raise DockerfileError("file with no instructions", line=self.at)
        return Dockerfile(
            nodes=tuple(nodes),
            directives=tuple(self.directives),
            escape=self.escape,
            warnings=tuple(self.warnings),
            lines=tuple(self.lines),
        )

    def _next(self) -> str:
        """The next line without its end; counts it."""
        line = self.lines[self.at]
        if len(line.encode("utf-8", "surrogateescape")) > MAX_LINE:
            raise DockerfileError(
                f"dockerfile line greater than max allowed size of {MAX_LINE}", line=self.at
            )
        self.at += 1
        return line.rstrip("\r")

    def _instruction(self) -> Node | None:
        line = self._next().lstrip(SPACES)
        is_directive = self._directive(line)
        if line.startswith("#"):
            if not is_directive:
                comment = line[1:].strip(SPACES)
                self.comments = [*self.comments, comment] if comment else []
            return None
        start = self.at
        text, ended = self._continued(line)
        if ended and not text:
            return None
        text, end_line = self._join(text, ended=ended)
        try:
            node = node_from_line(text, self.escape)
            heredocs = self._heredocs(node, text)
        except DockerfileError as error:
            raise DockerfileError(
                error.message, line=error.line or start, end=error.end or end_line, hint=error.hint
            ) from None
        node = msgspec.structs.replace(
            node, heredocs=heredocs, start=start, end=self.at, comments=tuple(self.comments)
        )
        self.comments = []
        return node

    def _join(self, text: str, *, ended: bool) -> tuple[str, int]:
        empty = False
        while not ended and self.at < len(self.lines):
            line = self._next()
            stripped = line.lstrip(SPACES)
            if stripped.startswith("#"):
                continue
            if not stripped:
                empty = True
                continue
            line, ended = self._continued(line)
            text += line
        if empty:
            self.warnings.append(
                ParseWarning(message=f"Empty continuation line found in: {text}", line=self.at)
            )
        return text, self.at

    def _continued(self, line: str) -> tuple[str, bool]:
        """The line without a continuation sign, and whether it ends here. A doubled sign does not continue."""
        body = line.rstrip(" \t")
        if body == self.escape or (body.endswith(self.escape) and body[-2] != self.escape):
            return body[:-1], False
        return line, True

    def _directive(self, line: str) -> bool:
        if self.directives_over:
            return False
        match = None
        if line.startswith("#"):
            match = DIRECTIVE.fullmatch(line[1:].lstrip(SPACES))
        name = match[1].lower() if match else ""
        if match is None or name not in DIRECTIVES:
            self.directives_over = True
            return False
        if any(each.name == name for each in self.directives):
            raise DockerfileError(f"only one {name} parser directive can be used", line=self.at)
        if name == "escape":
            if match[2] not in ("\\", "`"):
                raise DockerfileError(
                    f"invalid escape token '{match[2]}' does not match ` or \\", line=self.at
                )
            self.escape = match[2]
        self.directives.append(Directive(name=name, value=match[2], line=self.at))
        return True

    def _heredocs(self, node: Node, line: str) -> tuple[Heredoc, ...]:
        if "<<" not in line or not _may_hold_heredocs(node):
            return ()
        found = []
        start = self.at
        for heredoc in heredocs_of(line):
            content = ""
            while True:
                if self.at >= len(self.lines):
                    raise DockerfileError("unterminated heredoc", line=start, end=self.at)
                raw = self.lines[self.at]
                self.at += 1
                candidate = raw.rstrip("\r")
                if (candidate.lstrip("\t") if heredoc.chomp else candidate) == heredoc.name:
                    break
                last = self.at == len(self.lines) and not self.has_final_newline
                content += raw if last else raw + "\n"
            found.append(msgspec.structs.replace(heredoc, content=content))
        return tuple(found)


def _may_hold_heredocs(node: Node) -> bool:
    if node.command.lower() == "onbuild" and node.child is not None:
        node = node.child
    return node.command.lower() in ("add", "copy", "run") and not node.json


def heredocs_of(line: str) -> list[Heredoc]:
    """The here-documents that a line announces, without their contents."""
    lexer = Lexer({}, keep_quotes=True, keep_escapes=True, keep_unset=True)
    try:
        words = lexer.run(line).words
    except InvalidArgument:
        return []
    return [heredoc for word in words if (heredoc := parse_heredoc(word)) is not None]


def parse_heredoc(word: str) -> Heredoc | None:
    """`<<NAME`, `<<-NAME`, `3<<"NAME"`; None where it is none. Raises DockerfileError for a broken name."""
    match = HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    rest = match[3]
    words = Lexer({}, keep_unset=True).run(rest).words
    if len(words) != 1:
        return None
    raw = Lexer({}, keep_unset=True, keep_quotes=True).run(rest).words[0]
    quoted = raw.count("'") + raw.count('"') != words[0].count("'") + words[0].count('"')
    return Heredoc(
        name=words[0], expand=not quoted, chomp=match[2] == "-", descriptor=int(match[1][:9] or 0)
    )


# --- one line


def node_from_line(line: str, escape: str) -> Node:
    """Command, flags and arguments in the form that the command has. Raises DockerfileError."""
    parts = BLANKS.split(line.strip(SPACES), maxsplit=1)
    command = parts[0]
    flags: list[str] = []
    rest = ""
    if len(parts) == 2:
        flags, rest = _flags(parts[1], escape)
        rest = rest.strip(SPACES)
    form = FORMS.get(command.lower(), _ignored)
    made = form(rest, escape)
    return msgspec.structs.replace(made, command=command, flags=tuple(flags), original=line)


def _flags(line: str, escape: str) -> tuple[list[str], str]:
    """The leading words that begin with `--`, unquoted, and the rest. A lone `--` ends them."""
    flags: list[str] = []
    at, end = 0, len(line)
    while at < end:
        if line[at] in GO_SPACE:
            at += 1
            continue
        if not line.startswith("--", at):
            return flags, line[at:]
        word, quoted, at = _flag_word(line, at, escape)
        if word == "--":
            return flags, line[at:]
        if word or quoted:
            flags.append(word)
    return flags, ""


def _flag_word(line: str, at: int, escape: str) -> tuple[str, bool, int]:
    word, quote, quoted = "", "", False
    while at < len(line):
        character = line[at]
        if not quote and character in GO_SPACE:
            break
        at += 1
        if quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote, quoted = character, True
        elif character == escape:
            if at < len(line):
                word += line[at]
                at += 1
        else:
            word += character
    return word, quoted, at


def words_of(text: str, escape: str) -> list[str]:
    """Split at blanks outside quotes; quotes and escapes stay, for they are processed with the variables later."""
    words: list[str] = []
    word, quote, keep = "", "", False
    at, end = 0, len(text)
    while at < end:
        character = text[at]
        at += 1
        if not quote and character in GO_SPACE:
            if word or keep:
                words.append(word)
            word, keep = "", False
            continue
        if character == escape and quote != "'":
            if at == end:
                break  # an escape at the very end stands for nothing
            word += character + text[at]
            at += 1
            continue
        if quote:
            if character == quote:
                quote = ""
        elif character in "'\"":
            quote, keep = character, True
        word += character
    if word or keep:
        words.append(word)
    return words


def _blank_node(*args: str, is_json: bool = False, child: Node | None = None) -> Node:
    return Node(command="", args=args, json=is_json, child=child)


def _ignored(_rest: str, _escape: str) -> Node:
    return _blank_node("")


def _text(rest: str, _escape: str) -> Node:
    return _blank_node(rest) if rest else _blank_node()


def _words(rest: str, _escape: str) -> Node:
    return _blank_node(*BLANKS.split(rest)) if rest else _blank_node()


def _names(rest: str, escape: str) -> Node:
    return _blank_node(*words_of(rest, escape))


def _pairs(name: str) -> Callable[[str, str], Node]:
    def form(rest: str, escape: str) -> Node:
        words = words_of(rest, escape)
        if not words:
            return _blank_node()
        if "=" not in words[0]:
            parts = BLANKS.split(rest, maxsplit=1)
            if len(parts) < 2:
                raise DockerfileError(f"{name} must have two arguments")
            return _blank_node(parts[0], parts[1], "")
        args: list[str] = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise DockerfileError(
                    f"Syntax error - can't find = in {go_quote(word)}. Must be of the form: name=value"
                )
            args += [key, value, "="]
        return _blank_node(*args)

    return form


def _json_list(rest: str) -> list[str] | None:
    """None where it is not a JSON list. Raises DockerfileError where the list holds other than texts."""
    text = rest.lstrip(SPACES)
    if not text.startswith("["):
        return None
    try:
        # Go's decoder replaces lone surrogates and bytes that are not UTF-8, and knows no NaN.
        items = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in items):
        raise DockerfileError(
            "when using JSON array syntax, arrays must be comprised of strings only"
        )
    return [item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for item in items]


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _json_or_text(rest: str, _escape: str) -> Node:
    if not rest:
        return _blank_node()
    items = _json_list(rest)
    return _blank_node(rest) if items is None else _blank_node(*items, is_json=True)


def _json_or_words(rest: str, escape: str) -> Node:
    items = _json_list(rest)
    return _words(rest, escape) if items is None else _blank_node(*items, is_json=True)


def _health(rest: str, escape: str) -> Node:
    if not rest:
        return _blank_node()
    kind = re.split(f"[{re.escape(SPACES)}]", rest, maxsplit=1)[0]
    command = _json_or_text(rest[len(kind) :].lstrip(SPACES), escape)
    return _blank_node(kind, *command.args, is_json=command.json)


def _sub_command(rest: str, escape: str) -> Node:
    return _blank_node(child=node_from_line(rest, escape)) if rest else _blank_node()


FORMS: dict[str, Callable[[str, str], Node]] = {
    "add": _json_or_words,
    "arg": _names,
    "cmd": _json_or_text,
    "copy": _json_or_words,
    "entrypoint": _json_or_text,
    "env": _pairs("ENV"),
    "expose": _words,
    "from": _words,
    "healthcheck": _health,
    "label": _pairs("LABEL"),
    "maintainer": _text,
    "onbuild": _sub_command,
    "run": _json_or_text,
    "shell": _json_or_text,
    "stopsignal": _text,
    "user": _text,
    "volume": _json_or_words,
    "workdir": _text,
}
