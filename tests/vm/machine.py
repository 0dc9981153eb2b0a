"""A small virtual machine with cgroup v2: Debian's cloud kernel under QEMU's interpreter, root disk made here.

    initramfs (cpio)     busybox, the modules for a virtio disk, `init.sh`
    base disk (ext4)     Python with its library, test dependencies, busybox, a few programs; built once
    tree disk (ext4)     src/, tests/ and what lies beside them; built at each run

The guest mounts both disks, runs pytest on the files that it is asked for and prints one line per test on the serial
line (`report.py`), which `run` parses. KVM is not used: where this runs there often is none, and the
guest needs seconds either way.

Source: qemu-system-x86_64(1), mke2fs(8), Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FORMAT = "7"  # of the base disk; a change makes old ones unused
QEMU = "qemu-system-x86_64"
MEMORY = "1536M"
MARK = "@@vm@@"

# What the disk needs, and what containers need; dependencies come from modules.dep.
DISK_MODULES = ("virtio_pci", "virtio_blk")
GUEST_MODULES = (
    "overlay", "loop", "erofs", "fuse", "veth", "bridge", "dummy", "nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat",
    "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_reject_inet",
    "xt_MASQUERADE", "iptable_nat", "nft_meta_bridge", "ipvlan", "macvlan", "8021q",
)  # fmt: skip
PROGRAMS = (
    "busybox", "systemctl", "tar", "nft", "ip", "crun", "runc", "docker", "newuidmap", "newgidmap",
)  # fmt: skip
# A user's systemd needs no more than this to make scopes.
SYSTEMD = (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/user"))
# Large, and of no use in the guest.
LEFT_OUT_PACKAGES = (
    "mypy",
    "mypyc",
    "ruff",
    "pip",
    "setuptools",
    "pkg_resources",
    "hatchling",
    "trove_classifiers",
)
LEFT_OUT_LIBRARY = (
    "site-packages", "dist-packages", "test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "config-*",
    "pydoc_data",
)  # fmt: skip
TREE = ("src", "tests", "scripts", "pyproject.toml", "sampan", "bench")


class Missing(Exception):
    """What this host lacks to run the machine."""


@dataclass
class Result:
    """What the guest reported."""

    outcomes: dict[str, str] = field(
        default_factory=dict
    )  # test id -> passed, failed, skipped, error
    details: dict[str, str] = field(default_factory=dict)  # test id -> why
    facts: dict[str, str] = field(default_factory=dict)
    console: str = ""
    finished: bool = False

    def failures(self) -> list[str]:
        return sorted(
            name for name, outcome in self.outcomes.items() if outcome not in ("passed", "skipped")
        )


# ---------------------------------------------------------------------------------------- parts


def find_kernel() -> Path:
    """The newest cloud kernel whose modules are there too."""
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    for kernel in reversed(kernels):
        if (Path("/lib/modules") / release_of(kernel) / "modules.dep").exists():
            return kernel
    raise Missing("needs Debian's linux-image-cloud-amd64 (kernel and modules)")


def release_of(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinuz-")


def require_programs() -> None:
    if shutil.which(QEMU) is None:
        raise Missing("needs qemu-system-x86 (Debian package)")
    if mke2fs() is None:
        raise Missing("needs mke2fs (Debian's e2fsprogs)")
    if shutil.which("busybox") is None:
        raise Missing("needs Debian's busybox-static")


def mke2fs() -> str | None:
    return shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def module_files(release: str, names: Iterable[str]) -> list[Path]:
    """The modules with all that they depend on, each after its dependencies; built-in ones are left out."""
    root = Path("/lib/modules") / release
    wants: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (root / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        path_of[module_name(path)] = path
        wants[path] = needed.split()
    ordered: list[str] = []

    def add(path: str) -> None:
        # modules.dep lists a module's dependencies nearest first.
        for needed in reversed(wants[path]):
            if needed not in ordered:
                ordered.append(needed)
        if path not in ordered:
            ordered.append(path)

    for name in names:
        if name in path_of:
            add(path_of[name])
    return [root / path for path in ordered]


def module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def libraries_of(program: Path) -> list[Path]:
    """The shared libraries that a program loads at start, its interpreter among them."""
    shown = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    words = [word for line in shown.stdout.splitlines() for word in line.split()]
    return [Path(word) for word in words if word.startswith("/")]


# ---------------------------------------------------------------------------------------- initramfs


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A newc archive of (name, mode, content)."""
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def initramfs(release: str) -> bytes:
    busybox = Path(shutil.which("busybox") or "")
    directory, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [
        (name, directory, b"") for name in ("bin", "dev", "proc", "sys", "modules", "newroot")
    ]
    entries += [
        ("bin/busybox", file, busybox.read_bytes()),
        ("init", file, (HERE / "boot.sh").read_bytes()),
    ]
    for number, path in enumerate(module_files(release, DISK_MODULES)):
        entries.append((f"modules/{number:02d}-{path.name}", file, path.read_bytes()))
    return cpio(entries)


# ---------------------------------------------------------------------------------------- disks


def make_disk(image: Path, directory: Path, megabytes: int) -> None:
    """An ext4 image that holds `directory`; needs no root, as mke2fs writes the image itself."""
    image.unlink(missing_ok=True)
    command = [
        mke2fs() or "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0,lazy_itable_init=1",
        "-m", "0", "-N", "60000", "-d", str(directory), str(image), f"{megabytes}M",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def base_disk(cache: Path, release: str) -> Path:
    """The disk with everything but the tree; found again by the hash of what is in it."""
    sources = list(base_sources(release))
    facts = [
        FORMAT,
        release,
        sys.version,
        *(f"{src} {src.stat().st_mtime_ns}" for src, _ in sources),
    ]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    image = cache / f"base-{key}.ext4"
    if image.exists():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("base-*.ext4"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=cache) as staging:
        root = Path(staging) / "root"
        for name in (
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "repo",
            "root",
            "var/tmp",
            "var/lib",
            "etc",
            "mnt",
        ):
            (root / name).mkdir(parents=True)
        for source, target in sources:
            copy(source, root / str(target).lstrip("/"))
        applets = subprocess.run(
            ["busybox", "--list-full"], capture_output=True, text=True, check=True
        )
        for applet in applets.stdout.split():
            link = root / applet
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists() and not link.is_symlink():
                link.symlink_to("/usr/bin/busybox")
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
        )
        (root / "etc/group").write_text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        partial = cache / f"partial-{os.getpid()}.ext4"
        make_disk(partial, root, 768)
        partial.rename(image)
    return image


def base_sources(release: str) -> Iterator[tuple[Path, Path]]:
    """(what, where in the guest) of every file and directory of the base disk."""
    interpreter = Path(sys.executable).resolve()
    systemd = [path for path in SYSTEMD if path.exists()]
    programs = [interpreter, *(Path(found) for name in PROGRAMS if (found := find_program(name)))]
    libraries: dict[Path, Path] = {}
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})).resolve()
    extensions = [path for package in site_packages() for path in package.rglob("*.so")]
    for program in [*programs, *systemd[:1], *library.glob("lib-dynload/*.so"), *extensions]:
        for found in libraries_of(program):
            libraries[found] = found
    yield interpreter, interpreter
    for program in programs[1:]:
        yield program.resolve(), Path("/usr/bin") / program.name
    for found in sorted(libraries):
        yield found.resolve(), found
    for path in systemd:
        yield path, path
    yield library, library
    site = site_directory(interpreter)
    for package in sorted(site_packages()):
        yield package, site / package.name
    for number, module in enumerate(module_files(release, GUEST_MODULES)):
        yield module, Path("/vm/modules") / f"{number:02d}-{module.name}"


def site_directory(interpreter: Path) -> Path:
    """Where the interpreter itself looks (Debian's own has a word of its own for it), so that programs started by the
    tests find the packages too."""
    question = "import site; print(site.getsitepackages()[0])"
    answer = subprocess.run(
        [interpreter, "-I", "-c", question], capture_output=True, text=True, check=True
    )
    return Path(answer.stdout.strip())


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def site_packages() -> list[Path]:
    import pytest

    root = Path(pytest.__file__).resolve().parents[1]
    kept = []
    for entry in root.iterdir():
        name = entry.name.partition("-")[0]
        if (
            name not in LEFT_OUT_PACKAGES
            and "__mypyc" not in name
            and not entry.name.endswith(".pth")
        ):
            kept.append(entry)
    return kept


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignore = shutil.ignore_patterns(*LEFT_OUT_LIBRARY) if (source / "os.py").exists() else None
        shutil.copytree(
            source,
            target,
            symlinks=True,
            ignore=ignore,
            copy_function=link_or_copy,
            dirs_exist_ok=True,
        )
    elif not target.exists():
        link_or_copy(str(source), str(target))


def link_or_copy(source: str, target: str) -> None:
    """A hard link where the staging directory lies on the same filesystem: no bytes are moved."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def tree_disk(image: Path) -> Path:
    with tempfile.TemporaryDirectory() as staging:
        root = Path(staging)
        for name in TREE:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(
                    source, root / name, symlinks=True, ignore=shutil.ignore_patterns("*.sock")
                )
            elif source.exists():
                shutil.copy2(source, root / name)
        make_disk(image, root, 64)
    return image


# ---------------------------------------------------------------------------------------- running

BOOTS = 2
SILENCE_S = 60.0


def run(tests: Iterable[str], *, cache: Path, work: Path, seconds: float) -> Result:
    """Boot, run pytest on `tests` (its arguments) in the guest, and report. Raises Missing."""
    require_programs()
    kernel = find_kernel()
    base = base_disk(cache, release_of(kernel))
    tree = tree_disk(work / "tree.ext4")
    (work / "initramfs").write_bytes(initramfs(release_of(kernel)))
    arguments = " ".join(tests)
    command = [
        QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-nodefaults", "-no-reboot",
        "-display", "none", "-serial", "stdio",
        "-kernel", str(kernel), "-initrd", str(work / "initramfs"),
        "-drive", f"file={base},format=raw,if=virtio,snapshot=on",
        "-drive", f"file={tree},format=raw,if=virtio,snapshot=on",
        "-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off cgroup_no_v1=all apparmor=1"
        f" security=apparmor vm.python={Path(sys.executable).resolve()} -- {arguments}",
    ]  # fmt: skip
    for _ in range(BOOTS):
        if watched(command, work / "console", seconds):
            break
    return parse((work / "console").read_text(errors="replace"))


def watched(command: list[str], console: Path, seconds: float) -> bool:
    """Run the emulator to its end, or to the end of `seconds`; False where its console fell silent and it was stopped.

    An emulated processor sometimes stops making progress on a busy host, with no defect of what runs in it. A hang of
    ours would come again at the next boot, and is then a failure.
    """
    started = last = time.monotonic()
    size = 0
    with open(console, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while time.monotonic() - started < seconds:
                try:
                    process.wait(timeout=1)
                    return True
                except subprocess.TimeoutExpired:
                    pass
                if console.stat().st_size != size:
                    size, last = console.stat().st_size, time.monotonic()
                elif time.monotonic() - last > SILENCE_S:
                    return False
            return True
        finally:
            process.kill()
            process.wait()


def parse(console: str) -> Result:
    """The marked lines: '@@vm@@ fact NAME VALUE', '@@vm@@ OUTCOME ID', and '@@vm@@ why ID' before an explanation."""
    result = Result(console=console)
    explaining = ""
    for line in console.replace("\r", "").splitlines():
        if not line.startswith(MARK):
            if explaining:
                result.details[explaining] += line + "\n"
            continue
        explaining = ""
        word, _, rest = line.removeprefix(MARK).strip().partition(" ")
        if word == "done":
            result.finished = True
        elif word == "fact":
            name, _, value = rest.partition(" ")
            result.facts[name] = value
        elif word == "why":
            explaining = rest
            result.details[rest] = ""
        else:
            result.outcomes[rest] = word
    return result
