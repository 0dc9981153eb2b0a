"""diff, export, port, top, update."""

from __future__ import annotations

import posix

from sampan.cli.client import escape
from sampan.cli.failures import Failure
from sampan.cli.session import emit, out, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session


def diff(session: Session, options: Options) -> int:
    if not options.args[0]:
        raise Failure("container name cannot be empty")
    changes = session.client.json(f"/containers/{escape(options.args[0])}/changes")
    for change in changes or []:
        out(f"{'CAD'[change['Kind']]} {change['Path']}")
    return 0


def export(session: Session, options: Options) -> int:
    from sampan.cli.images import check_output, write_out

    path = options.text("output")
    if not path and posix.isatty(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    check_output(path, "failed to export container")
    reply = session.client.call("GET", f"/containers/{escape(options.args[0])}/export")
    write_out(reply.chunks(), path, "failed to export container")
    return 0


def port(session: Session, options: Options) -> int:
    name = options.args[0]
    found: dict[str, Any] = session.client.json(f"/containers/{escape(name)}/json")
    ports: dict[str, Any] = (found.get("NetworkSettings") or {}).get("Ports") or {}
    if len(options.args) == 2:
        lines = _one(ports, options.args[1], name)
    else:
        lines = [
            f"{inside} -> {_joined(b)}" for inside, bound in ports.items() for b in bound or []
        ]
    from sampan.cli.networks import natural

    emit("".join(f"{line}\n" for line in sorted(lines, key=natural)))
    return 0


def _one(ports: dict[str, Any], wanted: str, name: str) -> list[str]:
    number, _, protocol = wanted.partition("/")
    from sampan.cli.values import go_uint

    try:
        go_uint(number, 16, 10)
    except ValueError as error:
        raise Failure(f"Error: invalid port ({number}): {error}") from None
    bound = ports.get(f"{number}/{protocol or 'tcp'}")
    if not bound:
        raise Failure(f"Error: No public port '{wanted}' published for {name}")
    return [_joined(binding) for binding in bound]


def _joined(binding: dict[str, str]) -> str:
    ip = binding["HostIp"]
    return f"[{ip}]:{binding['HostPort']}" if ":" in ip else f"{ip}:{binding['HostPort']}"


def top(session: Session, options: Options) -> int:
    from sampan.cli.table import columns

    query = {"ps_args": " ".join(options.args[1:])}
    found = session.client.json(f"/containers/{escape(options.args[0])}/top", query=query)
    rows = [found["Titles"], *(found.get("Processes") or [])]
    emit(columns(["\t".join(row) for row in rows], least=20))
    return 0


def update(session: Session, options: Options) -> int:
    from sampan.cli.create import Wrong, restart_policy

    if not options.given:
        raise Failure("you must provide one or more flags when using this command")
    numbers = {
        "BlkioWeight": "blkio-weight",
        "CpuShares": "cpu-shares",
        "Memory": "memory",
        "MemoryReservation": "memory-reservation",
        "MemorySwap": "memory-swap",
        "CpuPeriod": "cpu-period",
        "CpuQuota": "cpu-quota",
        "CpuRealtimePeriod": "cpu-rt-period",
        "CpuRealtimeRuntime": "cpu-rt-runtime",
        "NanoCpus": "cpus",
    }
    body: dict[str, Any] = {field: options.number(flag) for field, flag in numbers.items()}
    body["CpusetCpus"] = options.text("cpuset-cpus")
    body["CpusetMems"] = options.text("cpuset-mems")
    if options.number("pids-limit"):
        body["PidsLimit"] = options.number("pids-limit")
    try:
        restart = options.text("restart")
        body["RestartPolicy"] = (
            restart_policy(restart) if restart else {"Name": "", "MaximumRetryCount": 0}
        )
    except Wrong as error:
        raise Failure(str(error)) from None
    status = 0
    warnings: list[str] = []
    wrong: list[Failure] = []
    for name in options.args:
        try:
            answer = session.client.post(f"/containers/{escape(name)}/update", body=body)
        except Failure as failure:
            wrong.append(failure)
            continue
        out(name)
        warnings += (answer or {}).get("Warnings") or []
    for warning in warnings:
        out(warning)
    for problem in wrong:
        warn(problem.message)
        status = 1
    return status
