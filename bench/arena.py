"""What every measurement stands on: the engines, the timing of a command, rounds in turn, and how figures are shown."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.engine import EngineProcess
from tests.support.images import PATH, busybox_rootfs, tar_of

REPOSITORY = Path(__file__).resolve().parents[1]
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
