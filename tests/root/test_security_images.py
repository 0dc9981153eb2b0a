"""Hostile images: what their links, files and declared volumes must not reach.

The rootfs is hostile, the host's directories are canaries: they must look the same afterwards.
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

FIFO, CHARACTER, LINK = tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A host directory; whatever the image does, nothing may appear in it or change."""
    directory = tmp_path / "canary"
    directory.mkdir()
    (directory / "kept").write_text("host secret\n")
    before = snapshot(directory)
    yield directory
    assert snapshot(directory) == before


def snapshot(directory: Path) -> list[tuple[str, int, int, str]]:
    rows = []
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        text = path.read_text() if path.is_file() and not path.is_symlink() else ""
        rows.append((str(path), status.st_mode, status.st_uid, text))
    return rows


class Image:
    """busybox with members replaced, imported under a name of its own and removed at the end."""

    def __init__(self, engine: EngineProcess, busybox_tar: Path, base: Path) -> None:
        self.engine = engine
        self.plain = busybox_tar
        self.base = base
        self.names: list[str] = []

    def make(
        self,
        *changes: str,
        links: dict[str, str] | None = None,
        files: dict[str, object] | None = None,
    ) -> str:
        replaced = {name.strip("/"): ("link", target) for name, target in (links or {}).items()}
        replaced |= {name.strip("/"): ("file", content) for name, content in (files or {}).items()}
        archive = self.base / f"image{len(self.names)}.tar"
        with tarfile.open(self.plain) as old, tarfile.open(archive, "w") as new:  # noqa: TID251
            for member in old:
                name = member.name.removeprefix("./").strip("/")
                if not any(name == gone or name.startswith(gone + "/") for gone in replaced):
                    new.addfile(member, old.extractfile(member) if member.isreg() else None)
            for name, (kind, content) in replaced.items():
                self.add(new, name, kind, content)
        image = f"hostile{len(self.names)}:latest"
        self.names.append(image)
        options = [word for change in changes for word in ("-c", change)]
        self.engine.docker("import", *options, str(archive), image)
        return image

    @staticmethod
    def add(archive: tarfile.TarFile, name: str, kind: str, content: object) -> None:
        member = tarfile.TarInfo(name)
        if kind == "link":
            member.type, member.linkname = LINK, str(content)
            archive.addfile(member)
        elif content is FIFO:
            member.type = FIFO
            archive.addfile(member)
        elif content is CHARACTER:
            member.type, member.devmajor, member.devminor, member.mode = CHARACTER, 1, 5, 0o666
            archive.addfile(member)
        else:
            data = str(content).encode()
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def hostile(engine: EngineProcess, busybox_tar: Path, tmp_path: Path) -> Iterator[Image]:
    image = Image(engine, busybox_tar, tmp_path)
    yield image
    ids = engine.docker("ps", "-aq", check=False).stdout.split()
    if ids:
        engine.docker("rm", "-f", "-v", *ids, check=False)
    if image.names:
        engine.docker("rmi", "-f", *image.names, check=False)


@pytest.mark.parametrize(
    "name",
    [
        "proc",
        "sys",
        "dev",
        "etc",
        "dev/pts",
        "dev/shm",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/hostname",
    ],
)
@pytest.mark.parametrize("shape", ["absolute", "relative"])
def test_links_at_the_places_that_are_mounted_on(
    engine: EngineProcess, hostile: Image, canary: Path, name: str, shape: str
) -> None:
    """CVE-2019-19921, 2023-27561, 2026-41579: mounts and nodes must land inside, or the start must fail."""
    target = str(canary) if shape == "absolute" else "../../../../../../../../.." + str(canary)
    if name.startswith("etc/"):
        target += "/kept"
    image = hostile.make(links={name: target})
    for terminal in ([], ["-t"]):
        script = f"echo x >/etc/hosts; cat {canary}/kept 2>/dev/null; stat -f -c %T /proc"
        done = engine.docker("run", "--rm", *terminal, image, "sh", "-c", script, check=False)
        assert "secret" not in done.stdout
        if done.returncode == 0:
            assert "proc" in done.stdout


def test_mounts_of_the_user_stay_inside(
    engine: EngineProcess, hostile: Image, canary: Path, tmp_path: Path
) -> None:
    """CVE-2015-3629, 2021-30465: destinations through links of the image."""
    image = hostile.make(links={"data": str(canary), "up": "../../../../../../.." + str(canary)})
    source = tmp_path / "source"
    source.mkdir()
    for options in (
        ["-v", f"{source}:/data/inner"], ["-v", f"{source}:/up/inner"], ["--tmpfs", "/data/tmp"], ["-v", "/data/volume"],
        ["--mount", f"type=bind,src={source},dst=/data"], ["-w", "/data/work"],
    ):  # fmt: skip
        engine.docker("run", "--rm", *options, image, "true", check=False)
    assert list(source.iterdir()) == []


@pytest.mark.parametrize(
    "destination", ["/proc", "/proc/self", "/proc/sys", "/proc/self/attr", "/sys/fs"]
)
def test_nothing_is_mounted_over_proc(
    engine: EngineProcess, tmp_path: Path, destination: str
) -> None:
    """CVE-2015-3631, 2019-16884: files that the security modules are driven by."""
    done = engine.docker(
        "run", "--rm", "-v", f"{tmp_path}:{destination}", "busybox:latest", "true", check=False
    )
    if destination.startswith("/proc"):
        assert done.returncode != 0


@pytest.mark.parametrize(
    "volume",
    ["/proc", "/sys", "/dev", "/", "/../../etc", "/proc/self/attr", "relative", "/a/../../proc"],
)
def test_volumes_that_an_image_declares(engine: EngineProcess, hostile: Image, volume: str) -> None:
    """CVE-2022-23648: copy-up must not read, and the mount must not hide, what is not the image's."""
    image = hostile.make(f'VOLUME ["{volume}"]')
    script = "head -c 30 /etc/shadow 2>/dev/null; [ -e /proc/self/status ] && echo proc"
    done = engine.docker("run", "--rm", image, "sh", "-c", script, check=False)
    assert "root:" not in done.stdout
    if done.returncode == 0:
        assert done.stdout.strip().endswith("proc")


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({}, {"etc/passwd": "/proc/1/environ"}),
        ({}, {"etc/passwd": "../../../../../../etc/passwd"}),
        ({"etc/passwd": FIFO}, {}),
        ({"etc/passwd": CHARACTER}, {}),
        ({"etc/passwd": "root:x:0:0\n" * 3 + "a" * 2_000_000 + "\n"}, {}),
        ({"etc/group": FIFO}, {}),
    ],
)
def test_user_files_that_lead_out_block_or_never_end(
    engine: EngineProcess, hostile: Image, files: dict[str, object], links: dict[str, str]
) -> None:
    """CVE-2024-9676, 2026-47262: Docker itself hangs on a FIFO."""
    image = hostile.make(files=files, links=links)
    for user in ("root", "nosuchuser", "1000", "daemon:daemon"):
        done = engine.docker("run", "--rm", "--user", user, image, "true", check=False, timeout=20)
        if user == "nosuchuser":
            assert done.returncode != 0
            assert "unable to find user" in done.stderr
    assert engine.docker("run", "--rm", "busybox:latest", "echo", "alive").stdout == "alive\n"


def test_the_engine_runs_no_code_of_the_image(engine: EngineProcess, hostile: Image) -> None:
    """CVE-2019-14271: modules, resolvers and helpers that Python or libc would load after entering a root."""
    marker = "touch /tmp/marker"
    version = "usr/lib/python3.11"
    python = "open('/tmp/marker', 'w').close()\n"
    image = hostile.make(
        files={
            f"{version}/encodings/idna.py": python, f"{version}/traceback.py": python, "sitecustomize.py": python,
            "etc/nsswitch.conf": "passwd: evil\ngroup: evil\n", "usr/bin/xz": f"#!/bin/sh\n{marker}\n",
            "usr/bin/unpigz": f"#!/bin/sh\n{marker}\n", "etc/ld.so.preload": "/lib/evil.so\n",
        }
    )  # fmt: skip
    container = engine.docker("run", "-d", "-u", "daemon", image, "sleep", "1000").stdout.strip()
    engine.docker("exec", "-u", "nosuchuser", container, "true", check=False)
    engine.docker("cp", f"{container}:/etc/nsswitch.conf", "-", check=False)
    engine.docker("exec", container, "true")
    assert "marker" not in engine.docker("exec", container, "ls", "/tmp").stdout


def test_a_joining_process_is_opaque(engine: EngineProcess) -> None:
    """CVE-2016-9962, 2019-5736: while Python joins, a container's root looks at every process it can see."""
    # A process counts while its name is the engine's before and after the look: in between it may have become
    # the container's own.
    watch = """
        ours() { name=; read -r name <$1/comm; case $name in sampan*|python*) return 0;; esac; return 1; } 2>/dev/null
        while [ ! -e /tmp/stop ]; do
            for p in /proc/[0-9]*; do
                ours $p || continue
                seen=$seen.
                e=$(readlink $p/exe); m=$(head -c 1 $p/maps); f=$(readlink $p/fd/*); v=$(head -c 1 $p/environ)
                [ "$e" = /bin/busybox ] && continue
                ours $p && [ -n "$e$m$f$v" ] && echo "LEAK exe=$e maps=$m fd=$f environ=$v"
            done 2>/dev/null
        done
        echo "end $seen"
    """
    container = engine.docker("run", "-d", "busybox:latest", "sh", "-c", watch).stdout.strip()
    failures: list[str] = []

    def join() -> None:
        for _ in range(15):
            done = engine.docker("exec", container, "true", check=False)
            if done.returncode != 0:
                failures.append(done.stderr)

    threads = [threading.Thread(target=join) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.docker("exec", container, "touch", "/tmp/stop")
    assert engine.docker("wait", container).stdout.strip() == "0"
    shown = engine.docker("logs", container).stdout
    assert not failures
    assert "LEAK" not in shown, shown
    assert shown.startswith("end")


def test_security_settings_inside_an_image_config_mean_nothing(
    engine: EngineProcess, hostile: Image
) -> None:
    """CVE-2014-6408, 2026-53488: labels that some engine once took for settings."""
    image = hostile.make(
        "LABEL io.sampan.privileged=true", "LABEL org.systemd.property.Slice=x", "ENV HTTP_PROXY=x"
    )
    shown = engine.docker("run", "--rm", image, "grep", "CapEff", "/proc/self/status").stdout
    assert shown.split() == ["CapEff:", "00000000a80425fb"]
