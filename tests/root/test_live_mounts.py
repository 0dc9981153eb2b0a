"""Mounts that come and go while a container runs, and what a container that works against it can reach: nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

pytestmark = pytest.mark.root


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "file").write_text("from outside\n")
    return directory


@pytest.fixture
def running(engine: EngineProcess) -> Iterator[str]:
    engine.docker("run", "-d", "--name", "live", "busybox", "sleep", "1000")
    yield "live"
    engine.docker("rm", "-f", "-v", "live", check=False)
    engine.docker("volume", "rm", "-f", "live-volume", check=False)


def _in(engine: EngineProcess, script: str) -> str:
    return engine.docker("exec", "live", "sh", "-c", script).stdout


def _mounts(engine: EngineProcess) -> dict[str, dict[str, object]]:
    text = engine.docker("inspect", "-f", "{{json .Mounts}}", "live").stdout
    return {mount["Destination"]: mount for mount in json.loads(text)}


@pytest.mark.usefixtures("running")
class TestAdded:
    def test_a_directory_a_file_and_a_volume(self, engine: EngineProcess, shared: Path) -> None:
        done = engine.sampan(
            "container", "mount", "add", "live",
            f"{shared}:/new/place:ro", f"{shared}/file:/etc/one", "live-volume:/data",
        )  # fmt: skip
        assert done.stdout.split() == ["/new/place", "/etc/one", "/data"]
        assert _in(engine, "cat /new/place/file /etc/one") == "from outside\nfrom outside\n"
        assert "Read-only" in _in(engine, "touch /new/place/x 2>&1 || true")
        _in(engine, "echo kept > /data/f")
        shown = _mounts(engine)
        assert shown["/new/place"]["RW"] is False
        assert shown["/data"]["Name"] == "live-volume"
        refused = engine.docker("volume", "rm", "live-volume", check=False)
        assert "volume is in use" in refused.stderr

    def test_it_is_there_again_after_a_restart(self, engine: EngineProcess, shared: Path) -> None:
        engine.sampan("container", "mount", "add", "live", f"{shared}:/new")
        engine.docker("restart", "-t", "0", "live")
        assert _in(engine, "cat /new/file") == "from outside\n"
        engine.sampan("container", "mount", "rm", "live", "/new")
        assert _in(engine, "ls /new") == ""
        engine.docker("restart", "-t", "0", "live")
        assert _in(engine, "ls /new") == ""

    def test_a_part_of_a_volume(self, engine: EngineProcess) -> None:
        engine.docker(
            "run",
            "--rm",
            "-v",
            "live-volume:/v",
            "busybox",
            "sh",
            "-c",
            "mkdir /v/sub; echo deep > /v/sub/f",
        )
        engine.sampan(
            "container", "mount", "add", "live", "--mount",
            "type=volume,src=live-volume,dst=/part,volume-subpath=sub,ro",
        )  # fmt: skip
        assert _in(engine, "cat /part/f") == "deep\n"
        engine.sampan("container", "mount", "rm", "live", "/part")
        engine.docker("volume", "rm", "live-volume")

    def test_recursive_read_only(self, engine: EngineProcess, shared: Path) -> None:
        below = shared / "below"
        below.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
        try:
            wish = f"type=bind,src={shared},dst=/new,ro,bind-recursive=readonly,bind-propagation=rprivate"
            engine.sampan("container", "mount", "add", "live", "--mount", wish)
            assert "Read-only" in _in(engine, "touch /new/below/x 2>&1 || true")
            engine.sampan("container", "mount", "rm", "live", "/new")
        finally:
            subprocess.run(["umount", str(below)], check=True)

    def test_all_or_none(self, engine: EngineProcess, shared: Path) -> None:
        refused = engine.sampan(
            "container",
            "mount",
            "add",
            "live",
            f"{shared}:/first",
            f"{shared}:/etc/passwd",
            check=False,
        )
        assert refused.returncode == 1
        assert "/etc/passwd" in refused.stderr
        assert _in(engine, "ls /first") == ""
        assert _mounts(engine) == {}

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("/proc/sys", "/proc"),
            ("/", "destination can't be '/'"),
            ("relative", "must be absolute"),
        ],
    )
    def test_where_no_mount_goes(
        self, engine: EngineProcess, shared: Path, target: str, words: str
    ) -> None:
        refused = engine.sampan(
            "container", "mount", "add", "live", f"{shared}:{target}", check=False
        )
        assert refused.returncode != 0
        assert words in refused.stderr

    def test_of_a_stopped_container_the_wish_changes(
        self, engine: EngineProcess, shared: Path
    ) -> None:
        engine.docker("stop", "-t", "0", "live")
        engine.sampan("container", "mount", "add", "live", f"{shared}:/new")
        engine.docker("start", "live")
        assert _in(engine, "cat /new/file") == "from outside\n"

    def test_a_paused_one_too(self, engine: EngineProcess, shared: Path) -> None:
        engine.docker("pause", "live")
        engine.sampan("container", "mount", "add", "live", f"{shared}:/new")
        engine.docker("unpause", "live")
        assert _in(engine, "cat /new/file") == "from outside\n"


@pytest.mark.usefixtures("running")
class TestAgainstTheContainer:
    def test_a_link_leads_only_inside(
        self, engine: EngineProcess, shared: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "of-the-host"
        target.mkdir()
        _in(engine, f"ln -s {target} /link; ln -s /proc /self-made")
        engine.sampan("container", "mount", "add", "live", f"{shared}:/link/deep")
        assert list(target.iterdir()) == []
        refused = engine.sampan(
            "container", "mount", "add", "live", f"{shared}:/self-made/sys", check=False
        )
        assert "inside /proc" in refused.stderr
        engine.sampan("container", "mount", "rm", "live", "/link/deep")
        assert _in(engine, f"ls {target}/deep") == ""

    def test_a_directory_that_is_swapped_meanwhile(
        self, engine: EngineProcess, shared: Path, tmp_path: Path
    ) -> None:
        """CVE-2021-30465's race, forty times: the host sees nothing and procfs stays uncovered."""
        target = tmp_path / "of-the-host"
        (target / "d").mkdir(parents=True)
        swap = (
            f"mkdir -p /a/d /proc-like; while :; do mv /a /b; ln -s {target} /a; rm /a; ln -s /proc/self /a; "
            "rm /a; mv /b /a; done"
        )
        engine.docker("exec", "-d", "live", "sh", "-c", swap)
        before = Path("/proc/self/mountinfo").read_text()
        for number in range(40):
            place = f"/a/d/{number}"
            done = engine.sampan(
                "container", "mount", "add", "live", f"{shared}:{place}", check=False
            )
            if done.returncode == 0:
                engine.sampan("container", "mount", "rm", "live", place, check=False)
        assert list((target / "d").iterdir()) == []
        assert str(shared) not in Path("/proc/self/mountinfo").read_text().replace(before, "")
        covered = [
            line
            for line in _in(engine, "cat /proc/self/mountinfo").splitlines()
            if str(shared) in line.split()[3]
        ]
        assert not [line for line in covered if line.split()[4].startswith("/proc")]

    def test_a_removal_is_not_turned_against_a_mask(
        self, engine: EngineProcess, shared: Path
    ) -> None:
        """The container moves the mount away and puts a link to a masked file in its place."""
        engine.sampan("container", "mount", "add", "live", f"{shared}/file:/a/one")
        lines = _in(engine, "cat /proc/self/mountinfo").splitlines()
        mask = next(line.split()[4] for line in lines if " /null /proc/" in line)
        _in(engine, f"mv /a /b; mkdir /a; ln -s {mask} /a/one")
        refused = engine.sampan("container", "mount", "rm", "live", "/a/one", check=False)
        assert "nothing is mounted there" in refused.stderr
        assert f" {mask} " in _in(engine, "cat /proc/self/mountinfo")
        _in(engine, "rm /a/one; rmdir /a; mv /b /a")
        engine.sampan("container", "mount", "rm", "live", "/a/one")

    def test_the_engine_holds_nothing_open_afterwards(
        self, engine: EngineProcess, shared: Path
    ) -> None:
        assert engine.process is not None

        def held() -> list[str]:
            directory = f"/proc/{engine.process.pid}/fd"  # type: ignore[union-attr]
            names = []
            for fd in os.listdir(directory):
                try:
                    names.append(os.readlink(f"{directory}/{fd}"))
                except FileNotFoundError:
                    continue
            return [name for name in names if name.startswith(str(shared))]

        engine.sampan("container", "mount", "add", "live", f"{shared}:/one", f"{shared}/file:/two")
        engine.sampan("container", "mount", "rm", "live", "/one")
        assert held() == []


def test_it_survives_a_new_engine(
    fresh_engine: EngineProcess, busybox_tar: Path, shared: Path
) -> None:
    engine = fresh_engine.start()
    engine.docker("import", str(busybox_tar), "busybox:latest")
    engine.docker("run", "-d", "--name", "live", "busybox", "/bin/sleep", "1000")
    engine.sampan("container", "mount", "add", "live", f"{shared}:/new", "live-volume:/data")
    engine.kill()
    engine.start()
    assert set(_mounts(engine)) == {"/new", "/data"}
    assert "volume is in use" in engine.docker("volume", "rm", "live-volume", check=False).stderr
    engine.sampan("container", "mount", "rm", "live", "/new", "/data")
    assert engine.docker("exec", "live", "/bin/ls", "/new").stdout == ""
    engine.docker("volume", "rm", "live-volume")
