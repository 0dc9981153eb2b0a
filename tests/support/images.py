"""Small root filesystems and image archives for tests, made from what Debian installs; nothing is downloaded."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "user:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nusers:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n"


def busybox_rootfs(target: Path) -> Path:
    """A root filesystem of the static busybox, a link for each applet, and the files that programs look for."""
    for folder in (
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "root",
        "home/user",
        "var",
        "usr/bin",
        "sbin",
    ):
        (target / folder).mkdir(parents=True, exist_ok=True)
    (target / "tmp").chmod(0o1777)
    shutil.copy2(BUSYBOX, target / "bin/busybox")
    applets = subprocess.run(
        [BUSYBOX, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (target / "bin" / applet).symlink_to("busybox")
    (target / "usr/bin/env").symlink_to("/bin/env")
    (target / "etc/passwd").write_text(PASSWD)
    (target / "etc/group").write_text(GROUP)
    os.chown(target / "home/user", 1000, 1000)
    return target


def tar_of(rootfs: Path, target: Path) -> Path:
    """The tree as a plain tar, owners numeric, as `docker import` takes it."""
    subprocess.run(
        ["tar", "-C", str(rootfs), "--numeric-owner", "--sort=name", "-cf", str(target), "."],
        check=True,
    )
    return target


def with_programs(rootfs: Path, *programs: str) -> Path:
    """Copy host programs into the tree together with the shared libraries that the loader finds for them."""
    for program in programs:
        found = shutil.which(program)
        assert found, f"{program} is not installed"
        wanted = {found}
        listing = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
        for word in listing.split():
            if word.startswith("/"):
                wanted.add(word)
        for path in wanted:
            destination = rootfs / path.lstrip("/")
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(os.path.realpath(path), destination)
    return rootfs


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes, **fields: int) -> None:
    """One regular member with fixed time, for archives that a test builds by hand."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))
