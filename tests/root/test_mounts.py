"""Binds, volumes and their parts as containers see them: what is read-only stays so, and nothing leads out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

pytestmark = pytest.mark.root


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A directory with a tmpfs mounted below it."""
    top = tmp_path / "top"
    (top / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(top / "below")], check=True)
    yield top
    subprocess.run(["umount", str(top / "below")], check=True)


def _touch(engine: EngineProcess, mount: str, path: str) -> bool:
    done = engine.docker("run", "--rm", *mount.split(" "), "busybox", "touch", path, check=False)
    return done.returncode == 0


class TestReadOnly:
    @pytest.mark.parametrize(
        ("wish", "below_is_writable"),
        [
            ("-v {}:/b:ro", False),
            ("--mount type=bind,src={},dst=/b,ro", False),
            ("--mount type=bind,src={},dst=/b,ro,bind-recursive=writable", True),
            ("--mount type=bind,src={},dst=/b,ro,bind-recursive=disabled", False),
        ],
    )
    def test_a_read_only_bind(
        self, engine: EngineProcess, nested: Path, wish: str, below_is_writable: bool
    ) -> None:
        """Docker since 25: what is mounted below is read-only too."""
        mount = wish.format(nested)
        assert not _touch(engine, mount, "/b/x")
        assert _touch(engine, mount, "/b/below/x") == below_is_writable

    def test_what_the_host_has_read_only_stays_so(
        self, engine: EngineProcess, tmp_path: Path
    ) -> None:
        place = str(tmp_path / "ro")
        Path(place).mkdir()
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        try:
            assert not _touch(engine, f"-v {place}:/b", "/b/x")
        finally:
            subprocess.run(["umount", place], check=True)

    def test_a_volume_with_ro_among_its_options(
        self, engine: EngineProcess, tmp_path: Path
    ) -> None:
        options = ["--opt", "type=none", "--opt", "o=bind,ro", "--opt", f"device={tmp_path}"]
        engine.docker("volume", "create", *options, "readonly")
        assert not _touch(engine, "-v readonly:/b", "/b/x")
        engine.docker("volume", "rm", "readonly")


class TestSubpath:
    @pytest.fixture(autouse=True)
    def _volume(self, engine: EngineProcess) -> Iterator[None]:
        script = "mkdir -p /v/d/e; echo deep > /v/d/e/f; ln -s / /v/abs; ln -s ../../.. /v/up; ln -s d /v/in"
        engine.docker("run", "--rm", "-v", "parts:/v", "busybox", "sh", "-c", script)
        yield
        engine.docker("volume", "rm", "parts")

    def _cat(self, engine: EngineProcess, subpath: str, file: str) -> tuple[int, str]:
        mount = f"type=volume,src=parts,dst=/s,volume-subpath={subpath}"
        done = engine.docker("run", "--rm", "--mount", mount, "busybox", "cat", file, check=False)
        return done.returncode, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("subpath", "file"), [("d/e", "/s/f"), ("d/e/f", "/s"), ("in/e", "/s/f")]
    )
    def test_a_directory_a_file_and_a_link_inside(
        self, engine: EngineProcess, subpath: str, file: str
    ) -> None:
        assert self._cat(engine, subpath, file) == (0, "deep\n")

    @pytest.mark.parametrize("subpath", ["abs", "up", "abs/etc", "up/etc"])
    def test_a_link_that_leads_out(self, engine: EngineProcess, subpath: str) -> None:
        status, text = self._cat(engine, subpath, "/s/passwd")
        assert status == 125
        assert "escapes the base directory" in text


def test_the_last_user_s_rm_v_takes_a_nameless_volume_away(engine: EngineProcess) -> None:
    engine.docker("create", "--name", "first", "-v", "/data", "busybox")
    engine.docker("create", "--name", "second", "--volumes-from", "first", "busybox")
    before = engine.docker("volume", "ls", "-q").stdout.split()
    engine.docker("rm", "-v", "first")
    assert engine.docker("volume", "ls", "-q").stdout.split() == before
    engine.docker("rm", "-v", "second")
    assert len(engine.docker("volume", "ls", "-q").stdout.split()) == len(before) - 1


def test_a_loop_device_s_file_system_is_a_volume(engine: EngineProcess, tmp_path: Path) -> None:
    """`device` is what mount(2) takes: a block device that somebody set up."""
    image = tmp_path / "disk"
    image.write_bytes(b"")
    subprocess.run(["truncate", "-s", "16M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    losetup = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        options = ["--opt", "type=ext4", "--opt", f"device={device}", "--opt", "o=noatime"]
        engine.docker("volume", "create", *options, "disk")
        script = "echo kept > /d/f; grep ' /d ' /proc/mounts"
        seen = engine.docker("run", "--rm", "-v", "disk:/d", "busybox", "sh", "-c", script).stdout
        assert "ext4" in seen
        assert "noatime" in seen
        full = "dd if=/dev/zero of=/d/big bs=1M count=64 2>&1; true"
        said = engine.docker("run", "--rm", "-v", "disk:/d", "busybox", "sh", "-c", full).stdout
        assert "No space left" in said
        assert (
            engine.docker("run", "--rm", "-v", "disk:/d", "busybox", "cat", "/d/f").stdout
            == "kept\n"
        )
    finally:
        engine.docker("volume", "rm", "disk", check=False)
        subprocess.run(["losetup", "--detach", device], check=True)
