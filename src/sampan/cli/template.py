"""Go's text/template: the language read into nodes (templating.py walks them).

    text {{pipeline}} {{- trimmed -}} {{/* comment */}}
    if / else if / else / end, range (break, continue, else), with, define, template, block
    pipeline: [$x :=|=] command {| command};  command: operand {operand}
    operand: .Field.Chain $var.Field function (pipeline).Field "string" `raw` 'r' 12 1.5 true nil .

Positions are kept because Go's messages name them: `template: :1:2: executing "" at <.Foo>: ...`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Token = tuple[str, str, int]
Node = tuple["Any", ...]

KEYWORDS = {
    "block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with", "true", "false",
}  # fmt: skip
SPACE = " \t\r\n"


class ParseError(Exception):
    """The template's text is wrong; the message is Go's, without `template: `."""


def parse(text: str, functions: set[str]) -> dict[str, list[Node]]:
    """Template name -> nodes; the text itself is the template ''."""
    return Parser(text, functions).all()


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


class Parser:
    """Recursive descent over one action's tokens at a time."""

    def __init__(self, text: str, functions: set[str]) -> None:
        self.text = text
        self.functions = functions
        self.position = 0
        self.templates: dict[str, list[Node]] = {}
        self.variables: list[str] = ["$"]
        self.tokens: list[Token] = []
        self.loops = 0
        self.trim = False

    def fail(self, message: str, position: int | None = None) -> ParseError:
        where = self.position if position is None else position
        return ParseError(f":{line_of(self.text, where)}: {message}")

    def all(self) -> dict[str, list[Node]]:
        nodes, ended = self.nodes(top=True)
        if ended:
            raise self.fail(f"unexpected {{{{{ended}}}}}")
        self.templates[""] = nodes
        return self.templates

    # -- text and actions -----------------------------------------------------------------------------------------

    def nodes(self, *, top: bool = False) -> tuple[list[Node], str]:
        """Nodes up to {{end}} or {{else}} (named in the second value), or the end of the text."""
        made: list[Node] = []
        while True:
            start = self.text.find("{{", self.position)
            text = self.text[self.position : start if start >= 0 else len(self.text)]
            if self.trim:
                text = text.lstrip(SPACE)
                self.trim = False
            if start < 0:
                self.position = len(self.text)
                if text:
                    made.append(("text", text))
                if not top:
                    raise self.fail("unexpected EOF")
                return made, ""
            left_trim = (
                self.text[start + 2 : start + 3] == "-"
                and self.text[start + 3 : start + 4] in SPACE
            )
            text = text.rstrip(SPACE) if left_trim else text
            if text:
                made.append(("text", text))
            inside = start + (4 if left_trim and self.text[start + 3 : start + 4] else 2)
            if self.text[inside : inside + 2] == "/*":
                self._comment(inside)
                continue
            self._scan(inside, start)
            ended = self._action(made)
            if ended:
                return made, ended

    def _comment(self, inside: int) -> None:
        close = self.text.find("*/", inside)
        if close < 0:
            raise self.fail("unclosed comment", inside)
        after = close + 2
        if self.text[after : after + 4] == " -}}":
            self.trim, after = True, after + 4
        elif self.text[after : after + 2] == "}}":
            after += 2
        else:
            raise self.fail("comment ends before closing delimiter", inside)
        self.position = after

    def _scan(self, position: int, start: int) -> None:
        self.tokens, self.position, self.trim = scan(self.text, position, start)
        self.tokens.reverse()

    def peek(self) -> Token:
        return self.tokens[-1]

    def next(self) -> Token:
        return self.tokens.pop()

    def next_solid(self) -> Token:
        self.skip()
        return self.next()

    def peek_solid(self) -> Token:
        self.skip()
        return self.peek()

    def skip(self) -> None:
        while self.tokens[-1][0] == "space":
            self.tokens.pop()

    def _action(self, made: list[Node]) -> str:
        """One {{action}}; 'end' or 'else' when it closes a block."""
        kind, word, position = self.peek_solid()
        if kind == "keyword" and word not in ("nil", "true", "false"):
            self.next()
            if word == "end":
                self._close("end")
                return "end"
            if word == "else":
                return "else"
            made += self._keyword(word, position)
            return ""
        made.append(("action", self.pipeline("command", "end")))
        return ""

    def _close(self, context: str) -> None:
        token = self.next_solid()
        if token[0] != "end":
            raise self.unexpected(token, context)

    def _keyword(self, word: str, position: int) -> list[Node]:
        if word in ("break", "continue"):
            self._close(word)
            if not self.loops:
                raise self.fail(f"{{{{{word}}}}} outside {{{{range}}}}", position)
            return [(word,)]
        if word in ("define", "block"):
            return self._define(word)
        if word == "template":
            name = self._string("template clause")
            pipe = None
            if self.peek_solid()[0] != "end":
                pipe = self.pipeline("template clause", "end")
            else:
                self.next()
            return [("template", name, pipe, position)]
        return [self._block(word)]

    def _string(self, context: str) -> str:
        token = self.next_solid()
        if token[0] not in ("string", "raw"):
            raise self.unexpected(token, context)
        return unquote(token[1]) if token[0] == "string" else token[1][1:-1]

    def _define(self, word: str) -> list[Node]:
        name = self._string(f"{word} clause")
        pipe = None
        if word == "block":
            pipe = self.pipeline("block clause", "end")
        else:
            self._close("define clause")
        outer, self.variables = self.variables, ["$"]
        nodes, ended = self.nodes()
        self.variables = outer
        if ended != "end":
            raise self.fail(f"unexpected {{{{{ended}}}}} in {word} clause")
        self.templates[name] = nodes
        return [("template", name, pipe, self.position)] if word == "block" else []

    def _block(self, word: str) -> Node:
        depth = len(self.variables)
        pipe = self.pipeline(word, "end", declares=2 if word == "range" else 1)
        if word == "range":
            self.loops += 1
        nodes, ended = self.nodes()
        if word == "range":
            self.loops -= 1
        otherwise: list[Node] = []
        if ended == "else":
            if (
                word in ("if", "with")
                and self.peek_solid()[1] == word
                and self.peek()[0] == "keyword"
            ):
                self.next()
                otherwise = [self._block(word)]
            else:
                self._close("else")
                otherwise, ended = self.nodes()
                if ended != "end":
                    raise self.fail(f"unexpected {{{{{ended}}}}}")
        del self.variables[depth:]
        return (word, pipe, nodes, otherwise)

    # -- pipelines ------------------------------------------------------------------------------------------------

    def pipeline(self, context: str, closing: str, *, declares: int = 1) -> Node:
        position = self.peek_solid()[2]
        names, assign = self._declarations(context, declares)
        commands: list[list[Node]] = []
        while True:
            token = self.next_solid()
            if token[0] == closing:
                if not commands:
                    raise self.fail(f"missing value for {context}")
                for command in commands[1:]:
                    if command[0][0] in ("bool", "dot", "nil", "num", "str"):
                        raise self.fail(
                            f"non executable command in pipeline stage {commands.index(command) + 1}"
                        )
                return ("pipe", names, assign, commands, position)
            if token[0] in ("char", "error") or (
                token[0] == "keyword" and token[1] not in ("nil", "true", "false")
            ):
                raise self.unexpected(token, context)
            self.tokens.append(token)
            commands.append(self._command())

    def _declarations(self, context: str, declares: int) -> tuple[list[str], bool]:
        names: list[str] = []
        saved = list(self.tokens)
        while self.peek_solid()[0] == "variable":
            name = self.next()[1]
            token = self.peek_solid()
            if token[1] in (":=", "=") and token[0] in ("declare", "assign"):
                self.next()
                names.append(name)
                if token[0] == "declare":
                    self.variables += names
                return names, token[0] == "assign"
            if token[1] == "," and context == "range" and len(names) < declares - 1:
                self.next()
                names.append(name)
                continue
            if token[1] == ",":
                raise self.fail(f"too many declarations in {context}")
            break
        self.tokens = saved
        return [], False

    def _command(self) -> list[Node]:
        operands: list[Node] = []
        while True:
            self.skip()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            token = self.next()
            if token[0] == "space":
                continue
            if token[0] in ("end", "close"):
                self.tokens.append(token)
            elif token[0] != "pipe":
                raise self.unexpected(token, "operand")
            break
        if not operands:
            raise self.fail("empty command")
        return operands

    def _operand(self) -> Node | None:
        node = self._term()
        if node is None:
            return None
        if self.peek()[0] != "field":
            return node
        position = self.peek()[2]
        chain: list[str] = []
        while self.peek()[0] == "field":
            chain.append(self.next()[1][1:])
        if node[0] == "field":
            return ("field", [*node[1], *chain], position)
        if node[0] == "var":
            return ("var", node[1], [*node[2], *chain], position)
        if node[0] in ("bool", "str", "num", "nil"):
            raise self.fail(f"unexpected . after term {describe(node)!r}")
        return ("chain", node, chain, position)

    def _term(self) -> Node | None:
        kind, word, position = token = self.next()
        if kind == "identifier":
            if word not in self.functions:
                raise self.fail(f'function "{word}" not defined', position)
            return ("func", word, position)
        if kind == "dot":
            return ("dot", position)
        if kind == "keyword" and word in ("true", "false"):
            return ("bool", word == "true", position)
        if kind == "keyword" and word == "nil":
            return ("nil", position)
        if kind == "variable":
            if word not in self.variables:
                raise self.fail(f'undefined variable "{word}"', position)
            return ("var", word, [], position)
        if kind == "field":
            return ("field", [word[1:]], position)
        if kind == "number":
            return ("num", number(word), position, word)
        if kind == "string":
            return ("str", unquote(word), position)
        if kind == "raw":
            return ("str", word[1:-1], position)
        if kind == "open":
            return ("paren", self.pipeline("parenthesized pipeline", "close"), position)
        self.tokens.append(token)
        return None

    def unexpected(self, token: Token, context: str) -> ParseError:
        kind, word, position = token
        if kind == "error":
            return self.fail(word, position)
        if kind == "end":
            return self.fail(f'unexpected "}}}}" in {context}', position)
        shown = f"<{word}>" if kind in ("keyword", "dot") else f'"{word}"'
        return self.fail(f"unexpected {shown} in {context}", position)


def scan(text: str, position: int, start: int) -> tuple[list[Token], int, bool]:
    """Tokens of the action that begins at `start`; where it ends; whether the text after it is trimmed."""
    tokens: list[Token] = []
    depth, end = 0, len(text)
    while True:
        if text.startswith("}}", position) and not depth:
            tokens.append(("end", "}}", position))
            return tokens, position + 2, False
        if position >= end:
            raise ParseError(f":{line_of(text, start)}: unclosed action")
        char = text[position]
        begin = position
        if char in SPACE:
            while position < end and text[position] in SPACE:
                position += 1
            if text.startswith("-}}", position):
                tokens.append(("end", "}}", position))
                return tokens, position + 3, True
            tokens.append(("space", " ", begin))
        elif char in "\"`'":
            position = _string_end(text, position)
            kind = {'"': "string", "`": "raw", "'": "number"}[char]
            tokens.append((kind, text[begin:position], begin))
        elif char in "()":
            depth += 1 if char == "(" else -1
            if depth < 0:
                raise ParseError(f":{line_of(text, position)}: unexpected right paren")
            position += 1
            tokens.append(("open" if char == "(" else "close", char, begin))
        elif char == "|":
            position += 1
            tokens.append(("pipe", char, begin))
        elif text.startswith(":=", position):
            position += 2
            tokens.append(("declare", ":=", begin))
        elif char in "=,":
            position += 1
            tokens.append(("assign" if char == "=" else "char", char, begin))
        elif char == "." and not text[position + 1 : position + 2].isdigit():
            position = _word_end(text, position + 1)
            word = text[begin:position]
            tokens.append(("field" if len(word) > 1 else "dot", word, begin))
        elif char == "$":
            position = _word_end(text, position + 1)
            tokens.append(("variable", text[begin:position], begin))
        elif char.isdigit() or char in "+-.":
            position += 1
            while position < end and (text[position].isalnum() or text[position] in "._"):
                position += 1
            tokens.append(("number", text[begin:position], begin))
        elif char.isalpha() or char == "_":
            position = _word_end(text, position)
            word = text[begin:position]
            tokens.append(("keyword" if word in KEYWORDS else "identifier", word, begin))
        else:
            code = f"U+{ord(char):04X} '{char}'"
            raise ParseError(
                f":{line_of(text, position)}: unrecognized character in action: {code}"
            )


def _word_end(text: str, position: int) -> int:
    """Where a name is over; what follows it must be able to."""
    while position < len(text) and (text[position].isalnum() or text[position] == "_"):
        position += 1
    after = text[position : position + 1]
    if after and after not in SPACE + ".,|:)(" and not text.startswith("}}", position):
        code = f"U+{ord(after):04X} '{after}'"
        raise ParseError(f":{line_of(text, position)}: bad character {code}")
    return position


def _string_end(text: str, position: int) -> int:
    mark, start = text[position], position
    position += 1
    while position < len(text):
        char = text[position]
        if char == "\\" and mark != "`":
            position += 2
            continue
        position += 1
        if char == mark:
            return position
        if char == "\n" and mark != "`":
            break
    names = {'"': "quoted string", "`": "raw quoted string", "'": "character constant"}
    raise ParseError(f":{line_of(text, start)}: unterminated {names[mark]}")


ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}


def unquote(quoted: str) -> str:
    """A Go string literal's value."""
    body, out, position = quoted[1:-1], [], 0
    while position < len(body):
        char = body[position]
        position += 1
        if char != "\\":
            out.append(char)
            continue
        letter = body[position : position + 1]
        position += 1
        if letter in ESCAPES:
            out.append(ESCAPES[letter])
        elif letter in ("x", "u", "U"):
            width = {"x": 2, "u": 4, "U": 8}[letter]
            out.append(chr(int(body[position : position + width], 16)))
            position += width
        else:
            raise ParseError(f":1: invalid syntax: {quoted}")
    return "".join(out)


def number(word: str) -> Any:
    if word.startswith("'"):
        return ord(unquote(word))
    try:
        return int(word, 0)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        raise ParseError(f':1: bad number syntax: "{word}"') from None


def describe(node: Node) -> str:
    """The node as Go would write it, for messages."""
    kind = node[0]
    if kind == "field":
        return "".join(f".{name}" for name in node[1])
    if kind == "var":
        return f"{node[1]}" + "".join(f".{name}" for name in node[2])
    if kind == "chain":
        return describe(node[1]) + "".join(f".{name}" for name in node[2])
    if kind == "func":
        return str(node[1])
    if kind == "dot":
        return "."
    if kind == "nil":
        return "nil"
    if kind == "bool":
        return "true" if node[1] else "false"
    if kind == "num":
        return str(node[3])
    if kind == "str":
        from sampan.cli.args import quote

        return quote(node[1])
    if kind == "paren":
        return f"({describe(node[1])})"
    if kind == "pipe":
        names = ", ".join(node[1])
        lead = f"{names} {'=' if node[2] else ':='} " if names else ""
        return lead + " | ".join(" ".join(describe(o) for o in command) for command in node[3])
    return ""
