"""`doctor`: what this host can do for containers, checked and told in words, with what to do where it cannot.

Nothing is changed and no engine is started. Exit status 1 when something that every container needs is missing.
"""

from __future__ import annotations

import os
import shutil
import sys

from sampan.cli.session import dial, out, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options
    from sampan.cli.session import Session

GOOD, WARNING, BAD = "ok", "note", "missing"
SIGNS = {GOOD: "  ok     ", WARNING: "  note   ", BAD: "  MISSING"}


class Finding:
    """One check's result: how it stands, what was seen, what to do."""

    __slots__ = ("advice", "level", "text")

    def __init__(self, level: str, text: str, advice: str = "") -> None:
        self.level = level
        self.text = text
        self.advice = advice


def doctor(session: Session, options: Options) -> int:
    findings = [
        kernel(os.uname().release),
        *namespaces(),
        cgroups(read_file("/proc/self/mountinfo"), read_file("/proc/cgroups")),
        filesystem(read_file("/proc/filesystems")),
        seccomp(),
        *forwarding(),
        *user_namespaces(),
        python(),
        programs(),
        engine(session),
    ]
    for finding in findings:
        out(f"{SIGNS[finding.level]} {finding.text}")
        if finding.advice:
            out(f"           ({finding.advice})")
    missing = sum(f.level == BAD for f in findings)
    notes = sum(f.level == WARNING for f in findings)
    out(f"\n{len(findings)} checks: {missing} missing, {notes} to note")
    return 1 if missing else 0


def kernel(release: str) -> Finding:
    numbers = [int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    if numbers < [5, 8]:
        return Finding(
            BAD, f"kernel {release}", "5.8 or newer is needed: openat2, pidfds, clone3, close_range"
        )
    if numbers < [6, 6]:
        return Finding(GOOD, f"kernel {release}: all that is needed; 6.6 and newer mount faster")
    return Finding(GOOD, f"kernel {release}")


def namespaces() -> list[Finding]:
    names = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
    lacking = [name for name in names if not os.path.exists(f"/proc/self/ns/{name}")]
    if lacking:
        return [
            Finding(
                BAD, f"namespaces: no {', '.join(lacking)}", "the kernel was built without them"
            )
        ]
    return [Finding(GOOD, f"namespaces: {', '.join(names)}")]


def cgroups(mountinfo: str, controllers: str) -> Finding:
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in mountinfo.splitlines()]
    if "cgroup" in kinds:
        enabled = [
            line.split("\t")[0] for line in controllers.splitlines()[1:] if line.endswith("\t1")
        ]
        lacking = [name for name in ("memory", "cpu", "pids", "devices") if name not in enabled]
        text = f"control groups: version 1, {', '.join(sorted(enabled))}"
        if lacking:
            return Finding(
                WARNING,
                text,
                f"limits of {', '.join(lacking)} will not hold: boot with cgroup_enable=...",
            )
        return Finding(GOOD, text)
    if "cgroup2" in kinds:
        available = read_file("/sys/fs/cgroup/cgroup.controllers").split()
        return Finding(GOOD, f"control groups: version 2, {', '.join(available)}")
    return Finding(BAD, "control groups: not mounted", "mount -t cgroup2 none /sys/fs/cgroup")


def filesystem(text: str) -> Finding:
    known = {line.split("\t")[-1] for line in text.splitlines()}
    if "overlay" in known and "erofs" in known:
        return Finding(GOOD, "file systems: overlay, erofs")
    if "overlay" in known:
        return Finding(
            GOOD, "file systems: overlay (erofs, where there is one, makes loading images faster)"
        )
    advice = "modprobe overlay; without it layers are copied whole"
    return Finding(WARNING, "file systems: no overlay", advice)


def seccomp() -> Finding:
    if "\nSeccomp:" not in read_file("/proc/self/status"):
        return Finding(
            BAD, "seccomp: not in this kernel", "containers would reach every system call"
        )
    return Finding(GOOD, "seccomp: filters are possible")


def forwarding() -> list[Finding]:
    if os.geteuid() != 0:
        return []
    value = read_file("/proc/sys/net/ipv4/ip_forward").strip()
    if value == "1":
        return [Finding(GOOD, "network: packets are forwarded")]
    return [
        Finding(
            WARNING,
            "network: ip_forward is off",
            "the engine turns it on when it makes its first network",
        )
    ]


def user_namespaces() -> list[Finding]:
    if os.geteuid() == 0:
        return [Finding(GOOD, "user: root, all of the engine's functions")]
    found = []
    restricted = read_file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1"
    off = read_file("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0"
    if restricted or off:
        setting = (
            "kernel.apparmor_restrict_unprivileged_userns=0"
            if restricted
            else "kernel.unprivileged_userns_clone=1"
        )
        found.append(
            Finding(BAD, "user: may not make user namespaces", f"as root: sysctl -w {setting}")
        )
    else:
        found.append(Finding(GOOD, "user: not root, may make user namespaces"))
    name = os.environ.get("USER") or str(os.geteuid())
    if not any(
        line.startswith((f"{name}:", f"{os.geteuid()}:"))
        for line in read_file("/etc/subuid").splitlines()
    ):
        advice = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        found.append(Finding(WARNING, "user: no subordinate numbers in /etc/subuid", advice))
    lacking = [p for p in ("newuidmap", "newgidmap") if shutil.which(p) is None]
    if lacking:
        found.append(
            Finding(WARNING, f"user: no {', '.join(lacking)}", "install the package uidmap")
        )
    if not any(shutil.which(p) for p in ("pasta", "slirp4netns")):
        found.append(
            Finding(
                WARNING, "user: no pasta or slirp4netns", "install one of the two, for networks"
            )
        )
    return found


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(GOOD, f"Python {version} ({sys.executable})")


def programs() -> Finding:
    """None is needed; some are of use."""
    wanted = {
        "nft": "to look at the firewall rules",
        "git": "for builds from repositories",
        "ssh": "for ssh:// engines",
    }
    lacking = [f"{name} ({why})" for name, why in wanted.items() if shutil.which(name) is None]
    if lacking:
        return Finding(GOOD, f"programs: all that is needed; not found: {', '.join(lacking)}")
    return Finding(GOOD, "programs: nothing else is needed")


def engine(session: Session) -> Finding:
    host = session.host
    if not host.startswith("unix://"):
        return Finding(GOOD, f"engine: {host} (not asked)")
    try:
        dial(host.removeprefix("unix://")).close()
    except PermissionError:
        return Finding(
            WARNING,
            f"engine: may not talk to {host}",
            "join the group that owns the socket, or use sudo",
        )
    except OSError:
        return Finding(GOOD, f"engine: none at {host}; the first command starts one")
    return Finding(GOOD, f"engine: answers at {host}")
