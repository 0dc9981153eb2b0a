"""What can be asked about a Dockerfile without building it: its checks, its parameters, its targets.

Each answer is both JSON for programs and text for people, in BuildKit's form (`result.json`, `result.txt`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.build import instructions as ins
from sampan.build.expand import expand
from sampan.build.lint import Finding
from sampan.build.run_mounts import mount_of
from sampan.build.stages import Stages
from sampan.errors import InvalidArgument, SampanError

if TYPE_CHECKING:
    from sampan.build.frontend import Source

Answer = dict[str, bytes]
VERSION = b"1.0.0"


def _location(start: int, end: int) -> dict[str, Any]:
    """A range a line, as BuildKit has them."""
    lines = range(start, max(start, end) + 1)
    return {"ranges": [{"start": {"line": n}, "end": {"line": n}} for n in lines]}


def _answer(body: dict[str, Any], text: str, **more: bytes) -> Answer:
    raw = msgspec.json.format(msgspec.json.encode(body), indent=2)
    found = {
        "result.json": raw,
        "result.txt": text.encode("utf-8", "surrogateescape"),
        "version": VERSION,
    }
    return found | {key.replace("_", "."): value for key, value in more.items()}


def _table(rows: Sequence[Sequence[str]], gap: int) -> str:
    """Columns wide enough for their longest text."""
    widths = [max(len(row[n]) for row in rows) + gap for n in range(len(rows[0]) - 1)]
    lines = (
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1]
        for row in rows
    )
    return "\n".join(lines) + "\n"


# --- checks


def lint(source: Source, warnings: Iterable[Finding], error: SampanError | None) -> Answer:
    """The findings, and what is wrong with the file."""
    found = list(warnings)
    body: dict[str, Any] = {
        "warnings": [
            {
                "ruleName": each.rule.name, "description": each.rule.description, "url": each.rule.url,
                "detail": each.text, "location": _location(each.start, each.end),
            }
            for each in found
        ] or None,
        "sources": [
            {"filename": source.name, "language": "Dockerfile", "data": base64.b64encode(source.data).decode()}
        ],
    }  # fmt: skip
    if error is not None:
        start, end = getattr(error, "line", 0), getattr(error, "end", 0)
        body["buildError"] = {
            "message": error.message,
            "location": _location(start, end) if start else {},
        }
    text = "".join(_shown(source, each) for each in found)
    return _answer(body, text, result_statuscode=b"1" if found or error is not None else b"0")


def _shown(source: Source, warning: Finding) -> str:
    address = f" - {warning.rule.url}" if warning.rule.url else ""
    head = f"\nWARNING: {warning.rule.name}{address}\n{warning.text}\n"
    return head + excerpt(source, warning.start, warning.end)


def excerpt(source: Source, start: int, end: int) -> str:
    """The lines of a Dockerfile around those that are meant, which are marked."""
    lines = source.data.decode("utf-8", "replace").split("\n")
    if not 1 <= start <= len(lines):
        return ""
    end = min(max(start, end), len(lines))
    first, last = start, end
    padding, added = (4 if start == end else 2), 0
    while added < padding:
        if first > 1:
            first, added = first - 1, added + 1
        if last != len(lines):
            last, added = last + 1, added + 1
        added += 1
    shown = "".join(
        f" {n:3d} | {'>>>' if start <= n <= end else '   '} {lines[n - 1]}\n"
        for n in range(first, last + 1)
    )
    rule = "-" * 20 + "\n"
    return f"{source.name}:{start}\n{rule}{shown}{rule}"


# --- targets


def targets(source: Source, program: ins.Program) -> Answer:
    """The stages that can be asked for."""
    rows, listed = [("TARGET", "DESCRIPTION")], []
    for number, stage in enumerate(program.stages):
        is_last = number == len(program.stages) - 1
        name = stage.name or ""
        entry: dict[str, Any] = {
            "name": name, "default": is_last, "description": stage.description, "base": stage.origin.base,
            "platform": stage.origin.platform,
        }  # fmt: skip
        listed.append(
            {k: v for k, v in entry.items() if v}
            | {"location": _location(stage.origin.start, stage.origin.end)}
        )
        shown = f"{name} (default)".strip() if is_last else name
        rows.append((shown, stage.description))
    body = {"targets": listed, "sources": [base64.b64encode(source.data).decode()]}
    return _answer(body, _table(rows, 1))


# --- parameters


class _Found(msgspec.Struct):
    args: dict[str, dict[str, Any]]
    secrets: dict[str, dict[str, Any]]
    ssh: dict[str, dict[str, Any]]


def outline(
    source: Source, program: ins.Program, stages: Stages, variables: dict[str, str]
) -> Answer:
    """Build arguments, secrets and agents that the target uses."""
    found = _Found({}, {}, {})
    wanted, _ = stages.reachable({})
    used: set[str] = set()
    for index in wanted:
        origin = stages.facts[index].stage.origin
        used |= {p for word in (origin.base, origin.platform) for p in _names(word)}
        for instruction in stages.facts[index].stage.instructions:
            _look(found, used, instruction, stages, variables)
    for argument in program.arguments:
        for pair in argument.pairs:
            if pair.key in used:
                value = variables.get(pair.key, "")
                found.args[pair.key] = _arg(pair, value, argument)
    stage = program.stages[stages.target]
    return _outline_answer(source, stage, found)


def _names(word: str) -> set[str]:
    from sampan.build.expand import Lexer

    try:
        made = Lexer({}).run(word)
    except InvalidArgument:
        return set()
    return made.unmatched | made.matched


def _arg(pair: ins.ArgPair, value: str, at: ins.Instruction) -> dict[str, Any]:
    return {
        "name": pair.key,
        "description": pair.description,
        "value": value,
        "location": _location(at.start, at.end),
    }


def _look(
    found: _Found,
    used: set[str],
    instruction: ins.Instruction,
    stages: Stages,
    variables: dict[str, str],
) -> None:
    if isinstance(instruction, ins.Arg):
        for pair in instruction.pairs:
            given = stages.request.args.get(pair.key)
            used.add(pair.key)
            if given is None and pair.default is None and pair.key in variables:
                continue  # it is the global one, told of where that stands
            value = given if given is not None else _safely(pair.default or "", variables)
            found.args.setdefault(pair.key, _arg(pair, value, instruction))
    elif isinstance(instruction, ins.Run):
        for flag in instruction.mounts:
            mount = mount_of(flag, lambda text: text)
            if mount.type not in ("secret", "ssh"):
                continue
            kept = found.secrets if mount.type == "secret" else found.ssh
            name = mount.id or mount.source or mount.target.rpartition("/")[2] or "default"
            entry: dict[str, Any] = {
                "name": name,
                "location": _location(instruction.start, instruction.end),
            }
            if mount.required:
                entry["required"] = True
            kept.setdefault(name, entry)


def _safely(text: str, variables: dict[str, str]) -> str:
    try:
        return expand(text, variables)
    except InvalidArgument:
        return text


def _outline_answer(source: Source, stage: ins.Stage, found: _Found) -> Answer:
    def listed(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        line = lambda entry: entry["location"]["ranges"][0]["start"]["line"]  # noqa: E731 - a key, here only
        return sorted(entries.values(), key=line)

    args, secrets, ssh = listed(found.args), listed(found.secrets), listed(found.ssh)
    parts = []
    if stage.name or stage.description:
        rows = [("TARGET:", stage.name or "(default)")]
        rows += [("DESCRIPTION:", stage.description)] if stage.description else []
        parts.append(_table(rows, 1))
    if args:
        rows3 = [("BUILD ARG", "VALUE", "DESCRIPTION")]
        rows3 += [(a["name"], a["value"], a["description"]) for a in args]
        parts.append(_table(rows3, 3))
    for title, entries in (("SECRET", secrets), ("SSH", ssh)):
        if entries:
            rows = [
                (title, "REQUIRED"),
                *((e["name"], "true" if e.get("required") else "") for e in entries),
            ]
            parts.append(_table(rows, 3))
    clean = [{k: v for k, v in a.items() if v} for a in args]
    body = {
        "name": stage.name, "description": stage.description, "args": clean, "secrets": secrets, "ssh": ssh,
        "sources": [base64.b64encode(source.data).decode()],
    }  # fmt: skip
    return _answer({k: v for k, v in body.items() if v}, "".join(part + "\n" for part in parts))
