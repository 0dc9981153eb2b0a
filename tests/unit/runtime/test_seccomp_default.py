"""The default profile: what it allows and denies, number by number, and how it is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sampan.linux.constants import CAPS
from sampan.linux.syscall_table import ARCHITECTURES, newest, numbers
from sampan.runtime import seccomp_cache
from sampan.runtime.seccomp import compile_profile
from sampan.runtime.seccomp_default import (
    BY_ARCHITECTURE,
    BY_CAPABILITY,
    COMPANIONS,
    TRACING,
    default_profile,
    unconditional,
)
from tests.support import bpf

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
DOCKERS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
]  # fmt: skip
ALL_64 = sorted({arch.native for arch in ARCHITECTURES.values()})


def code_of(
    capabilities: list[str] = DOCKERS, machine: str = "x86_64", **more: Any
) -> list[tuple[int, int, int, int]]:
    profile = default_profile(capabilities, machine, more.pop("kernel", "6.18.0"), **more)
    code = bpf.decode(compile_profile(profile, machine).instructions)
    bpf.check(code)
    return code


def answer(
    code: list[tuple[int, int, int, int]], name: str, *args: int, arch: str = "x86_64"
) -> int:
    padded = (*args, *(0,) * (6 - len(args)))
    return bpf.run(code, arch, numbers(arch)[name], padded)[0]


@pytest.mark.parametrize("machine", ALL_64)
def test_every_number_of_every_convention_answers_as_the_rules_say(machine: str) -> None:
    profile = default_profile(DOCKERS, machine, "6.18.0")
    code = code_of(machine=machine)
    for name in COMPANIONS[machine]:
        architecture = name.removeprefix("SCMP_ARCH_").lower()
        if architecture == "x32":
            continue
        offsets = (0, 0x40000000) if architecture == "x86_64" else (0,)
        for number in range(1200):
            for offset in offsets:
                for first in (0, 2, 38, 40, 0x10000000):
                    args = (first, first, 0, 0, 0, 0)
                    got, _ = bpf.run(code, architecture, number + offset, args)
                    assert got == bpf.expected(profile, architecture, number + offset, args), (
                        architecture,
                        number,
                    )


def test_the_program_is_short_and_every_call_is_answered_in_few_steps() -> None:
    code = code_of()
    assert len(code) < 320
    assert max(bpf.run(code, "x86_64", number)[1] for number in range(500)) <= 16
    assert max(bpf.run(code, "x86", number)[1] for number in range(500)) <= 17


@pytest.mark.parametrize(
    "name",
    [
        "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "bpf",
        "userfaultfd", "perf_event_open", "unshare", "setns", "mount", "umount2", "pivot_root", "fsopen",
        "fsmount", "fsconfig", "fspick", "open_tree", "move_mount", "mount_setattr", "open_by_handle_at",
        "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff",
        "reboot", "acct", "iopl", "ioperm", "settimeofday", "clock_settime", "quotactl", "syslog", "mbind",
        "move_pages", "migrate_pages", "kcmp", "pidfd_getfd", "process_madvise", "fanotify_init", "uselib",
        "ustat", "sysfs", "vhangup", "nfsservctl", "lookup_dcookie", "sethostname", "setdomainname",
    ],
)  # fmt: skip
def test_what_a_container_must_not_do_answers_eperm(name: str) -> None:
    assert answer(code_of(), name) == EPERM


def test_namespaces_are_refused_and_threads_are_not() -> None:
    code = code_of()
    assert answer(code, "clone", 0x3D0F00) == ALLOW  # what pthread_create asks
    assert answer(code, "clone", 17) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(code, "clone", flag | 17) == EPERM
    assert answer(code, "clone3") == ENOSYS
    s390 = code_of(machine="s390x")
    assert answer(s390, "clone", 0, 0x10000000, arch="s390x") == EPERM
    assert answer(s390, "clone", 0x10000000, 17, arch="s390x") == ALLOW


def test_two_socket_families_are_refused_under_each_convention() -> None:
    code = code_of()
    for arch in ("x86_64", "x86"):
        answers = {family: answer(code, "socket", family, arch=arch) for family in range(50)}
        assert [family for family, got in answers.items() if got == EPERM] == [38, 40]


def test_personalities() -> None:
    code = code_of()
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert answer(code, "personality", value) == ALLOW
    for value in (0x40000, 0x400000, 0x100000, 9):
        assert answer(code, "personality", value) == EPERM


@pytest.mark.parametrize("capability", sorted(BY_CAPABILITY))
def test_a_capability_brings_its_calls_and_no_others(capability: str) -> None:
    plain, granted = code_of(), code_of([*DOCKERS, capability])
    without = code_of([name for name in DOCKERS if name != capability])
    names = set(BY_CAPABILITY[capability].split())
    for name, number in numbers("x86_64").items():
        got = bpf.run(granted, "x86_64", number)[0]
        if name in names:
            assert got == ALLOW
            if name not in ("clone", *TRACING.split()):
                assert bpf.run(without, "x86_64", number)[0] != ALLOW
        elif name != "socket":
            assert got == bpf.run(plain, "x86_64", number)[0] or number > 450


def test_ptrace_needs_a_kernel_that_checks_it() -> None:
    assert answer(code_of(kernel="4.7.9"), "ptrace") == EPERM
    assert answer(code_of(kernel="4.19.0-cloud"), "ptrace") == ALLOW


def test_without_the_32_bit_conventions_their_calls_are_killed() -> None:
    code = code_of(compat=False)
    assert answer(code, "read") == ALLOW
    assert answer(code, "read", arch="x86") == 0x80000000
    assert bpf.run(code, "x86_64", 0x40000000)[0] == 0x80000000


def test_every_name_is_known_and_stands_once() -> None:
    known = {name for arch in ARCHITECTURES for name in numbers(arch)} | {"recv", "send"}
    listed = unconditional()
    assert len(set(listed)) == len(listed)
    for names in (
        listed,
        *(text.split() for text in (*BY_ARCHITECTURE.values(), *BY_CAPABILITY.values())),
    ):
        assert set(names) <= known
    assert set(BY_CAPABILITY) <= set(CAPS)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_tables_count_up_without_a_number_twice(arch: str) -> None:
    table = numbers(arch)
    assert len(set(table.values())) == len(table)
    assert newest(arch) >= 469
    # From 424 on all architectures agree.
    for name, number in numbers("x86_64").items():
        if 424 <= number < 500 and name in table:
            assert table[name] == number


def test_the_running_kernels_own_numbers_agree() -> None:
    """glibc's headers are somebody else's copy of the same facts."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[1].startswith("__NR_"):
            assert numbers("x86_64")[words[1].removeprefix("__NR_")] == int(words[2])


class TestCache:
    PROFILE = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }

    @pytest.fixture(autouse=True)
    def _forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seccomp_cache, "_programs", {})
        monkeypatch.setattr(seccomp_cache, "_default_programs", {})

    def test_the_default_program_is_compiled_once_per_bounding_set(self) -> None:
        first = seccomp_cache.default_program(0xA80425FB, machine="x86_64", kernel="6.18")
        again = seccomp_cache.default_program(0xA80425FB, machine="x86_64", kernel="6.18")
        other = seccomp_cache.default_program(0xA82425FB, machine="x86_64", kernel="6.18")
        assert first is again
        assert other.instructions != first.instructions

    def test_a_stored_program_comes_back_equal(self, tmp_path: Path) -> None:
        directory = str(tmp_path / "seccomp")
        profile = {**self.PROFILE, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}
        compiled = seccomp_cache.program_for(profile, "x86_64", directory)
        assert len(os.listdir(directory)) == 1
        seccomp_cache._programs.clear()
        stored = seccomp_cache.program_for(profile, "x86_64", directory)
        assert stored is not compiled
        assert (stored.instructions, stored.flags) == (compiled.instructions, compiled.flags)

    def test_another_profile_or_machine_is_another_file(self, tmp_path: Path) -> None:
        directory = str(tmp_path / "seccomp")
        for profile in (self.PROFILE, {**self.PROFILE, "defaultErrnoRet": 13}):
            for machine in ("x86_64", "aarch64"):
                seccomp_cache.program_for(profile, machine, directory)
        assert len(os.listdir(directory)) == 4

    @pytest.mark.parametrize(
        "damage", [b"", b"BPFc", b"BPFc\0\0\0\0123", b"XXXX\0\0\0\0" + bytes(8), bytes(99999)]
    )
    def test_a_damaged_file_is_not_used(self, tmp_path: Path, damage: bytes) -> None:
        directory = str(tmp_path / "seccomp")
        good = seccomp_cache.program_for(self.PROFILE, "x86_64", directory)
        file = next((tmp_path / "seccomp").iterdir())
        file.write_bytes(damage)
        seccomp_cache._programs.clear()
        assert (
            seccomp_cache.program_for(self.PROFILE, "x86_64", directory).instructions
            == good.instructions
        )

    def test_a_file_that_others_may_write_is_not_used(self, tmp_path: Path) -> None:
        directory = str(tmp_path / "seccomp")
        good = seccomp_cache.program_for(self.PROFILE, "x86_64", directory)
        file = next((tmp_path / "seccomp").iterdir())
        allow_all = b"BPFc\0\0\0\0" + b"\x06\0\0\0\0\0\xff\x7f"
        file.write_bytes(allow_all)
        file.chmod(0o666)
        seccomp_cache._programs.clear()
        assert (
            seccomp_cache.program_for(self.PROFILE, "x86_64", directory).instructions
            == good.instructions
        )

    def test_a_directory_that_others_may_write_is_not_used(self, tmp_path: Path) -> None:
        directory = tmp_path / "open"
        directory.mkdir()
        directory.chmod(0o777)
        seccomp_cache.program_for(self.PROFILE, "x86_64", str(directory))
        assert list(directory.iterdir()) == []
