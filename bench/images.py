"""Images beside the peers: `load` from a tar and a tar.gz, `pull` from a registry on loopback, `images` of a thousand.

    bench/run images                       with $REFERENCE_HOST: sockets of Docker engines, separated by blanks
    SAMPAN_BENCH_LAYERS=1 bench/run images one layer instead of four
    SAMPAN_BENCH_PODMAN="podman"           another command that is podman

The image has 20,000 files in 1,000 directories, 300 MB, which gzip makes 130 MB of, as is usual for distributions. Every
contestant gets the same file through the same docker client (podman by its own), and what a run wrote is on disk before the
next one begins, so that nobody waits for another's dirty pages.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from arena import Arena, interleave, leave_out_who_fails, show, timed

from sampan.storage.tar import DIRECTORY, FILE, Entry
from sampan.storage.tar_writer import TarWriter
from tests.support.engine import EngineProcess
from tests.support.realregistry import RealRegistry

FILES = 20_000
BYTES = 300_000_000
NAME = "bench-many"
THOUSAND = 1000


def layer_tar(source: random.Random, files: range) -> bytes:
    """One layer: files of 1 to 45 KB, somewhat less than half of which does not compress, in directories of twenty."""
    stream = io.BytesIO()
    archive = TarWriter(stream.write)
    average = BYTES // FILES
    for number in files:
        folder = b"usr/share/d%d" % (number // 20)
        if number % 20 == 0:
            archive.add(_entry(folder, DIRECTORY, 0o755))
        size = int(average * source.choice((0.1, 0.2, 0.4, 0.6, 1.0, 1.7, 3.0)))
        text = b"the quick brown fox jumps over the lazy dog, file %d\n" % number
        content = source.randbytes(size * 43 // 100)
        content += (text * (size // len(text) + 1))[: size - len(content)]
        archive.add(_entry(folder + b"/f%d" % number, FILE, 0o644, size), content)
    archive.close()
    return stream.getvalue()


def _entry(name: bytes, kind: bytes, mode: int, size: int = 0) -> Entry:
    entry = Entry(name, kind)
    entry.mode, entry.size, entry.stored = mode, size, size
    entry.mtime_ns = 1_700_000_000_000_000_000
    return entry


def archive_of(target: Path, layers: dict[str, bytes], images: dict[str, list[str]]) -> Path:
    """What `docker save` writes (Docker Image Specification 1.2): layers by name, images as tags with layers' names."""
    with target.open("wb") as file:
        archive = TarWriter(file.write)
        diff_ids = {}
        for name, data in layers.items():
            diff_ids[name] = "sha256:" + hashlib.sha256(data).hexdigest()
            archive.add(_entry(name.encode(), FILE, 0o644, len(data)), data)
        lines = []
        for tag, names in images.items():
            document = {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"], "Labels": {"tag": tag}},
                "rootfs": {"type": "layers", "diff_ids": [diff_ids[name] for name in names]},
            }
            config = json.dumps(document).encode()
            member = hashlib.sha256(config).hexdigest() + ".json"
            archive.add(_entry(member.encode(), FILE, 0o644, len(config)), config)
            lines.append({"Config": member, "RepoTags": [tag], "Layers": names})
        manifest = json.dumps(lines).encode()
        archive.add(_entry(b"manifest.json", FILE, 0o644, len(manifest)), manifest)
        archive.close()
    return target


def image_archive(target: Path, count: int) -> Path:
    """The image of 20,000 files, in so many layers; always the same bytes."""
    source = random.Random(4)
    step = FILES // count
    layers = {
        f"{number}/layer.tar": layer_tar(source, range(number * step, (number + 1) * step))
        for number in range(count)
    }
    return archive_of(target, layers, {f"{NAME}:latest": list(layers)})


class Contestant:
    """One engine: how it loads, pulls and forgets."""

    def __init__(self, environment: dict[str, str], client: list[str], *insecure: str) -> None:
        self.environment = environment
        self.client = client
        self.insecure = insecure  # what makes a pull take a registry without TLS

    def timed(self, *words: str) -> float:
        os.sync()
        return timed([*self.client, *words], self.environment)

    def quietly(self, *words: str) -> None:
        subprocess.run(
            [*self.client, *words], env=self.environment, capture_output=True, check=False
        )

    def load(self, archive: Path) -> float:
        elapsed = self.timed("load", "-q", "-i", str(archive))
        self.forget(NAME, f"localhost/{NAME}")
        return elapsed

    def pull(self, name: str, *, forget: bool = True) -> float:
        elapsed = self.timed("pull", "-q", *self.insecure, name)
        if forget:
            self.forget(name)
        return elapsed

    def forget(self, *names: str) -> None:
        for name in names:
            self.quietly("rmi", "-f", name)


def contestants(arena: Arena, overlay: EngineProcess) -> dict[str, Contestant]:
    """Ours over both snapshotters first, then whoever is here."""
    docker = ["docker"]
    found = {
        "sampan, erofs": Contestant(arena.ours, docker),
        "sampan, overlay": Contestant(arena.environment | {"DOCKER_HOST": overlay.host}, docker),
    }
    for host in os.environ.get("REFERENCE_HOST", arena.docker_host).split():
        environment = arena.environment | {"DOCKER_HOST": host}
        version = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            env=environment, capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
        found[f"docker {version}"] = Contestant(environment, docker)
    podman = shlex.split(os.environ.get("SAMPAN_BENCH_PODMAN", "podman"))
    if shutil.which(podman[0]):
        found["podman"] = Contestant(arena.environment, podman, "--tls-verify=false")
    else:
        arena.missing.append("podman")
    return found


def bench_images(arena: Arena, rounds: int) -> None:
    """Every row of this file; few rounds, since one load of a peer takes ten seconds."""
    layers = int(os.environ.get("SAMPAN_BENCH_LAYERS", "4"))
    plain = image_archive(arena.base / "many.tar", layers)
    packed = arena.base / "many.tar.gz"
    with plain.open("rb") as source, gzip.open(packed, "wb", 6) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    overlay = EngineProcess(arena.base / "overlay", "--storage-driver", "overlay").start()
    try:
        engines = contestants(arena, overlay)
        ours = "sampan, erofs"
        for archive in (plain, packed):
            runs: dict[str, Callable[[], float]] = {
                name: lambda engine=engine, archive=archive: engine.load(archive)  # type: ignore[misc]
                for name, engine in engines.items()
            }
            leave_out_who_fails(arena, runs)
            size = archive.stat().st_size // 1_000_000
            title = f"load {archive.name}: {FILES} files, {layers} layers, {size} MB"
            show(title, interleave(runs, min(rounds, 3), idle_s=0.0), ours)
        if shutil.which("docker-registry"):
            with RealRegistry(arena.base / "registry") as registry:
                _bench_pull(arena, registry.host, plain, engines, rounds)
        else:
            arena.missing.append("docker-registry")
        _bench_list(arena)
    finally:
        overlay.stop()


def _bench_pull(
    arena: Arena, host: str, plain: Path, engines: dict[str, Contestant], rounds: int
) -> None:
    name = f"{host}/{NAME}"
    arena.engine.docker("load", "-q", "-i", str(plain))
    arena.engine.docker("tag", NAME, name)
    arena.engine.docker("push", "-q", name, timeout=300)
    arena.engine.docker("rmi", NAME, name)
    runs: dict[str, Callable[[], float]] = {
        who: lambda engine=engine: engine.pull(name)  # type: ignore[misc]
        for who, engine in engines.items()
    }
    leave_out_who_fails(arena, runs)
    show("pull, gzip, loopback", interleave(runs, min(rounds, 3), idle_s=0.0), "sampan, erofs")
    again: dict[str, Callable[[], float]] = {}
    for who in runs:
        engines[who].quietly("pull", "-q", *engines[who].insecure, name)
        again[who] = lambda engine=engines[who]: engine.pull(name, forget=False)  # type: ignore[misc]
    show("pull of what is there", interleave(again, rounds, idle_s=0.0), "sampan, erofs")
    for who in runs:
        engines[who].forget(name)


def _bench_list(arena: Arena) -> None:
    """The engine alone: the request by a raw client, a thousand images with a configuration each."""
    import statistics
    import time

    target = archive_of(
        arena.base / "thousand.tar",
        {"layer.tar": layer_tar(random.Random(1), range(1))},
        {f"bench-list:{number}": ["layer.tar"] for number in range(THOUSAND)},
    )
    start = time.perf_counter()
    arena.engine.docker("load", "-q", "-i", str(target), timeout=300)
    print(f"\nload of {THOUSAND} images that share a layer: {time.perf_counter() - start:.1f} s")
    arena.engine.stop()
    arena.engine.start()
    first = _get(arena.engine, "/images/json")
    later = [_get(arena.engine, "/images/json") for _ in range(10)]
    print(f"images of {THOUSAND}, engine alone: first after a start {first:.1f} ms")
    print(f"  median of the next ten {statistics.median(later):.1f} ms")


def _get(engine: EngineProcess, path: str) -> float:
    """Milliseconds of one GET by a client that does nothing but read."""
    import http.client
    import socket
    import time

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine.socket))
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    length = len(answer.read())
    elapsed = (time.perf_counter() - start) * 1000
    connection.close()
    if answer.status != 200 or not length:
        raise RuntimeError(f"GET {path}: {answer.status}")
    return elapsed
