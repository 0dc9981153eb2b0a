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
from images import bench_images  # noqa: E402  beside this file
from networks import bench_networks  # noqa: E402  beside this file

from tests.support.engine import EngineProcess  # noqa: E402  the path is set above
from tests.support.images import PATH, busybox_rootfs, tar_of  # noqa: E402

Command = list[str]
Rows = dict[str, list[float]]


def timed(command: Command, environment: dict[str, str], *, where: str | None = None) -> float:
    """Milliseconds of one run. Raises where it fails: a fast failure is no figure."""
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    elapsed = (time.perf_counter() - start) * 1000
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-500:]}")
    return elapsed


def interleave(contestants: dict[str, Callable[[], float]], rounds: int, *, idle_s: float) -> Rows:
    """Every contestant once a round, after one round that does not count."""
    rows: Rows = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            time.sleep(idle_s)
            elapsed = run()
            if number:
                rows[name].append(elapsed)
    return rows


def show(title: str, rows: Rows, ours: str) -> None:
    """Medians, and how many times our median each peer takes."""
    print(f"\n{title}")
    base = statistics.median(rows[ours])
    for name, values in rows.items():
        median = statistics.median(values)
        print(
            f"  {name:<34} min {min(values):8.1f}  median {median:8.1f} ms   {median / base:5.1f}x"
        )


class Arena:
    """The engines and the files that the measurements need."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.environment = dict(os.environ) | {"DOCKER_BUILDKIT": "0"}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.tar = tar_of(busybox_rootfs(base / "rootfs"), base / "busybox.tar")
        self.engine = EngineProcess(base / "engine").start()
        self.ours = self.environment | {
            "SAMPAN_HOST": self.engine.host,
            "DOCKER_HOST": self.engine.host,
        }
        self.engine.docker(
            "import", "-c", 'CMD ["sh"]', "-c", f"ENV {PATH}", str(self.tar), "busybox"
        )
        self.docker_host = ""
        self.missing: list[str] = []
        self._docker: subprocess.Popen[bytes] | None = None
        self._start_docker()

    def _start_docker(self) -> None:
        given = (os.environ.get("REFERENCE_HOST", "").split() or [""])[0]
        if not given and shutil.which("dockerd"):
            given = f"unix://{self.base}/docker.sock"
            self._docker = subprocess.Popen(
                ["dockerd", "--data-root", str(self.base / "docker"), "--exec-root", str(self.base / "docker-run"),
                 "--pidfile", str(self.base / "docker.pid"), "-H", given],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        if not given:
            self.missing.append("docker")
            return
        self.theirs = self.environment | {"DOCKER_HOST": given}
        for _ in range(100):
            if (
                subprocess.run(
                    ["docker", "version"], env=self.theirs, capture_output=True, check=False
                ).returncode
                == 0
            ):
                break
            time.sleep(0.2)
        command = [
            "docker",
            "import",
            "-c",
            'CMD ["sh"]',
            "-c",
            f"ENV {PATH}",
            str(self.tar),
            "busybox",
        ]
        if subprocess.run(command, env=self.theirs, capture_output=True, check=False).returncode:
            self.missing.append("docker")
            return
        self.docker_host = given

    def close(self) -> None:
        """End the engines that were started here."""
        self.engine.stop()
        if self._docker is not None:
            self._docker.terminate()
            self._docker.wait(timeout=30)

    def sampan(self, *words: str) -> Callable[[], float]:
        command = [str(REPOSITORY / "sampan"), *words]
        return lambda: timed(command, self.ours)

    def docker_on_ours(self, *words: str) -> Callable[[], float]:
        return lambda: timed(["docker", *words], self.ours)

    def docker(self, *words: str) -> Callable[[], float]:
        return lambda: timed(["docker", *words], self.theirs)


def with_podman(arena: Arena) -> bool:
    """Podman with the same image; without CAP_SYS_RESOURCE it wants its limits named."""
    if shutil.which("podman") is None:
        arena.missing.append("podman")
        return False
    done = subprocess.run(
        ["podman", "import", "-c", 'CMD ["sh"]', str(arena.tar), "busybox"],
        env=arena.environment, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


PODMAN = ("podman", "run", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--rm")


def leave_out_who_fails(arena: Arena, contestants: dict[str, Callable[[], float]]) -> None:
    """A peer that cannot run on this machine is named, with its own words, and not measured."""
    for name in list(contestants):
        try:
            contestants[name]()
        except RuntimeError as error:
            if name.startswith("sampan"):
                raise
            arena.missing.append(f"{name} ({str(error)[-120:].strip()})")
            del contestants[name]


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
