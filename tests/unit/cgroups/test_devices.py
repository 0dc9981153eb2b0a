"""Device rules: the list, v1's lines, and v2's program against the list's plain meaning."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sampan.cgroups.devices import (
    ANY,
    DEFAULT_RULES,
    DENY_ALL,
    Rule,
    effective,
    parse_rule,
    program,
    v1_listing,
    v1_writes,
)
from tests.support import ebpf

DENY = {"allow": False, "access": "rwm"}


def allow(
    kind: str, major: int | None = None, minor: int | None = None, access: str = "rwm"
) -> dict[str, Any]:
    row: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        row["major"] = major
    if minor is not None:
        row["minor"] = minor
    return row


def permits(rules: list[Rule], kind: str, major: int, minor: int, access: str) -> bool:
    """The last rule that names a letter of the access, for this device, decides that letter."""

    def one(letter: str) -> bool:
        for rule in reversed(rules):
            if rule.is_everything() or (
                rule.kind == kind
                and rule.major in (ANY, major)
                and rule.minor in (ANY, minor)
                and letter in rule.access
            ):
                return rule.allow
        raise AssertionError("a list begins with a rule for everything")

    return all(one(letter) for letter in access)


def test_no_rules_mean_the_default_devices_and_nothing_else() -> None:
    rules = effective(None)
    assert rules == [DENY_ALL, *DEFAULT_RULES]
    compiled = program(rules)
    assert ebpf.run(compiled, "c", 1, 3, "rw")  # /dev/null
    assert ebpf.run(compiled, "c", 136, 7, "rw")  # a pty
    assert ebpf.run(compiled, "b", 8, 0, "m")  # making a node harms nobody
    assert not ebpf.run(compiled, "b", 8, 0, "r")
    assert not ebpf.run(compiled, "c", 1, 1, "r")  # /dev/mem
    assert not ebpf.run(compiled, "c", 10, 229, "rw")  # fuse
    assert ebpf.run(compiled, "c", 10, 200, "rw")  # net/tun


def test_everything_allowed_is_one_rule() -> None:
    rules = effective([DENY, {"allow": True, "access": "rwm"}])
    assert v1_writes(rules) == [("devices.allow", "a")]
    assert ebpf.run(program(rules), "b", 8, 0, "rwm")


def test_a_deny_after_allow_everything_holds() -> None:
    rules = effective(
        [{"allow": True, "type": "a"}, {"allow": False, "type": "b", "major": 8, "access": "w"}]
    )
    compiled = program(rules)
    assert ebpf.run(compiled, "b", 8, 1, "r")
    assert not ebpf.run(compiled, "b", 8, 1, "rw")


def test_accesses_granted_by_separate_rules_add_up() -> None:
    compiled = program(effective([DENY, allow("c", 10, 229, "r"), allow("c", 10, 229, "w")]))
    assert ebpf.run(compiled, "c", 10, 229, "rw")
    assert not ebpf.run(compiled, "c", 10, 230, "r")


def test_v1_lines() -> None:
    rules = effective([DENY, allow("c", 10, 229, "wr"), allow("b", 8), allow("b", 8)])
    lines = v1_writes(rules)
    assert lines[:3] == [
        ("devices.deny", "a"),
        ("devices.allow", "c 10:229 rw"),
        ("devices.allow", "b 8:* rwm"),
    ]
    assert len(lines) == 3 + len(DEFAULT_RULES)
    assert ("devices.allow", "c 136:* rwm") in lines


def test_v1_listing_tells_whether_a_rewrite_would_change_anything() -> None:
    listed = v1_listing(effective([DENY, allow("c", 10, 229)]))
    assert listed is not None
    assert "c 10:229 rwm" in listed
    assert v1_listing(effective([{"allow": True}])) == {"a *:* rwm"}
    assert v1_listing(effective([DENY, {"allow": False, "type": "c", "major": 5}])) is None


@pytest.mark.parametrize("seed", range(30))
def test_random_lists_answer_as_the_last_matching_rule_says(seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randrange(12)):
        row: dict[str, Any] = {"allow": rng.random() < 0.6, "type": rng.choice("abccb")}
        row["access"] = "".join(rng.sample("rwm", rng.randrange(1, 4)))
        for key in ("major", "minor"):
            if rng.random() < 0.7:
                row[key] = rng.choice((-1, 0, 1, 5, 8, 0x7FFFFFFF, 0xFFFFFFFF))
        rows.append(row)
    rules = effective(rows)
    compiled = program(rules)
    for kind in "bc":
        for major in (0, 1, 5, 8, 0x7FFFFFFF):
            for minor in (0, 1, 3, 5, 8):
                for access in ("r", "w", "m", "rw", "rwm"):
                    want = permits(rules, kind, major, minor, access)
                    assert ebpf.run(compiled, kind, major, minor, access) == want, (
                        rules,
                        kind,
                        major,
                        minor,
                        access,
                    )


@pytest.mark.parametrize(
    "row",
    [
        {"allow": True, "type": "x"},
        {"allow": True, "type": "c", "access": "rx"},
        {"allow": True, "type": "c", "major": -2},
        {"allow": True, "type": "c", "minor": True},
        {"allow": True, "type": "c", "major": "1"},
    ],
)
def test_a_rule_that_is_not_understood_is_an_error(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="invalid device cgroup rule"):
        parse_rule(row)
