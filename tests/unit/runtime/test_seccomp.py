"""The seccomp compiler: every call number under every architecture, against the plain meaning of the rules."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sampan.linux import constants as c
from sampan.linux.syscall_table import ARCHITECTURES, numbers
from sampan.runtime.seccomp import compile_profile
from tests.support import bpf

ALLOW = c.SECCOMP_RET_ALLOW
ERRNO = c.SECCOMP_RET_ERRNO
KILL_PROCESS = c.SECCOMP_RET_KILL_PROCESS
ENOSYS = ERRNO | 38
EPERM = ERRNO | 1

NATIVES = sorted({arch.native for arch in ARCHITECTURES.values()})
FAMILY = {
    native: [
        name for name, arch in ARCHITECTURES.items() if arch.native == native and name != "x32"
    ]
    for native in NATIVES
}


def code_of(profile: dict[str, Any], native: str = "x86_64") -> list[tuple[int, int, int, int]]:
    code = bpf.decode(compile_profile(profile, native).instructions)
    bpf.check(code)
    return code


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def interesting_numbers(architecture: str) -> list[int]:
    numbers_here = [
        *range(-1, 600),
        1000,
        0x3FFFFFFF,
        0x40000000,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFE,
        0xFFFFFFFF,
    ]
    numbers_here += (
        [0x40000000 + number for number in range(600)] if architecture == "x86_64" else []
    )
    numbers_here += [
        number + delta
        for number in numbers(architecture).values()
        for delta in (0, 1)
        if number > 600
    ]
    return [number & 0xFFFFFFFF for number in numbers_here]


def random_profile(rng: random.Random, native: str) -> dict[str, Any]:
    everything = sorted(
        {name for arch in FAMILY[native] for name in numbers(arch)} | {"no_such_call"}
    )
    actions = [
        "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG", "SCMP_ACT_TRACE",
    ]  # fmt: skip
    rules = []
    for _ in range(rng.randrange(1, 12)):
        action = rng.choice(actions)
        made = rule(*rng.sample(everything, rng.randrange(1, 120)), action=action)
        if action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and rng.random() < 0.5:
            made["errnoRet"] = rng.randrange(1, 134)
        if rng.random() < 0.4:
            made["args"] = [random_condition(rng) for _ in range(rng.randrange(1, 4))]
        rules.append(made)
    listed = [
        f"SCMP_ARCH_{name.upper()}" for name, arch in ARCHITECTURES.items() if arch.native == native
    ]
    made_profile = profile(*rules, default=rng.choice(actions))
    made_profile["architectures"] = rng.sample(listed, rng.randrange(len(listed) + 1))
    return made_profile


VALUES = (
    0,
    1,
    2,
    38,
    40,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x100000000,
    0x1FFFFFFFF,
    (1 << 64) - 1,
)


def random_condition(rng: random.Random) -> dict[str, Any]:
    operator = rng.choice(list(bpf.COMPARE))
    made = {"index": rng.randrange(3), "value": rng.choice(VALUES), "op": operator}
    if operator == "SCMP_CMP_MASKED_EQ":
        made["valueTwo"] = made["value"] & rng.choice(VALUES)
    return made


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("seed", range(6))
def test_random_profiles_answer_every_number_as_their_rules_say(native: str, seed: int) -> None:
    rng = random.Random(f"{native} {seed}")
    made = random_profile(rng, native)
    code = code_of(made, native)
    for architecture in FAMILY[native]:
        for number in interesting_numbers(architecture):
            args = tuple(rng.choice(VALUES) for _ in range(6))
            got = bpf.run(code, architecture, number, args)[0]
            assert got == bpf.expected(made, architecture, number, args), (
                architecture,
                number,
                args,
            )


@pytest.mark.parametrize("native", NATIVES)
def test_an_architecture_that_the_profile_does_not_name_is_killed(native: str) -> None:
    code = code_of(profile(rule("read")), native)
    for name in ARCHITECTURES:
        if name not in (native, "x32"):
            assert bpf.run(code, name, 0)[0] == KILL_PROCESS
    assert bpf.run(code, native, numbers(native)["read"])[0] == ALLOW


@pytest.mark.parametrize("operator", sorted(bpf.COMPARE))
@pytest.mark.parametrize("native", ["x86_64", "s390x"])
def test_each_operator_compares_all_64_bits(operator: str, native: str) -> None:
    family = FAMILY[native]
    for value in VALUES:
        for two in VALUES if operator == "SCMP_CMP_MASKED_EQ" else (0,):
            condition = {"index": 5, "value": value, "valueTwo": two, "op": operator}
            made = profile(
                rule("read", args=[condition]), architectures=["SCMP_ARCH_" + family[-1].upper()]
            )
            code = code_of(made, native)
            for architecture in family:
                number = numbers(architecture)["read"]
                for arg in (*VALUES, value + 1 & (1 << 64) - 1, value - 1 & (1 << 64) - 1):
                    args = (1, 1, 1, 1, 1, arg)
                    got = bpf.run(code, architecture, number, args)[0]
                    assert got == bpf.expected(made, architecture, number, args), (
                        architecture,
                        arg,
                        value,
                        two,
                    )


def test_conditions_of_one_rule_must_all_hold() -> None:
    args = [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"},
    ]
    code = code_of(profile(rule("read", args=args)))
    assert bpf.run(code, "x86_64", 0, (1, 2, 0, 0, 0, 0))[0] == ALLOW
    assert bpf.run(code, "x86_64", 0, (1, 3, 0, 0, 0, 0))[0] == EPERM
    assert bpf.run(code, "x86_64", 0, (3, 2, 0, 0, 0, 0))[0] == EPERM


def test_two_conditions_on_one_argument_are_alternatives_as_in_runc() -> None:
    args = [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"},
    ]
    code = code_of(profile(rule("read", args=args)))
    answers = [bpf.run(code, "x86_64", 0, (value, 0, 0, 0, 0, 0))[0] for value in range(4)]
    assert answers == [EPERM, ALLOW, ALLOW, EPERM]


def test_the_stricter_of_two_rules_wins_wherever_it_stands() -> None:
    deny = rule("chmod", action="SCMP_ACT_ERRNO", errnoRet=13)
    for rules in ([rule("chmod"), deny], [deny, rule("chmod")]):
        assert bpf.run(code_of(profile(*rules)), "x86_64", 90)[0] == ERRNO | 13


def test_an_allowed_call_may_have_a_stricter_exception() -> None:
    deny = rule(
        "socket", action="SCMP_ACT_KILL", args=[{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]
    )
    code = code_of(profile(rule("socket"), deny))
    assert bpf.run(code, "x86_64", 41, (2, 0, 0, 0, 0, 0))[0] == ALLOW
    assert bpf.run(code, "x86_64", 41, (40, 0, 0, 0, 0, 0))[0] == c.SECCOMP_RET_KILL_THREAD


def test_newer_numbers_than_the_profile_names_get_enosys() -> None:
    code = code_of(profile(rule("read", "openat2")))
    assert bpf.run(code, "x86_64", 437)[0] == ALLOW
    assert bpf.run(code, "x86_64", 436)[0] == EPERM
    assert bpf.run(code, "x86_64", 438)[0] == ENOSYS
    assert bpf.run(code, "x86_64", 100_000)[0] == ENOSYS
    assert bpf.run(code, "x86_64", -1)[0] == ENOSYS


def test_a_short_list_of_old_calls_keeps_its_errno_for_old_calls() -> None:
    code = code_of(profile(rule("read"), defaultErrnoRet=13))
    assert bpf.run(code, "x86_64", 300)[0] == ERRNO | 13
    assert bpf.run(code, "x86_64", 424)[0] == ENOSYS


def test_a_default_that_lets_through_lets_newer_numbers_through() -> None:
    for default in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"):
        code = code_of(profile(rule("read", action="SCMP_ACT_ERRNO"), default=default))
        answer, _ = bpf.run(code, "x86_64", 10_000)
        assert answer not in (ENOSYS, EPERM)


def test_x32_calls_are_killed_unless_the_profile_has_x32() -> None:
    without = code_of(profile(rule("getpid")))
    assert bpf.run(without, "x86_64", 0x40000000 + 39)[0] == KILL_PROCESS
    with_it = code_of(profile(rule("getpid", "ioctl"), architectures=["SCMP_ARCH_X32"]))
    assert bpf.run(with_it, "x86_64", 0x40000000 + 39)[0] == ALLOW
    assert bpf.run(with_it, "x86_64", 0x40000000 + 514)[0] == ALLOW
    assert bpf.run(with_it, "x86_64", 0x40000000 + 165)[0] == EPERM


def test_socketcall_carries_the_calls_that_are_allowed_outright() -> None:
    family = [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]
    code = code_of(
        profile(rule("connect"), rule("socket", args=family), architectures=["SCMP_ARCH_X86"])
    )
    socketcall = numbers("x86")["socketcall"]
    assert bpf.run(code, "x86", socketcall, (3, 0, 0, 0, 0, 0))[0] == ALLOW
    assert bpf.run(code, "x86", socketcall, (1, 0, 0, 0, 0, 0))[0] == EPERM


def test_a_long_list_of_conditions_on_one_call_stays_in_reach() -> None:
    rules = [
        rule("ioctl", args=[{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}])
        for value in range(0, 400, 2)
    ]
    many = rule(
        *(name for name, number in numbers("x86_64").items() if number % 3), action="SCMP_ACT_LOG"
    )
    made = profile(*rules, many)
    code = code_of(made)
    for value in (0, 1, 2, 398, 399, 400):
        args = (0, value, 0, 0, 0, 0)
        assert bpf.run(code, "x86_64", 16, args)[0] == bpf.expected(made, "x86_64", 16, args)
    for number in range(500):
        assert bpf.run(code, "x86_64", number)[0] == bpf.expected(made, "x86_64", number)


def test_a_program_over_the_kernels_limit_is_refused() -> None:
    rules = [
        rule("ioctl", args=[{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}])
        for value in range(1100)
    ]
    with pytest.raises(ValueError, match="4096"):
        compile_profile(profile(*rules), "x86_64")


def test_flags_listener_and_unknown_names_are_reported() -> None:
    program = compile_profile(
        profile(
            rule("mount", action="SCMP_ACT_NOTIFY"),
            rule("from_the_future"),
            flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
            listenerPath="/run/agent.sock",
            listenerMetadata="who",
        ),
        "x86_64",
    )
    assert program.flags == c.SECCOMP_FILTER_FLAG_LOG
    assert program.uses_notify
    assert (program.listener_path, program.listener_metadata) == ("/run/agent.sock", "who")
    assert program.unknown == ("from_the_future",)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (profile(default="SCMP_ACT_WAVE"), "invalid seccomp action"),
        ({"syscalls": []}, "invalid seccomp action"),
        (profile(default="SCMP_ACT_NOTIFY", listenerPath="/x"), "default action"),
        (profile(default="SCMP_ACT_ALLOW", defaultErrnoRet=1), "does not take an defaultErrnoRet"),
        (profile(rule("read", errnoRet=1)), "does not take an errnoRet"),
        (profile(rule("read", action="SCMP_ACT_ERRNO", errnoRet=5000)), "invalid seccomp errnoRet"),
        (profile(rule("read", action="SCMP_ACT_ERRNO", errnoRet=True)), "invalid seccomp errnoRet"),
        (profile(rule("mount", action="SCMP_ACT_NOTIFY")), "listenerPath"),
        (profile(rule("write", action="SCMP_ACT_NOTIFY"), listenerPath="/x"), "write"),
        (profile(rule()), "names no system call"),
        (profile(rule("")), "not a valid syscall"),
        (profile(rule("read", args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}])), "index"),
        (profile(rule("read", args=[{"index": -1, "value": 1, "op": "SCMP_CMP_EQ"}])), "index"),
        (profile(rule("read", args=[{"index": 0, "value": 1, "op": "EQ"}])), "operator"),
        (profile(rule("read", args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])), "value"),
        (
            profile(rule("read", args=[{"index": 0, "value": 1 << 64, "op": "SCMP_CMP_EQ"}])),
            "value",
        ),
        (profile(architectures=["SCMP_ARCH_VAX"]), "architecture"),
        (profile(architectures=["X86_64"]), "architecture"),
        (profile(flags=["SECCOMP_FILTER_FLAG_WISH"]), "flag"),
    ],
)
def test_what_is_not_understood_is_an_error(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_profile(broken, "x86_64")


def test_architectures_of_other_machines_are_accepted() -> None:
    listed = ["SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X", "SCMP_ARCH_PPC"]
    code = code_of(profile(rule("read"), architectures=listed))
    assert bpf.run(code, "aarch64", 63)[0] == KILL_PROCESS
    assert bpf.run(code, "x86_64", 0)[0] == ALLOW
