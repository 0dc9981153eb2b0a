"""Measure Sampan and its peers side by side: every round runs every contestant once, so that a machine that drifts
drifts for all. Prints medians and ratios; asserts nothing.

    run         one container that ends at once: our command line, the docker client on our socket, docker, podman
    exec        one command in a running container
    oci         `run` of a minimal bundle: sampan-oci, runc, crun, bubblewrap
    build       ten RUN true, uncached and cached
    images      load, pull and list, over both snapshotters (images.py)
    networks    what an attachment and a port add, throughput, names, 200 containers (networks.py)
    memory      private memory of an idle container's processes

cold: half a second idle before each; hot: back to back. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "src")]

from api import compare  # noqa: E402  beside this file
from arena import (  # noqa: E402  beside this file
    PODMAN,
    Arena,
    interleave,
    leave_out_who_fails,
    show,
    timed,
    with_podman,
)
from images import bench_images  # noqa: E402  beside this file
from networks import bench_networks  # noqa: E402  beside this file


def bench_run(arena: Arena, rounds: int) -> None:
    podman = with_podman(arena)
    for network in ("bridge", "host"):
        words = ("run", "--rm", "--network", network, "busybox", "true")
        contestants = {
            "sampan": arena.sampan(*words),
            "docker client on sampan": arena.docker_on_ours(*words),
        }
        if arena.docker_host:
            contestants["docker"] = arena.docker(*words)
        if podman:
            for runtime in ("crun", "runc"):
                command = [
                    "podman",
                    "--runtime",
                    runtime,
                    *PODMAN[1:],
                    "--network",
                    network,
                    "busybox",
                    "true",
                ]
                contestants[f"podman with {runtime}"] = lambda command=command: timed(  # type: ignore[misc]
                    command, arena.environment
                )
        leave_out_who_fails(arena, contestants)
        for name, idle in (("cold", 0.5), ("hot", 0.0)):
            show(
                f"run --rm, network {network}, {name}",
                interleave(contestants, rounds, idle_s=idle),
                "sampan",
            )


def bench_exec(arena: Arena, rounds: int) -> None:
    arena.engine.docker("run", "-d", "--name", "bench-exec", "busybox", "sleep", "1000")
    words = ("exec", "bench-exec", "true")
    contestants = {
        "sampan": arena.sampan(*words),
        "docker client on sampan": arena.docker_on_ours(*words),
    }
    if arena.docker_host:
        subprocess.run(
            ["docker", "run", "-d", "--name", "bench-exec", "busybox", "sleep", "1000"],
            env=arena.theirs, capture_output=True, check=True,
        )  # fmt: skip
        contestants["docker"] = arena.docker(*words)
    show("exec, cold", interleave(contestants, rounds, idle_s=0.5), "sampan")
    show("exec, hot", interleave(contestants, rounds, idle_s=0.0), "sampan")
    arena.engine.docker("rm", "-f", "bench-exec")
    if arena.docker_host:
        subprocess.run(
            ["docker", "rm", "-f", "bench-exec"], env=arena.theirs, capture_output=True, check=False
        )


def bench_oci(arena: Arena, rounds: int) -> None:
    """The same bundle for every runtime: an empty network namespace, no seccomp."""
    bundle = arena.base / "bundle"
    bundle.mkdir()
    (bundle / "rootfs").symlink_to(arena.base / "rootfs")
    ours = str(REPOSITORY / "scripts/sampan-oci")
    subprocess.run([ours, "spec"], cwd=bundle, env=arena.environment, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/true"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(arena.base / "rootfs"), "readonly": False}
    config["ociVersion"] = "1.0.2"
    (bundle / "config.json").write_text(json.dumps(config))
    contestants: dict[str, Callable[[], float]] = {}
    for name, program in (("sampan-oci", ours), ("runc", "runc"), ("crun", "crun")):
        if name == "sampan-oci" or shutil.which(program):
            command = [program, "--root", str(arena.base / f"{name}-state"), "run", f"bench-{name}"]
            contestants[name] = lambda command=command: timed(
                command, arena.environment, where=str(bundle)
            )  # type: ignore[misc]
        else:
            arena.missing.append(name)
    if shutil.which("bwrap"):
        command = ["bwrap", "--unshare-all", "--bind", str(arena.base / "rootfs"), "/", "/bin/true"]
        contestants["bubblewrap"] = lambda: timed(command, arena.environment)
    leave_out_who_fails(arena, contestants)
    show("oci run of a bundle, cold", interleave(contestants, rounds, idle_s=0.5), "sampan-oci")
    show("oci run of a bundle, hot", interleave(contestants, rounds, idle_s=0.0), "sampan-oci")


def bench_build(arena: Arena, rounds: int) -> None:
    context = arena.base / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\n" + "RUN true\n" * 10)
    for title, more in (("uncached", ("--no-cache",)), ("cached", ())):
        words = ("build", "-q", *more, str(context))
        contestants = {"docker client on sampan": arena.docker_on_ours(*words)}
        if arena.docker_host:
            contestants["docker (classic builder)"] = arena.docker(*words)
        rows = interleave(contestants, min(rounds, 3), idle_s=0.0)
        show(f"ten RUN true, {title}", rows, "docker client on sampan")


def private_kib(pid: str) -> int:
    """Private memory of a process, KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def bench_memory(arena: Arena, rounds: int) -> None:
    count = 20
    mark = str(arena.engine.run).encode()

    def processes() -> dict[str, int]:
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                except OSError:
                    continue
                if mark in command:
                    found[entry] = private_kib(entry)
        return found

    before = processes()
    for number in range(count):
        arena.engine.docker("run", "-d", "--name", f"bench-m{number}", "busybox", "sleep", "1000")
    time.sleep(1)
    shims = {pid: size for pid, size in processes().items() if pid not in before}
    print(f"\nmemory: {len(shims)} processes of ours for {count} idle containers")
    if shims:
        print(f"  private memory, median of each     {statistics.median(shims.values()):8.0f} KiB")
        print(f"  per container, all of them         {sum(shims.values()) / count:8.0f} KiB")
    arena.engine.docker("rm", "-f", *(f"bench-m{n}" for n in range(count)))


def bench_api(arena: Arena, rounds: int) -> None:
    paths = {"sampan": str(arena.engine.socket)}
    if arena.docker_host:
        paths["docker"] = arena.docker_host.removeprefix("unix://")
    compare(paths, rounds)


BENCHES = {
    "run": bench_run, "exec": bench_exec, "oci": bench_oci, "build": bench_build, "images": bench_images,
    "networks": bench_networks, "memory": bench_memory, "api": bench_api,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "name", nargs="*", choices=[*BENCHES, []], help="what to measure; everything by default"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sampan-bench-", ignore_cleanup_errors=True) as base:
        arena = Arena(Path(base))
        try:
            for name in options.name or BENCHES:
                BENCHES[name](arena, options.rounds)
        finally:
            arena.close()
        if arena.missing:
            print("\nnot measured, for it is not here: " + ", ".join(arena.missing))


if __name__ == "__main__":
    main()
