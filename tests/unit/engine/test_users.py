"""Who a process runs as."""

from __future__ import annotations

import pytest

from sampan.engine.users import resolve
from sampan.errors import InvalidArgument

PASSWD = """root:x:0:0:root:/root:/bin/sh
www:x:33:44:web:/srv:/bin/false
broken
bad:x:1_0:0::/:
big:x:4294967296:0::/:
"""
GROUP = "root:x:0:\nweb:x:44:\nextra:x:100:www,root\nodd:x:２:www\n"


def who(text: str, *additional: str) -> tuple[int, int, tuple[int, ...], str]:
    user = resolve(text, passwd=PASSWD, group=GROUP, additional=additional)
    return user.uid, user.gid, user.groups, user.home


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, (0, 100), "/root")),
        ("www", (33, 44, (44, 100), "/srv")),
        ("33", (33, 44, (44, 100), "/srv")),
        ("www:root", (33, 0, (0,), "/srv")),
        ("1000", (1000, 0, (0,), "/")),
        ("1000:1001", (1000, 1001, (1001,), "/")),
    ],
)
def test_forms(text: str, expected: tuple[int, int, tuple[int, ...], str]) -> None:
    assert who(text) == expected


def test_groups_asked_for_are_added() -> None:
    assert who("1000", "extra", "7")[2] == (0, 100, 7)


@pytest.mark.parametrize(
    "text",
    ["nosuch", "1_0", " 7", "7 ", "٣", "-1", "4294967296", "2147483648", "0x10", "1:nosuch", "1:1_0", "1:-1", "bad", "big"],
)  # fmt: skip
def test_what_is_neither_a_name_nor_a_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        who(text)
