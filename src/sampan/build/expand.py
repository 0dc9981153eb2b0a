"""Quotes, escapes and variables of a Dockerfile's words: the shell's rules, as far as the builder follows them.

    $name ${name}                      the value, or nothing
    ${name:-word} ${name-word}         word where it is unset (with ':' also where it is empty)
    ${name:+word} ${name+word}         word where it is set (and not empty)
    ${name:?word} ${name?word}         an error with that text where it is unset (or empty)
    ${name#p} ${name##p}               without the shortest / longest prefix that matches
    ${name%p} ${name%%p}               without the shortest / longest suffix that matches
    ${name/p/r} ${name//p/r}           the first match replaced / every match
    'text'                             as it is
    "text"                             variables only; \\" \\$ \\\\ escape

A word nests: what stands behind a modifier is itself a word. `expand` gives one text, `split` the list of words that
blanks outside quotes make of it after expansion. Pure.

Source: the Dockerfile reference, "Environment replacement"; POSIX Shell Command Language 2.2 and 2.6.2 (without
bracket expressions in patterns).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sampan.errors import InvalidArgument

SPECIAL_PARAMETERS = "@*#?-$!0"
GO_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class ExpandError(InvalidArgument):
    """A word that cannot be expanded."""


class Expansion:
    """What came out: the text, its words, and which variables were found or not."""

    __slots__ = ("matched", "text", "unmatched", "words")

    def __init__(self, text: str, words: list[str], matched: set[str], unmatched: set[str]) -> None:
        self.text = text
        self.words = words
        self.matched = matched
        self.unmatched = unmatched


def expand(word: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """The word with quotes, escapes and variables processed. Raises ExpandError."""
    return Lexer(variables, escape=escape).run(word).text


def split(word: str, variables: Mapping[str, str], *, escape: str = "\\") -> list[str]:
    """The words that it makes; blanks from a variable split, quoted ones do not. Raises ExpandError."""
    return Lexer(variables, escape=escape).run(word).words


class Lexer:
    """The rules with their switches.

    keep_quotes: quotes stay in the text; keep_escapes: escape characters too; ignore_quotes: they are plain characters;
    keep_unset: a variable that is not set stays as it was written.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        *,
        escape: str = "\\",
        keep_quotes: bool = False,
        keep_escapes: bool = False,
        ignore_quotes: bool = False,
        keep_unset: bool = False,
    ) -> None:
        self.variables = variables
        self.escape = escape
        self.keep_quotes = keep_quotes
        self.keep_escapes = keep_escapes
        self.ignore_quotes = ignore_quotes
        self.keep_unset = keep_unset

    def run(self, word: str) -> Expansion:
        """Raises ExpandError, which names the word."""
        scan = _Scan(self, word)
        try:
            text, words = scan.until("", keep_escapes=self.keep_escapes)
        except ExpandError as error:
            raise ExpandError(f"failed to process {go_quote(word)}: {error.message}") from None
        except RecursionError:
            raise ExpandError(
                f"failed to process {go_quote(word[:60])}: nested too deeply"
            ) from None
        return Expansion(text, words, scan.matched, scan.unmatched)


class _Words:
    """Collects words: plain blanks end one, protected characters never do."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.current = ""

    def plain(self, text: str) -> None:
        for character in text:
            if character in GO_SPACE:
                if self.current:
                    self.done.append(self.current)
                    self.current = ""
            else:
                self.current += character

    def protected(self, text: str) -> None:
        self.current += text

    def finish(self) -> list[str]:
        if self.current:
            self.done.append(self.current)
            self.current = ""
        return self.done


class _Scan:
    """One pass over one word."""

    def __init__(self, rules: Lexer, source: str) -> None:
        self.rules = rules
        self.source = source
        self.at = 0
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()
        self._special: dict[str, Callable[[bool], str]] = {"$": self._dollar, "<": self._angle}
        if not rules.ignore_quotes:
            self._special |= {"'": self._single, '"': self._double}

    def peek(self) -> str:
        """The next character; '' at the end."""
        return self.source[self.at : self.at + 1]

    def take(self) -> str:
        """The next character, consumed; '' at the end."""
        character = self.peek()
        self.at += len(character)
        return character

    def until(self, stop: str, *, keep_escapes: bool) -> tuple[str, list[str]]:
        """Up to the stop character, which is consumed; '' is the end of the word."""
        text = ""
        words = _Words()
        while character := self.peek():
            if character == stop:
                self.at += 1
                return text, words.finish()
            special = self._special.get(character)
            if special is not None:
                piece = special(keep_escapes)
                text += piece
                (words.plain if character == "$" else words.protected)(piece)
                continue
            self.at += 1
            if character != self.rules.escape:
                words.plain(character)
                text += character
                continue
            if keep_escapes:
                words.protected(character)
                text += character
            character = self.take()
            words.protected(character)
            text += character
        if stop:
            raise ExpandError(f"unexpected end of statement while looking for matching {stop}")
        return text, words.finish()

    def _single(self, _keep_escapes: bool) -> str:
        end = self.source.find("'", self.at + 1)
        if end < 0:
            self.at = len(self.source)
            raise ExpandError("unexpected end of statement while looking for matching single-quote")
        inner = self.source[self.at + 1 : end]
        self.at = end + 1
        return f"'{inner}'" if self.rules.keep_quotes else inner

    def _double(self, keep_escapes: bool) -> str:
        self.at += 1
        quote = '"' if self.rules.keep_quotes else ""
        text = quote
        while character := self.peek():
            if character == '"':
                self.at += 1
                return text + quote
            if character == "$":
                text += self._dollar(keep_escapes)
                continue
            self.at += 1
            if character == self.rules.escape:
                if keep_escapes:
                    text += character
                following = self.peek()
                if not following:
                    break
                if following in ('"', "$", self.rules.escape):
                    self.at += 1
                    character = following
            text += character
        raise ExpandError("unexpected end of statement while looking for matching double-quote")

    def _angle(self, _keep_escapes: bool) -> str:
        """`<<` and the blanks behind it belong to one word: a here-document's name may follow."""
        self.at += 1
        if self.peek() != "<":
            return "<"
        self.at += 1
        start = self.at
        while self.peek() in ("\t", "\r", " ") and self.peek():
            self.at += 1
        return "<<" + self.source[start : self.at]

    def _name(self) -> str:
        first = self.peek()
        start = self.at
        if first.isdecimal():
            while self.peek().isdecimal():
                self.at += 1
        elif first and first in SPECIAL_PARAMETERS:
            self.at += 1
        else:
            while (c := self.peek()) and (c.isalpha() or c.isdecimal() or c == "_"):
                self.at += 1
        return self.source[start : self.at]

    def _value(self, name: str) -> str | None:
        value = self.rules.variables.get(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def _dollar(self, _keep_escapes: bool) -> str:
        self.at += 1
        if self.peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._value(name)
            if value is None:
                return "$" + name if self.rules.keep_unset else ""
            return value
        self.at += 1
        if not self.peek():
            raise ExpandError("syntax error: missing '}'")
        if self.peek() in "{}:":
            raise ExpandError("syntax error: bad substitution")
        name = self._name()
        operator = self.take()
        if operator == "}":
            value = self._value(name)
            if value is None:
                return f"${{{name}}}" if self.rules.keep_unset else ""
            return value
        if operator == "/":
            return self._replace(name)
        also_empty = operator == ":"
        if also_empty:
            operator = self.take()
        return self._modified(name, operator, also_empty=also_empty)

    def _word_until(self, stop: str, *, keep_escapes: bool, missing: str) -> str:
        try:
            return self.until(stop, keep_escapes=keep_escapes)[0]
        except ExpandError:
            if not self.peek():
                raise ExpandError(missing) from None
            raise

    def _modified(self, name: str, operator: str, *, also_empty: bool) -> str:
        if not operator:
            raise ExpandError("syntax error: missing '}'")
        shown = (":" if also_empty else "") + operator
        trims = operator in ("#", "%")
        if (operator not in ("+", "-", "?", "#", "%") and not also_empty) or (also_empty and trims):
            raise ExpandError(f"unsupported modifier ({shown}) in substitution")
        word = self._word_until("}", keep_escapes=trims, missing="syntax error: missing '}'")
        value = self._value(name)
        if value is None and self.rules.keep_unset:
            return f"${{{name}{shown}{word}}}"
        lacking = value is None or (also_empty and value == "")
        if operator == "-":
            return word if lacking else value or ""
        if operator == "+":
            return "" if lacking else word
        if operator == "?":
            if lacking:
                state = "unset" if value is None else "empty"
                raise ExpandError(f"{name}: {word or f'is not allowed to be {state}'}")
            return value or ""
        if trims:
            greedy = word.startswith(operator)
            pattern = word[1:] if greedy else word
            trim = _without_prefix if operator == "#" else _without_suffix
            return trim(pattern, value or "", greedy=greedy)
        raise ExpandError(f"unsupported modifier ({shown}) in substitution")

    def _replace(self, name: str) -> str:
        every = self.peek() == "/"
        if every:
            self.at += 1
        pattern = self._word_until(
            "/", keep_escapes=True, missing="syntax error: missing '/' in ${}"
        )
        replacement = self._word_until("}", keep_escapes=True, missing="syntax error: missing '}'")
        value = self._value(name)
        if value is None and self.rules.keep_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        expression = _pattern(pattern, greedy=True, anchored=False)
        return expression.sub(lambda _: replacement, value or "", count=0 if every else 1)


def _pattern(text: str, *, greedy: bool, anchored: bool) -> re.Pattern[str]:
    """A shell pattern of * and ? as a regular expression."""
    out = "^" if anchored else ""
    characters = iter(text)
    for character in characters:
        if character == "*":
            out += ".*" if greedy else ".*?"
        elif character == "?":
            out += "."
        elif character == "\\":
            following = next(characters, "")
            if following not in ("*", "?", "\\", "}", "/") or not following:
                raise ExpandError(
                    f"invalid pattern ({text}) in substitution: invalid escape '\\{following}'"
                )
            out += re.escape(following)
        else:
            out += re.escape(character)
    return re.compile(out)


def _without_prefix(pattern: str, value: str, *, greedy: bool) -> str:
    found = _pattern(pattern, greedy=greedy, anchored=True).search(value)
    return value[found.end() :] if found else value


def _without_suffix(pattern: str, value: str, *, greedy: bool) -> str:
    """The shortest suffix is the shortest prefix of what is reversed."""
    return _without_prefix(_reversed(pattern), value[::-1], greedy=greedy)[::-1]


def _reversed(pattern: str) -> str:
    """Reversed, each escaped character still behind its escape."""
    pieces = re.findall(r"\\.|.", pattern, re.DOTALL)
    return "".join(reversed(pieces))


_GO_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
    "\\": "\\\\", '"': '\\"',
}  # fmt: skip


def go_quote(text: str) -> str:
    """Go's strconv.Quote, which Docker's messages show texts in."""
    out = []
    for character in text:
        number = ord(character)
        if character in _GO_ESCAPES:
            out.append(_GO_ESCAPES[character])
        elif 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8
            out.append(f"\\x{number - 0xDC00:02x}")
        elif character == " " or character.isprintable():
            out.append(character)
        elif number < 0x20 or number == 0x7F:
            out.append(f"\\x{number:02x}")
        else:
            out.append(f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")
    return '"' + "".join(out) + '"'


def go_quote_rune(number: int) -> str:
    """Go's strconv.QuoteRune, which is how Docker's history shows a small number."""
    if not 0 <= number <= 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        return "'\ufffd'"
    character = chr(number)
    if character == "'":
        return "'\\''"
    return "'" + ('"' if character == '"' else go_quote(character)[1:-1]) + "'"
