"""Binds, volumes and their parts as containers see them: what is read-only stays so, and nothing leads out."""

from __future__ import annotations

import os
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


class TestOwners:
    """`:U`: an idmapped mount makes the source's owner the container's user, on disk all stays as it is."""

    def test_somebody_s_directory_is_the_container_user_s(
        self, engine: EngineProcess, tmp_path: Path
    ) -> None:
        shared = tmp_path / "home"
        shared.mkdir()
        os.chown(shared, 4321, 4322)
        shared.chmod(0o700)
        script = "stat -c %u:%g /h; echo mine > /h/f; stat -c %u:%g /h/f"
        for user in ("0:0", "77:78"):
            flags = ["-u", user, "-v", f"{shared}:/h:U"]
            shown = engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", script).stdout
            assert shown.split() == [user, user]
            facts = (shared / "f").stat()
            assert (facts.st_uid, facts.st_gid) == (4321, 4322)

    def test_a_volume_for_a_user(self, engine: EngineProcess) -> None:
        flags = ["-u", "77:78", "-v", "owned:/v:U"]
        engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", "touch /v/x")
        shown = engine.docker(
            "run", "--rm", "-v", "owned:/v", "busybox", "stat", "-c", "%u:%g", "/v/x"
        )
        assert shown.stdout.strip() == "0:0"
        engine.docker("volume", "rm", "owned")

    def test_without_it_the_user_is_shut_out(self, engine: EngineProcess, tmp_path: Path) -> None:
        shared = tmp_path / "home"
        shared.mkdir(mode=0o700)
        flags = ["-u", "77:78", "-v", f"{shared}:/h"]
        assert (
            engine.docker("run", "--rm", *flags, "busybox", "ls", "/h", check=False).returncode != 0
        )


class TestImages:
    def _run(self, engine: EngineProcess, subpath: str, *command: str) -> tuple[int, str]:
        mount = "type=image,src=alpine:3.10,dst=/img" + (
            f",image-subpath={subpath}" if subpath else ""
        )
        done = engine.docker("run", "--rm", "--mount", mount, "busybox", *command, check=False)
        return done.returncode, done.stdout + done.stderr

    def test_the_whole_a_directory_and_a_file(self, engine: EngineProcess) -> None:
        assert self._run(engine, "", "ls", "/img/etc/passwd") == (0, "/img/etc/passwd\n")
        assert self._run(engine, "etc", "ls", "/img/passwd") == (0, "/img/passwd\n")
        assert self._run(engine, "etc/passwd", "head", "-c", "5", "/img") == (0, "root:")

    def test_it_is_read_only(self, engine: EngineProcess) -> None:
        for subpath in ("", "etc"):
            assert "Read-only" in self._run(engine, subpath, "touch", "/img/x")[1]

    @pytest.mark.parametrize(
        ("subpath", "words"),
        [
            ("nosuch", "no such file"),
            ("../etc", "relative path"),
            ("etc/passwd/x", "not a directory"),
        ],
    )
    def test_what_is_not_there(self, engine: EngineProcess, subpath: str, words: str) -> None:
        status, text = self._run(engine, subpath, "true")
        assert status != 0
        assert words in text

    def test_a_link_of_the_image_leads_into_the_image(self, engine: EngineProcess) -> None:
        dockerfile = "FROM busybox\nRUN ln -s / /top && ln -s /../../../../etc /up\n"
        engine.docker("build", "-q", "-t", "linked", "-", input=dockerfile)
        for subpath in ("top/etc", "up"):
            mount = f"type=image,src=linked,dst=/img,image-subpath={subpath}"
            shown = engine.docker("run", "--rm", "--mount", mount, "busybox", "ls", "/img").stdout
            assert shown.split() == ["group", "passwd"]
        engine.docker("rmi", "linked")


def test_the_last_user_s_rm_v_takes_a_nameless_volume_away(engine: EngineProcess) -> None:
    engine.docker("create", "--name", "first", "-v", "/data", "busybox")
    engine.docker("create", "--name", "second", "--volumes-from", "first", "busybox")
    before = engine.docker("volume", "ls", "-q").stdout.split()
    engine.docker("rm", "-v", "first")
    assert engine.docker("volume", "ls", "-q").stdout.split() == before
    engine.docker("rm", "-v", "second")
    assert len(engine.docker("volume", "ls", "-q").stdout.split()) == len(before) - 1


def test_volumes_that_come_and_go_with_a_container_are_told(engine: EngineProcess) -> None:
    since = engine.docker("info", "-f", "{{.SystemTime}}").stdout.strip()
    engine.docker("run", "--rm", "-v", "coming:/v", "-v", "/nameless", "busybox", "true")
    engine.docker("volume", "rm", "coming")
    until = engine.docker("info", "-f", "{{.SystemTime}}").stdout.strip()
    form = '{{.Action}} {{if eq .Actor.ID "coming"}}named{{else}}nameless{{end}}'
    seen = engine.docker(
        "events", "--since", since, "--until", until, "--filter", "type=volume", "--format", form
    ).stdout.splitlines()
    for action in ("create", "mount", "unmount", "destroy"):
        assert {f"{action} named", f"{action} nameless"} <= set(seen)


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
