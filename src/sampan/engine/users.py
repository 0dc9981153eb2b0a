"""Who a process runs as: `USER` of an image or `-u` resolved with the container's own passwd and group. Pure.

Forms: name, uid, name:group, uid:gid, and mixtures. The texts of /etc/passwd and /etc/group come from outside, read
by descriptor with a size limit (a FIFO, an endless or a huge file there is an attack: CVE-2024-9676); nothing here
asks the host's own databases. Numbers are strict: `int('1_0')`, ' 7 ' and Arabic digits are not numbers, and what
does not fit a uid is refused rather than wrapped (CVE-2016-3697, CVE-2024-40635).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sampan.engine.records import SharedFacts
from sampan.errors import InvalidArgument
from sampan.spec.runtime import User
from sampan.units import is_digits, parse_uint

HIGHEST_ID = (1 << 31) - 1
PASSWD = "/etc/passwd"
GROUP = "/etc/group"
MAX_BYTES = 4 << 20  # more is not a passwd file


class ExecUser(msgspec.Struct, frozen=True, kw_only=True):
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"

    def as_oci(self, facts: SharedFacts) -> User:
        """In OCI words. Where there is only one group id there are no supplementary ones: setgroups(2) is denied."""
        user: User = {"uid": self.uid, "gid": self.gid}
        if self.groups and not facts.one_id:
            user["additionalGids"] = list(self.groups)
        return user


class _Account(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int
    home: str


class _Group(msgspec.Struct, frozen=True):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(text: str, *, passwd: str, group: str, additional: tuple[str, ...] = ()) -> ExecUser:
    """The ids for `text`, with supplementary groups of the account and those asked for by --group-add."""
    user_part, colon, group_part = text.partition(":")
    account = _find_account(user_part, passwd)
    groups = list(_groups(group))
    if account is None:
        uid = _number(user_part or "0")  # no name is root, also where there is no passwd file
        if uid is None:
            if is_digits(user_part.lstrip("-"), most=200) and user_part:
                raise InvalidArgument(f"uids and gids must be in range 0-{HIGHEST_ID}")
            raise InvalidArgument(
                f"unable to find user {user_part}: no matching entries in passwd file"
            )
        account = _Account(name="", uid=uid, gid=0, home="/")
    gid = _find_group(group_part, groups) if colon and group_part else account.gid
    # The primary group is among the others too, so that a process cannot shed it and pass a "group may not"
    # permission (CVE-2022-36109).
    extra = [gid]
    if account.name and not (colon and group_part):
        extra += [g.gid for g in groups if account.name in g.members]
    extra += [_additional(name, groups) for name in additional]
    return ExecUser(
        uid=account.uid,
        gid=gid,
        groups=tuple(dict.fromkeys([gid, *extra])),
        home=account.home or "/",
    )


def _number(text: str) -> int | None:
    return parse_uint(text, highest=HIGHEST_ID)


def _find_account(text: str, passwd: str) -> _Account | None:
    """By name first, then by number: the passwd entry of a number gives its group and home."""
    number = 0 if text == "" else _number(text)
    by_number = None
    for account in _accounts(passwd):
        if text and account.name == text:
            return account
        if by_number is None and number is not None and account.uid == number:
            by_number = account
    return by_number


def _find_group(text: str, groups: list[_Group]) -> int:
    for group in groups:
        if group.name == text:
            return group.gid
    number = _number(text)
    if number is not None:
        return number
    if is_digits(text.lstrip("-"), most=200):
        raise InvalidArgument(f"uids and gids must be in range 0-{HIGHEST_ID}")
    raise InvalidArgument(f"unable to find group {text}: no matching entries in group file")


def _additional(text: str, groups: list[_Group]) -> int:
    for group in groups:
        if group.name == text:
            return group.gid
    number = _number(text)
    if number is not None:
        return number
    if is_digits(text.lstrip("-"), most=200):
        raise InvalidArgument(f"uids and gids must be in range 0-{HIGHEST_ID}")
    raise InvalidArgument(f"Unable to find group {text}: no matching entries in group file")


def _accounts(passwd: str) -> Iterator[_Account]:
    for line in passwd.split("\n"):
        fields = line.strip().split(":")
        if len(fields) < 3 or line.startswith("#"):
            continue
        uid = _number(fields[2])
        gid = _number(fields[3]) if len(fields) > 3 else 0
        if uid is None or gid is None:
            continue
        home = fields[5] if len(fields) > 5 else ""
        yield _Account(fields[0], uid, gid, home)


def _groups(text: str) -> Iterator[_Group]:
    for line in text.split("\n"):
        fields = line.strip().split(":")
        if len(fields) < 3 or line.startswith("#"):
            continue
        gid = _number(fields[2])
        if gid is None:
            continue
        members = tuple(fields[3].split(",")) if len(fields) > 3 and fields[3] else ()
        yield _Group(fields[0], gid, members)
