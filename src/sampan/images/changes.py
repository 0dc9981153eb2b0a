"""`--change`: the Dockerfile instructions that `import` and `commit` take, applied to a run configuration.

Each instruction is a function from configuration to configuration; none runs anything. The grammar is that of
a Dockerfile line: shell or JSON form, quotes, `KEY=value` pairs. Source: "docker commit", option --change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from sampan import units
from sampan.errors import InvalidArgument
from sampan.spec.image import Healthcheck, RunConfig
from sampan.spec.reference import quoted

_WORD = re.compile(r"""\s*((?:"(?:[^"\\]|\\.)*"|'[^']*'|\\.|[^\s"'\\])+)""")
_PIECE = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'|([^"'\\]+)""")
_ESCAPED = re.compile(r"""\\(["\\])""")
_VARIABLE = re.compile(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*(?::[-+][^}]*)?\})", re.ASCII)
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_decode_words = msgspec.json.Decoder(tuple[str, ...])

Change = Callable[[RunConfig, str], RunConfig]
_replace = msgspec.structs.replace


def apply_changes(config: RunConfig, changes: Iterable[str]) -> RunConfig:
    """One instruction after another; InvalidArgument for one that is unknown or malformed."""
    for text in changes:
        if not text.strip():
            raise InvalidArgument("file with no instructions")
        for line in text.splitlines():
            name, _, rest = line.strip().partition(" ")
            if not name or name.startswith("#"):
                continue
            change = _CHANGES.get(name.upper())
            if change is None:
                raise InvalidArgument(f"{name.upper()} is not a valid change command")
            config = change(config, rest.strip())
    return config


def words_of(text: str, variables: Mapping[str, str] | None = None) -> list[str]:
    """Split as a shell would, quotes removed; with variables, `$NAME` outside of single quotes is what they say."""
    found, position = [], 0
    while position < len(text.rstrip()):
        match = _WORD.match(text, position)
        if match is None:
            raise InvalidArgument(f"unterminated quote in {quoted(text)}")
        found.append(_PIECE.sub(lambda piece: _unquoted(piece, variables), match[1]))
        position = match.end()
    return found


def _unquoted(piece: re.Match[str], variables: Mapping[str, str] | None) -> str:
    escaped, double, single, plain = piece.groups()
    if escaped is not None:
        return str(escaped)
    if single is not None:
        return str(single)
    return "".join(
        _expanded(part, variables) if part[:1] == "$" and variables is not None else part
        for part in _VARIABLE.split(plain if double is None else _ESCAPED.sub(r"\1", double))
    )


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-else}`, `${NAME:+then}`."""
    name, operator, other = word.strip("${}"), "", ""
    for mark in (":-", ":+"):
        if mark in name:
            name, operator, other = name.partition(mark)
    value = variables.get(name, "")
    if operator == ":-":
        return value or other
    if operator == ":+":
        return other if value else ""
    return value


def _variables(config: RunConfig) -> dict[str, str]:
    lines = (line.partition("=") for line in config.env or ())
    return {key: value for key, _, value in lines}


def _json_words(text: str) -> tuple[str, ...] | None:
    if not text.startswith("["):
        return None
    try:
        return _decode_words.decode(text)
    except msgspec.ValidationError:
        raise InvalidArgument(
            "when using JSON array syntax, arrays must be comprised of strings only"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _command(text: str, config: RunConfig) -> tuple[str, ...]:
    found = _json_words(text)
    if found is not None:
        return found
    return (*(config.shell or ("/bin/sh", "-c")), text) if text else ()


def _cmd(config: RunConfig, text: str) -> RunConfig:
    return _replace(config, cmd=_command(text, config))


def _entrypoint(config: RunConfig, text: str) -> RunConfig:
    return _replace(config, entrypoint=_command(text, config) or None)


def _pairs(name: str, text: str, config: RunConfig) -> list[tuple[str, str]]:
    words = words_of(_some(name, text), _variables(config))
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value:
            raise InvalidArgument(f"{name} must have two arguments")
        return [(key, value.strip())]
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgument(
                f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value"
            )
        if not key:
            raise InvalidArgument(f"{name} names can not be blank")
        pairs.append((key, value))
    return pairs


def _env(config: RunConfig, text: str) -> RunConfig:
    env = list(config.env or ())
    for key, value in _pairs("ENV", text, config):
        line = f"{key}={value}"
        for number, old in enumerate(env):
            if old.partition("=")[0] == key:
                env[number] = line
                break
        else:
            env.append(line)
    return _replace(config, env=tuple(env))


def _label(config: RunConfig, text: str) -> RunConfig:
    return _replace(config, labels={**(config.labels or {}), **dict(_pairs("LABEL", text, config))})


def _expose(config: RunConfig, text: str) -> RunConfig:
    ports = dict(config.exposed_ports or {})
    for word in words_of(_some("EXPOSE", text), _variables(config)):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not match or not 0 < first <= last <= 65535:
            raise InvalidArgument(f"Invalid containerPort: {word}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    return _replace(config, exposed_ports=ports)


def _user(config: RunConfig, text: str) -> RunConfig:
    return _replace(config, user=_one("USER", text, config))


def _volume(config: RunConfig, text: str) -> RunConfig:
    found = _json_words(_some("VOLUME", text))
    paths = list(found) if found is not None else words_of(text, _variables(config))
    if not paths or not all(path.strip() for path in paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    volumes = {**(config.volumes or {}), **{path.strip(): {} for path in paths}}
    return _replace(config, volumes=volumes)


def _workdir(config: RunConfig, text: str) -> RunConfig:
    path = _one("WORKDIR", text, config)
    if not path.startswith("/"):
        path = f"{config.working_dir.rstrip('/')}/{path}"
    return _replace(config, working_dir=path)


def _onbuild(config: RunConfig, text: str) -> RunConfig:
    name = _some("ONBUILD", text).partition(" ")[0].upper()
    if name in {"ONBUILD", "FROM", "MAINTAINER"}:
        raise InvalidArgument(f"{name} isn't allowed as an ONBUILD trigger")
    return _replace(config, on_build=(*(config.on_build or ()), text))


def _stopsignal(config: RunConfig, text: str) -> RunConfig:
    return _replace(config, stop_signal=_one("STOPSIGNAL", text, config))


def _healthcheck(config: RunConfig, text: str) -> RunConfig:
    options: dict[str, int] = {}
    text = _some("HEALTHCHECK", text)
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        text = text.strip()
        key, _, value = option[2:].partition("=")
        if key == "retries":
            retries = units.parse_uint(value, highest=1 << 31)
            if retries is None:
                raise InvalidArgument(f"invalid value for --retries: {quoted(value)}")
            options["retries"] = retries
        elif key in {"interval", "timeout", "start-period", "start-interval"}:
            options[key.replace("-", "_")] = units.parse_duration(value)
        else:
            raise InvalidArgument(f"unknown flag: {key}")
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE" and not rest:
        return _replace(config, healthcheck=Healthcheck(test=("NONE",)))
    if kind.upper() != "CMD" or not rest.strip():
        raise InvalidArgument(f"Unknown type {quoted(kind)} in HEALTHCHECK (try CMD)")
    command = _json_words(rest.strip())
    test = ("CMD", *command) if command is not None else ("CMD-SHELL", rest.strip())
    return _replace(config, healthcheck=Healthcheck(test=test, **options))


def _some(name: str, text: str) -> str:
    if not text:
        raise InvalidArgument(f"{name} requires at least one argument")
    return text


def _one(name: str, text: str, config: RunConfig) -> str:
    """The rest of the line, blanks inside kept."""
    if not text:
        raise InvalidArgument(f"{name} requires exactly one argument")
    return " ".join(words_of(text, _variables(config)))


_CHANGES: dict[str, Change] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
