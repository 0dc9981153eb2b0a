from __future__ import annotations

import io
import os
import socket
import stat
from pathlib import Path

import pytest

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.linux import constants as c
from sampan.storage.mountwords import device_and_flags, split_options
from sampan.storage.volumes import Volumes
from tests.unit.storage.tarkit import file, stream

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="mounts and changes owners")


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    return Volumes(tmp_path / "volumes")


class TestRecords:
    def test_created_found_and_found_again_after_a_restart(self, volumes: Volumes) -> None:
        made = volumes.create(
            "data", labels={"a": "b"}, options={"type": "tmpfs", "device": "tmpfs"}
        )
        assert made.mountpoint == os.path.join(volumes.root, "data", "_data")
        again = Volumes(volumes.root)
        assert again.get("data") == made
        assert [record.name for record in again.list()] == ["data"]

    def test_creating_it_again_gives_the_same(self, volumes: Volumes) -> None:
        assert volumes.create("data") == volumes.create("data", labels={"late": "1"})

    def test_without_a_name_it_is_anonymous(self, volumes: Volumes) -> None:
        made = volumes.create()
        assert made.anonymous
        assert len(made.name) == 64

    def test_name_with_another_driver_is_a_conflict(self, volumes: Volumes) -> None:
        volumes.create("data")
        with pytest.raises(Conflict, match="volume name must be unique"):
            volumes.create("data", driver="nfs")
        with pytest.raises(NotFound, match='plugin "nfs" not found'):
            volumes.create("other", driver="nfs")

    @pytest.mark.parametrize(
        "name", ["a", "../x", "a/b", "-x", ".x", "a b", "ü1", "x\n", "x" * 300]
    )
    def test_names_are_no_paths(self, volumes: Volumes, name: str) -> None:
        with pytest.raises(InvalidArgument):
            volumes.create(name)
        assert os.listdir(volumes.root) == []

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"foo": "1"}, 'invalid option: "foo"'),
            ({"type": "tmpfs"}, 'missing required option: "device"'),
            ({"device": "x"}, 'missing required option: "type"'),
            ({"o": "ro"}, 'missing required option: "device"'),
        ],
    )
    def test_options_are_checked(
        self, volumes: Volumes, options: dict[str, str], words: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=words):
            volumes.create("data", options=options)

    def test_missing_in_dockers_words(self, volumes: Volumes) -> None:
        with pytest.raises(NotFound, match="get nosuch: no such volume"):
            volumes.get("nosuch")
        with pytest.raises(NotFound):
            volumes.remove("nosuch")
        volumes.remove("nosuch", force=True)

    def test_held_volume_is_not_removed(self, volumes: Volumes) -> None:
        volumes.create("data")
        volumes.hold("data", "c1")
        with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
            volumes.remove("data", force=True)
        volumes.release("c1")
        volumes.release("c1")
        volumes.remove("data")
        assert os.listdir(volumes.root) == []

    def test_damaged_record_keeps_the_data_listed(self, volumes: Volumes) -> None:
        volumes.create("data")
        Path(volumes.path("data"), "precious").write_text("1")
        Path(volumes.root, "data/volume.json").write_bytes(b"{")
        again = Volumes(volumes.root)
        assert again.get("data").driver == "local"
        assert Path(again.path("data"), "precious").exists()

    def test_half_made_and_half_removed_ones_go_at_start(self, volumes: Volumes) -> None:
        for name in (".making-1", ".removing-2"):
            Path(volumes.root, name, "_data").mkdir(parents=True)
        assert Volumes(volumes.root).list() == []
        assert os.listdir(volumes.root) == []


class TestContent:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        image = tmp_path / "image"
        (image / "data/sub").mkdir(parents=True)
        (image / "data/file").write_text("of the image")
        (image / "data").chmod(0o1770)
        (image / "link").symlink_to("/data")
        return image

    def test_empty_volume_takes_over_what_the_image_has(
        self, volumes: Volumes, image: Path
    ) -> None:
        volumes.create("data")
        fd = os.open(image, os.O_RDONLY)
        assert volumes.copy_up("data", fd, "/link")
        os.close(fd)
        target = Path(volumes.path("data"))
        assert (target / "file").read_text() == "of the image"
        assert stat.S_IMODE(target.stat().st_mode) == 0o1770

    def test_volume_with_content_is_never_touched(self, volumes: Volumes, image: Path) -> None:
        volumes.create("data")
        Path(volumes.path("data"), "file").write_text("mine")
        fd = os.open(image, os.O_RDONLY)
        assert not volumes.copy_up("data", fd, "/data")
        os.close(fd)
        assert Path(volumes.path("data"), "file").read_text() == "mine"

    @pytest.mark.parametrize("path", ["/nosuch", "/data/file", "/../../../../etc/nosuch-at-all"])
    def test_image_without_that_directory(self, volumes: Volumes, image: Path, path: str) -> None:
        volumes.create("data")
        fd = os.open(image, os.O_RDONLY)
        assert not volumes.copy_up("data", fd, path)
        os.close(fd)

    def test_size(self, volumes: Volumes) -> None:
        volumes.create("data")
        Path(volumes.path("data"), "file").write_bytes(b"x" * 12345)
        assert volumes.size("data") == 12345

    def test_export_and_import_are_inverse(self, volumes: Volumes) -> None:
        volumes.create("data")
        source = Path(volumes.path("data"))
        (source / "d").mkdir()
        (source / "d/file").write_text("1")
        os.link(source / "d/file", source / "same")
        with open(source / "disk", "wb") as disk:
            disk.truncate(64 << 20)
            disk.seek(1 << 20)
            disk.write(b"data")
        backup = b"".join(volumes.export_tar("data"))
        assert len(backup) < 1 << 20
        volumes.create("copy")
        volumes.import_tar("copy", io.BytesIO(backup))
        copy = Path(volumes.path("copy"))
        assert (copy / "disk").read_bytes() == (source / "disk").read_bytes()
        assert (copy / "same").stat().st_ino == (copy / "d/file").stat().st_ino
        assert b"".join(volumes.export_tar("copy")) == backup

    def test_import_of_a_hostile_tar_stays_inside(self, volumes: Volumes) -> None:
        volumes.create("data")
        with pytest.raises(InvalidArgument):
            volumes.import_tar("data", stream(file(b"../../escape", b"x")))
        assert not Path(volumes.root, "escape").exists()

    @pytest.mark.parametrize("subpath", ["link", "../other", "link/x", "/../../etc", "proc/root"])
    def test_subpath_never_leads_out(self, volumes: Volumes, subpath: str) -> None:
        volumes.create("data")
        Path(volumes.path("data"), "link").symlink_to("/etc")
        Path(volumes.path("data"), "proc").symlink_to("/proc/self")
        with pytest.raises((InvalidArgument, NotFound)):
            volumes.open("data", subpath)


@needs_root
class TestMounts:
    def mounts(self, volumes: Volumes) -> list[str]:
        with open("/proc/self/mounts") as table:
            return [line.split()[1] for line in table if volumes.root in line.split()[1]]

    def test_tmpfs_is_there_while_somebody_has_it(self, volumes: Volumes) -> None:
        volumes.create(
            "mem", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0700,noexec"}
        )
        path = volumes.mount("mem", "c1")
        assert volumes.mount("mem", "c2") == path
        assert self.mounts(volumes) == [path]
        assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
        volumes.unmount("mem", "c1")
        volumes.unmount("mem", "c1")
        assert self.mounts(volumes) == [path]
        volumes.release("c2")
        assert self.mounts(volumes) == []

    def test_bind_of_a_host_directory_read_only(self, volumes: Volumes, tmp_path: Path) -> None:
        host = tmp_path / "host"
        host.mkdir()
        (host / "file").write_text("1")
        volumes.create("bound", options={"type": "none", "device": str(host), "o": "bind,ro"})
        path = volumes.mount("bound", "c1")
        assert os.listdir(path) == ["file"]
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "new").write_text("1")
        volumes.release("c1")
        volumes.remove("bound")
        assert (host / "file").exists()

    def test_mount_that_fails_says_what_was_tried(self, volumes: Volumes) -> None:
        volumes.create("bad", options={"type": "none", "device": "/nosuch", "o": "bind"})
        with pytest.raises(
            Exception, match="failed to mount local volume: mount /nosuch:.*no such file"
        ):
            volumes.mount("bad", "c1")

    def test_subpath_is_mounted_and_unmounted(self, volumes: Volumes) -> None:
        volumes.create("data")
        inner = Path(volumes.path("data"), "a/b")
        inner.mkdir(parents=True)
        (inner / "file").write_text("1")
        path = volumes.mount("data", "c1", subpath="a/b")
        # what the container makes of the name afterwards changes nothing
        inner.rename(inner.parent / "moved")
        inner.symlink_to("/etc")
        assert os.listdir(path) == ["file"]
        volumes.release("c1")
        assert self.mounts(volumes) == []
        volumes.remove("data")

    def test_subpath_of_an_earlier_engine_is_cleared(self, volumes: Volumes) -> None:
        volumes.create("data")
        Path(volumes.path("data"), "a").mkdir()
        volumes.mount("data", "c1", subpath="a")
        Volumes(volumes.root)
        assert self.mounts(volumes) == []

    def test_shared_memory(self, volumes: Volumes) -> None:
        path = volumes.shared_memory("a" * 64, 1 << 20)
        assert volumes.shared_memory("a" * 64, 1 << 20) == path
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o1777
        volumes.drop_shared_memory("a" * 64)
        volumes.drop_shared_memory("a" * 64)
        assert self.mounts(volumes) == []
        with pytest.raises(InvalidArgument):
            volumes.shared_memory("../x", 1)


class TestWords:
    def test_flags_and_data(self) -> None:
        assert split_options("ro,size=1m,noexec,rw") == (8, "size=1m")
        assert split_options("") == (0, "")

    def test_nfs_addresses_are_looked_up(self) -> None:
        kind, device, _, data = device_and_flags(
            {"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,vers=4"}
        )
        assert (kind, device, data) == ("nfs", ":/x", "addr=127.0.0.1,vers=4")

    def test_line_breaks_do_not_pass(self) -> None:
        with pytest.raises(InvalidArgument):
            split_options("a\nb")


class TestNetworkFileSystems:
    """What mount(2) is given: a host that has an NFS client mounts it, any other says "no such device"."""

    @pytest.fixture(autouse=True)
    def _names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = {"files.example": "192.0.2.7", "192.0.2.9": "192.0.2.9"}

        def look_up(
            host: str, _port: object, **_: object
        ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            if host not in known:
                raise socket.gaierror(-2, "Name or service not known")
            return [(2, 1, 6, "", (known[host], 0))]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    @pytest.mark.parametrize(
        ("options", "call"),
        [
            (
                {"type": "nfs", "device": ":/export", "o": "addr=files.example,rw,nfsvers=4,soft"},
                ("nfs", ":/export", 0, "addr=192.0.2.7,nfsvers=4,soft"),
            ),
            (
                {"type": "nfs4", "device": ":/", "o": "ro,addr=192.0.2.9,noexec"},
                ("nfs4", ":/", c.MS_RDONLY | c.MS_NOEXEC, "addr=192.0.2.9"),
            ),
            (
                {
                    "type": "cifs",
                    "device": "//files.example/share/a b",
                    "o": "username=u,password=p",
                },
                ("cifs", "//192.0.2.7/share/a b", 0, "username=u,password=p"),
            ),
        ],
    )
    def test_names_become_addresses(
        self, options: dict[str, str], call: tuple[str, str, int, str]
    ) -> None:
        assert device_and_flags(options) == call

    @pytest.mark.parametrize(
        "options",
        [
            {"type": "nfs", "device": ":/x", "o": "addr=nosuch.invalid"},
            {"type": "cifs", "device": "//nosuch.invalid/x", "o": "guest"},
        ],
    )
    def test_a_name_that_nobody_knows(self, options: dict[str, str]) -> None:
        with pytest.raises(InvalidArgument, match="lookup nosuch.invalid: no such host"):
            device_and_flags(options)
