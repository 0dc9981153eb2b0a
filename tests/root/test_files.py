"""`cp`, `export`, `diff` against containers that work against them, and with trees that are large."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

pytestmark = pytest.mark.root
TRIES = 60


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that no container was given."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "f").write_text("the host's")
    return place


def _is_mounted(place: Path) -> bool:
    return str(place) in Path("/proc/self/mountinfo").read_text()


class TestSwaps:
    """CVE-2018-15664: the container swaps a directory for a link to the host's path between look and use."""

    @pytest.fixture(autouse=True)
    def _swapping(self, engine: EngineProcess, outside: Path) -> Iterator[None]:
        script = (
            f"mkdir -p /d /parts{outside}; echo own > /d/f; echo own > /parts{outside}/f; "
            f"while :; do mv /d /e; ln -s {outside} /d; rm /d; ln -s /../..{outside} /d; rm /d; mv /e /d; done"
        )
        engine.docker("run", "-d", "--name", "swap", "busybox", "sh", "-c", script)
        yield
        engine.docker("rm", "-f", "swap")

    def test_reads_never_see_the_host(self, engine: EngineProcess, tmp_path: Path) -> None:
        seen = set()
        for number in range(TRIES):
            target = tmp_path / f"read-{number}"
            engine.docker("cp", "-L", "swap:/d/f", str(target), check=False)
            if target.is_file():
                seen.add(target.read_text())
        assert seen <= {"own\n"}

    def test_writes_never_reach_the_host(
        self, engine: EngineProcess, outside: Path, tmp_path: Path
    ) -> None:
        source = tmp_path / "new"
        source.mkdir()
        (source / "f").write_text("from the client")
        (source / "g").write_text("from the client")
        for _ in range(TRIES):
            engine.docker("cp", f"{source}/.", "swap:/d/", check=False)
        assert os.listdir(outside) == ["f"]
        assert (outside / "f").read_text() == "the host's"


class TestVolumes:
    def test_a_stopped_container_s_volumes_are_looked_into(
        self, engine: EngineProcess, tmp_path: Path
    ) -> None:
        """Also one that is mounted only while it is used."""
        disk = tmp_path / "disk"
        disk.mkdir()
        (disk / "f").write_text("bound")
        options = ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={disk}"]
        engine.docker("volume", "create", *options, "optioned")
        engine.docker("create", "--name", "still", "-v", "optioned:/o", "-v", "plain:/p", "busybox")
        (tmp_path / "new").write_text("put")
        for place in ("/o", "/p"):
            engine.docker("cp", str(tmp_path / "new"), f"still:{place}/new")
            engine.docker("cp", f"still:{place}/.", str(tmp_path / f"out{place[1]}"))
        assert (tmp_path / "outo/f").read_text() == "bound"
        assert (tmp_path / "outp/new").read_text() == "put"
        assert (disk / "new").read_text() == "put"
        end = time.monotonic() + 20  # a reader has all before the engine has put everything away
        while (mounted := _is_mounted(engine.root / "volumes/optioned")) and time.monotonic() < end:
            time.sleep(0.02)
        assert not mounted
        engine.docker("rm", "still")
        engine.docker("volume", "rm", "optioned", "plain")

    def test_an_exported_volume_comes_back_whole(
        self, engine: EngineProcess, tmp_path: Path
    ) -> None:
        script = (
            "cd /v; echo x > f; ln f hard; ln -s f soft; mkdir -m 700 d; chown 5:6 d; mkfifo p; "
            "mknod null c 1 3; chmod 4755 f; dd if=/dev/zero of=holes bs=1 count=1 seek=50M 2>/dev/null"
        )
        engine.docker("run", "--rm", "-v", "from:/v", "busybox", "sh", "-c", script)
        engine.sampan("volume", "export", "-o", str(tmp_path / "v.tar"), "from")
        assert (tmp_path / "v.tar").stat().st_size < 1 << 20
        engine.sampan("volume", "import", "to", str(tmp_path / "v.tar"))
        look = "cd /v; find . | sort | while read n; do stat -c '%n %F %a %u:%g %h %s %t:%T' $n; done; readlink soft; du -k holes | cut -f1"
        shown = [
            engine.docker("run", "--rm", "-v", f"{name}:/v", "busybox", "sh", "-c", look).stdout
            for name in ("from", "to")
        ]
        assert "character special" in shown[0]
        assert shown[0] == shown[1]
        engine.docker("volume", "rm", "from", "to")

    def test_a_device_node_in_a_volume_opens_no_device(self, engine: EngineProcess) -> None:
        """Making one is allowed (CAP_MKNOD), using one is not: the device cgroup counts, not the file."""
        numbers = os.stat("/dev/mem") if os.path.exists("/dev/mem") else None
        major, minor = (os.major(numbers.st_rdev), os.minor(numbers.st_rdev)) if numbers else (1, 1)
        script = f"mknod /v/mem c {major} {minor} && head -c 1 /v/mem"
        done = engine.docker(
            "run", "--rm", "-v", "nodes:/v", "busybox", "sh", "-c", script, check=False
        )
        assert "not permitted" in done.stderr
        again = engine.docker(
            "run", "--rm", "-v", "nodes:/v", "busybox", "head", "-c", "1", "/v/mem", check=False
        )
        assert "not permitted" in again.stderr
        engine.docker("volume", "rm", "nodes")


class TestLargeTrees:
    def _peak_kb(self, engine: EngineProcess) -> int:
        assert engine.process is not None
        status = Path(f"/proc/{engine.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def _reset_peak(self, engine: EngineProcess) -> None:
        assert engine.process is not None
        Path(f"/proc/{engine.process.pid}/clear_refs").write_text("5")

    def test_streams_keep_memory_flat(self, engine: EngineProcess, tmp_path: Path) -> None:
        """Out and in: 160 MB in two files and 2,000 small ones, each way more than the engine may grow."""
        script = (
            "mkdir /big; for i in 1 2; do head -c 80000000 /dev/urandom > /big/$i; done; "
            "for i in $(seq 2000); do echo $i > /big/small-$i; done; sleep 1000"
        )
        engine.docker("run", "-d", "--name", "large", "busybox", "sh", "-c", script)
        wait = "while [ ! -e /big/small-2000 ]; do sleep 0.1; done"
        engine.docker("exec", "large", "sh", "-c", wait)
        self._reset_peak(engine)
        before = self._peak_kb(engine)
        out = tmp_path / "out.tar"
        with out.open("wb") as file:
            subprocess.run(
                ["docker", "cp", "large:/big", "-"], stdout=file, env=engine.environment, check=True
            )
        with out.open("rb") as file:
            subprocess.run(
                ["docker", "cp", "-", "large:/tmp"], stdin=file, env=engine.environment, check=True
            )
        engine.docker("export", "-o", str(tmp_path / "all.tar"), "large")
        engine.docker("commit", "large", "large-image")
        assert self._peak_kb(engine) - before < 64 << 10
        same = "cd /big; for f in *; do cmp $f /tmp/big/$f || exit 1; done; echo same"
        assert engine.docker("exec", "large", "sh", "-c", same).stdout == "same\n"
        size = engine.docker("ps", "-s", "--format", "{{.Size}}").stdout
        assert "320MB" in size
        engine.docker("rm", "-f", "large")
        engine.docker("rmi", "large-image")

    def test_an_archive_of_a_directory_is_what_tar_reads(self, engine: EngineProcess) -> None:
        engine.docker("create", "--name", "tree", "busybox")
        raw = subprocess.run(
            ["docker", "cp", "tree:/etc", "-"],
            capture_output=True,
            env=engine.environment,
            check=True,
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            names = archive.getnames()
        assert names[0].rstrip("/") == "etc"
        assert "etc/passwd" in names
        engine.docker("rm", "tree")
