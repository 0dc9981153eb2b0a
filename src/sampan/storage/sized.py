"""A writable tree of a fixed size: a file system of its own in a sparse file.

    active/<key>/disk.img     ext4, sparse: it takes on disk what was written to it
    active/<key>/disk/        mounted here by a loop device, for as long as the snapshot exists
        upper  work           what overlayfs gets

For `--storage-opt size=`: what is in the container cannot outgrow it, whatever file system the host has (Docker needs xfs
with project quotas). The mount stays when the engine stops, since mounting one image twice would destroy it; a
start in another boot finds it gone and mounts it again.

Source: kernel include/uapi/linux/loop.h (LOOP_CTL_GET_FREE, LOOP_CONFIGURE); mkfs.ext4(8).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from fcntl import ioctl
from struct import pack

from sampan.errors import InvalidArgument, Unsupported
from sampan.linux import constants as c
from sampan.linux.mounts import attach, new_filesystem
from sampan.linux.syscalls import umount2

IMAGE, MOUNTED = "disk.img", "disk"
SMALLEST = 16 << 20  # less leaves no room beside the file system's own tables
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
# where the host keeps it; the environment's PATH is not asked
_MKFS = ("/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4")


def make(directory: str, size_bytes: int) -> None:
    """Make and mount the file system in a snapshot's directory."""
    if size_bytes < SMALLEST:
        raise InvalidArgument(f"storage size {size_bytes} is below the minimum of {SMALLEST} bytes")
    program = next((path for path in _MKFS if os.access(path, os.X_OK)), None)
    why = ""
    if program is None:
        why = "mkfs.ext4 is not installed"
    elif not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        why = "it needs root and loop devices"
    elif shutil.disk_usage(directory).total < size_bytes:
        why = "the disk is smaller than that"
    if program is None or why:
        raise Unsupported(f"--storage-opt size is not possible here: {why}")
    image = os.path.join(directory, IMAGE)
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)
    done = subprocess.run(
        [program, "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={},
    )
    if done.returncode:
        raise Unsupported(
            f"mkfs.ext4 failed: {done.stderr.decode('utf-8', 'replace').strip()[:500]}"
        )
    os.mkdir(os.path.join(directory, MOUNTED), 0o700)
    show(directory)


def show(directory: str) -> str:
    """The mounted directory, mounted now if it is not."""
    target = os.path.join(directory, MOUNTED)
    if os.stat(target).st_dev == os.stat(directory).st_dev:
        device, path = _attach_loop(os.path.join(directory, IMAGE))
        try:
            mount = new_filesystem("ext4", source=path)
        finally:
            os.close(device)
        try:
            fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                attach(mount, fd)
            finally:
                os.close(fd)
        finally:
            os.close(mount)
    return target


def hide(directory: str) -> None:
    """Unmount, where it is mounted or anything is there at all; who still uses it keeps it until the end."""
    target = os.path.join(directory, MOUNTED)
    with suppress(FileNotFoundError):
        if os.stat(target).st_dev != os.stat(directory).st_dev:
            umount2(target, c.MNT_DETACH)


def _attach_loop(image: str) -> tuple[int, str]:
    """A loop device over a file (descriptor, path), which frees itself when nobody has it open or mounted."""
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(64):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            try:
                number = ioctl(control, _LOOP_CTL_GET_FREE)
            finally:
                os.close(control)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                # struct loop_config: fd, block size, loop_info64 (only lo_flags set), reserved
                ioctl(device, _LOOP_CONFIGURE, pack("=II52xI176x64x", file, 0, _AUTOCLEAR))
                return device, path
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another process was faster
                    raise
        raise OSError(errno.EBUSY, "no loop device is free", image)
    finally:
        os.close(file)
