"""Another --storage-driver over the same root: what is kept, and what is said where something is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sampan.storage import erofs_mount
from tests.conftest import require
from tests.support.engine import EngineProcess
from tests.support.images import PATH, busybox_rootfs, tar_of

pytestmark = pytest.mark.root


@contextmanager
def engine(base: Path, driver: str) -> Iterator[EngineProcess]:
    one = EngineProcess(base, "--storage-driver", driver).start()
    try:
        yield one
    finally:
        one.process.terminate() if one.process else None
        one.process.wait(15) if one.process else None
        one._end_helpers()


def test_images_and_containers_go_from_erofs_to_overlay_and_back(tmp_path: Path) -> None:
    why_not = erofs_mount.probe(tmp_path)
    require(not why_not, f"file-backed erofs: {why_not}")
    tar = tar_of(busybox_rootfs(tmp_path / "rootfs"), tmp_path / "base.tar")
    with engine(tmp_path, "erofs") as first:
        first.docker("import", "-c", f"ENV {PATH}", str(tar), "base")
        first.docker("run", "--name", "kept", "base", "sh", "-c", "echo one > /written")
        assert first.docker("info", "-f", "{{.Driver}}").stdout.strip() == "erofs"
    with engine(tmp_path, "overlay") as second:
        assert second.docker("info", "-f", "{{.Driver}}").stdout.strip() == "overlay"
        assert second.docker("run", "--rm", "base", "echo", "x").stdout == "x\n"
        second.docker("commit", "kept", "made")
        assert second.docker("run", "--rm", "made", "cat", "/written").stdout == "one\n"
        second.docker("import", "-c", f"ENV {PATH}", str(tar), "second")
    with engine(tmp_path, "erofs") as third:
        for image in ("base", "second", "made"):
            assert third.docker("run", "--rm", image, "echo", image).stdout == f"{image}\n"
        assert third.docker("diff", "kept").stdout.split() == ["A", "/written"]
        third.docker("rm", "-v", "kept")
        third.docker("rmi", "base", "second", "made")


def test_images_go_to_vfs_and_containers_stay_behind_with_a_word(tmp_path: Path) -> None:
    tar = tar_of(busybox_rootfs(tmp_path / "rootfs"), tmp_path / "base.tar")
    with engine(tmp_path, "overlay") as first:
        first.docker("import", "-c", f"ENV {PATH}", str(tar), "base")
        first.docker("create", "--name", "left", "base", "echo", "here")
    with engine(tmp_path, "vfs") as second:
        assert second.docker("run", "--rm", "base", "echo", "x").stdout == "x\n"
        refused = second.docker("start", "left", check=False)
        assert refused.returncode == 1
        assert "left" in refused.stderr
    with engine(tmp_path, "overlay") as third:
        assert third.docker("start", "-a", "left").stdout == "here\n"
        third.docker("rm", "left")
