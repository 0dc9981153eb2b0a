"""The mount table is read again when, and only when, the kernel says that it changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sampan.cgroups.host import HostWatch
from sampan.linux import constants as c
from sampan.linux.syscalls import mount, unshare

pytestmark = pytest.mark.root


def test_a_mount_is_noticed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # in a mount namespace of its own, where nobody else mounts anything
        status = 1
        try:
            unshare(c.CLONE_NEWNS)
            mount(None, "/", None, c.MS_REC | c.MS_PRIVATE)
            watch = HostWatch()
            first = watch.host()
            unchanged = watch.host() is watch.host()
            mount("none", str(tmp_path), "tmpfs")
            second = watch.host()
            third = watch.host()
            status = 0 if unchanged and second is not first and third is second else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
