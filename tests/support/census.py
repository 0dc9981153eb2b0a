"""What the host holds before and after a test: mounts, cgroups, namespaces, links, rules, processes, temp files.

A test that leaves something behind fails with the names of what it left. The census counts only what an engine
or runtime of ours can make; what other programs on the machine do meanwhile does not disturb it:

- mounts of this mount namespace whose target or source lies below a directory named `sampan` or the test's own;
- cgroups below `/sampan*` in every hierarchy;
- network links on the engine's bridge, its nftables table (of every engine, where none is named);
- processes whose command line names the test's own run directory, and zombies of this process;
- descriptors of this process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path


def _mounts(marks: tuple[str, ...]) -> set[str]:
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        text = " ".join((fields[3], fields[4], *fields[fields.index("-") + 1 :]))
        if any(mark in text for mark in marks):
            found.add(f"mount {fields[4]}")
    return found


def _cgroups(prefix: str) -> set[str]:
    found = set()
    root = Path("/sys/fs/cgroup")
    for hierarchy in [root, *root.iterdir()] if root.is_dir() else []:
        if not hierarchy.is_dir():
            continue
        for top in hierarchy.glob(f"{prefix}*"):
            for folder, subfolders, _ in os.walk(top):
                if folder != str(top) or not subfolders:
                    found.add(f"cgroup {folder}")
    # The parent (/sampan, /sampan-NAME) may stay: it is made once for an engine.
    return {c for c in found if c.count("/") > 5 or not c.rsplit("/", 1)[1].startswith(prefix)}


def _links(bridge: str) -> set[str]:
    """Links of one engine's own bridge; of every bridge where none is named."""
    found = set()
    for name in os.listdir("/sys/class/net"):
        master = os.path.basename(os.path.realpath(f"/sys/class/net/{name}/master"))
        if bridge and (name == bridge or master == bridge):
            found.add(f"link {name}")
        elif not bridge and name.startswith(("veth", "sampan", "br-")):
            found.add(f"link {name}")
    return found


def _tables(name: str) -> set[str]:
    if shutil.which("nft") is None:
        return set()
    listing = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, check=False
    ).stdout
    return {f"nft {line}" for line in listing.splitlines() if (name or "sampan") in line}


def _processes(marks: tuple[str, ...]) -> set[str]:
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = (
                Path(f"/proc/{entry}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
            )
            stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
        except OSError:
            continue
        state, parent = stat.rsplit(")", 1)[1].split()[:2]
        if any(mark in command for mark in marks):
            found.add(f"process {entry} {command[:100]}")
        elif state == "Z" and int(parent) == os.getpid():
            found.add(f"zombie {entry}")
    return found


class Census:
    """A snapshot, and the question what has come since.

    `marks` are path pieces that identify the test's own directories (its root and run directories).
    """

    def __init__(self, *marks: str, cgroup_prefix: str = "sampan", bridge: str = "") -> None:
        self.marks = marks
        self.bridge = bridge
        self.cgroup_prefix = cgroup_prefix
        self.before = self.count()

    def count(self) -> set[str]:
        everything: set[str] = set()
        if self.marks:
            everything |= _mounts(self.marks) | _processes(self.marks)
        return (
            everything | _cgroups(self.cgroup_prefix) | _links(self.bridge) | _tables(self.bridge)
        )

    def left_behind(self, *, patience_s: float = 5.0) -> list[str]:
        """What is there now and was not before, after background teardown had `patience_s` seconds."""
        end = time.monotonic() + patience_s
        while True:
            extra = sorted(self.count() - self.before)
            if not extra or time.monotonic() > end:
                return extra
            time.sleep(0.05)
