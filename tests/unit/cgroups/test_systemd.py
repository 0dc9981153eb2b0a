"""The systemd driver against a bus of our own: units, properties, jobs, and what annotations may say."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.cgroups import v2
from sampan.cgroups.host import CgroupHost
from sampan.cgroups.systemd import (
    INFINITY,
    SystemdManager,
    annotation_properties,
    bits_of_ranges,
    expand_slice,
    outer_uid,
    parse_unit,
    user_manager_path,
    v1_properties,
    v2_properties,
)
from sampan.cgroups.variant import parse
from sampan.linux import dbus

JOB = "/org/freedesktop/systemd1/job/7"


@pytest.mark.parametrize(
    ("given", "name", "path"),
    [
        ("machine.slice:libpod:abc", "libpod-abc.scope", "/machine.slice/libpod-abc.scope"),
        (":docker:abc", "docker-abc.scope", "/system.slice/docker-abc.scope"),
        ("a-b.slice::abc", "abc.scope", "/a.slice/a-b.slice/abc.scope"),
        ("-.slice:x:abc", "x-abc.scope", "/x-abc.scope"),
        ("system.slice::pod.slice", "pod.slice", "/system.slice/pod.slice"),
        ("abc", "sampan-abc.scope", "/system.slice/sampan-abc.scope"),
    ],
)
def test_units(given: str, name: str, path: str) -> None:
    unit = parse_unit(given)
    assert (unit.name, unit.path) == (name, path)


@pytest.mark.parametrize(
    "given", ["/docker/abc", "a:b", "a.slice:b:", "a:b:c:d", "a/b.slice:c:d", ""]
)
def test_paths_of_the_other_driver_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="slice:prefix:name"):
        parse_unit(given)


@pytest.mark.parametrize("name", ["a", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a.scope"])
def test_slices_that_systemd_would_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="invalid slice name"):
        expand_slice(name)


@pytest.mark.parametrize(
    "own",
    [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope",
        "/user.slice/user-1000.slice/user@1000.service",
        "/user.slice/user-1000.slice/session-3.scope",
    ],
)
def test_a_users_units_lie_below_the_users_manager(own: str) -> None:
    host = CgroupHost(
        mode="v2", mounts={}, roots={}, unified="/c", unified_controllers=frozenset(), own={"": own}
    )
    unit = parse_unit("user.slice:s:1", rootless=True)
    inside = "/user.slice/user-1000.slice/user@1000.service/user.slice/s-1.scope"
    assert user_manager_path(host, unit, True) == inside
    assert user_manager_path(host, unit, False) == "/user.slice/s-1.scope"


def test_the_bus_knows_us_by_our_number_outside() -> None:
    rootless = "         0       1000          1\n         1     100000      65536\n"
    assert outer_uid(rootless, 0) == 1000
    assert outer_uid(rootless, 5) == 100004
    assert outer_uid("0 0 4294967295\n", 0) == 0
    assert outer_uid("", 7) == 7


def test_v2_properties() -> None:
    resources = {
        "memory": {"limit": 100, "swap": 300, "reservation": 50},
        "cpu": {"shares": 1024, "quota": 33333, "period": 100000, "cpus": "0,3"},
        "pids": {"limit": -1},
        "unified": {"memory.high": "max", "cpu.max": "max 5000", "io.latency": "x"},
    }
    assert dict(v2_properties(resources)) == {
        "MemoryMax": ("t", 100),
        "MemoryLow": ("t", 50),
        "MemorySwapMax": ("t", 200),
        "CPUWeight": ("t", 100),
        "CPUQuotaPeriodUSec": ("t", 5000),
        "CPUQuotaPerSecUSec": ("t", INFINITY),
        "AllowedCPUs": ("ay", [9]),
        "TasksMax": ("t", INFINITY),
        "MemoryHigh": ("t", INFINITY),
    }
    assert v2_properties({}) == []


def test_quotas_are_rounded_up_to_whole_percents() -> None:
    assert dict(v1_properties({"cpu": {"quota": 33333, "period": 100000}}))[
        "CPUQuotaPerSecUSec"
    ] == ("t", 340000)


def test_idle_stands_for_the_weight() -> None:
    assert v2_properties({"cpu": {"idle": 1, "shares": 5}}) == [("CPUWeight", ("t", 0))]


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-99999", "²", "1,"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="invalid range"):
        bits_of_ranges(text)


def test_ranges_over_several_bytes() -> None:
    assert bits_of_ranges("0-2,9") == [7, 2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", ("b", True)),
        ("-5", ("i", -5)),
        ("uint64 30000000", ("t", 30000000)),
        ("'it\\'s'", ("s", "it's")),
        ('"two words"', ("s", "two words")),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("[uint32 1, 2]", ("au", [1, 2])),
        ("('a', 1)", ("(si)", ("a", 1))),
        ("@(sb) ('a', true)", ("(sb)", ("a", True))),
        ("1.5", ("d", 1.5)),
        ("@d 2", ("d", 2.0)),
        (" byte 0 ", ("y", 0)),
    ],
)
def test_variants(text: str, value: tuple[str, Any]) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "'open",
        "[1, 'a']",
        "[]",
        "byte 256",
        "uint32 -1",
        "yes",
        "1 2",
        "@b 1",
        "()",
        "[1",
        "٣",
        "@ay",
        "((((" * 9,
    ],
)
def test_what_is_no_variant(text: str) -> None:
    with pytest.raises(ValueError, match=r"variant|signature"):
        parse(text)


def test_annotations_become_properties() -> None:
    found = annotation_properties(
        {
            "org.systemd.property.TimeoutStopUSec": "uint64 5",
            "org.systemd.property.RuntimeMaxSec": "2.5",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.example": "x",
        }
    )
    assert found == [
        ("CollectMode", ("s", "inactive-or-failed")),
        ("RuntimeMaxUSec", ("t", 2500000)),
        ("TimeoutStopUSec", ("t", 5)),
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("X", "1"), ("Bad-Name", "1"), ("Good", "nope"), ("TimeSec", "'a'")]
)
def test_annotations_that_are_wrong_say_which(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"org.systemd.property.{name}"):
        annotation_properties({f"org.systemd.property.{name}": value})


class FakeSystemd:
    """Answers one connection after another as systemd's private socket does."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.calls: list[tuple[str, list[Any]]] = []
        self.refusals: dict[str, list[str]] = {}
        self.result = "done"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.converse(connection)

    def converse(self, connection: socket.socket) -> None:
        pending = b""
        while b"BEGIN\r\n" not in pending:
            pending += connection.recv(4096)
        login, _, pending = pending.partition(b"BEGIN\r\n")
        uid = str(os.geteuid()).encode().hex()
        assert login == b"\0AUTH EXTERNAL " + uid.encode() + b"\r\n"
        connection.sendall(b"OK 0123456789abcdef\r\n")
        while True:
            while len(pending) < 16 or len(pending) < dbus.message_size(pending[:16]):
                chunk = connection.recv(65536)
                if not chunk:
                    return
                pending += chunk
            size = dbus.message_size(pending[:16])
            message, pending = dbus.decode_message(pending[:size]), pending[size:]
            self.answer(connection, message)

    def answer(self, connection: socket.socket, message: dbus.Message) -> None:
        member = message.fields[dbus.FIELD_MEMBER]
        self.calls.append((member, message.body))
        reply = {dbus.FIELD_REPLY_SERIAL: message.serial}
        if self.refusals.get(member):
            name = self.refusals[member].pop(0)
            fields = {**reply, dbus.FIELD_ERROR: f"org.freedesktop.systemd1.{name}"}
            connection.sendall(dbus.encode_message(dbus.ERROR, 1, fields, "s", ["no"]))
            return
        if member not in ("StartTransientUnit", "StopUnit"):
            connection.sendall(dbus.encode_message(dbus.METHOD_RETURN, 1, reply))
            return
        fields = {
            dbus.FIELD_PATH: "/org/freedesktop/systemd1",
            dbus.FIELD_INTERFACE: "org.freedesktop.systemd1.Manager",
            dbus.FIELD_MEMBER: "JobRemoved",
        }
        body = [7, JOB, message.body[0], self.result]
        # The job may well be over before the answer is read.
        connection.sendall(
            dbus.encode_message(dbus.SIGNAL, 2, fields, "uoss", [6, JOB + "0", "other", "failed"])
        )
        connection.sendall(dbus.encode_message(dbus.SIGNAL, 3, fields, "uoss", body))
        connection.sendall(dbus.encode_message(dbus.METHOD_RETURN, 4, reply, "o", [JOB]))


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    fake = FakeSystemd(tmp_path / "private")
    yield fake
    fake.close()


@pytest.fixture
def manager(
    tmp_path: Path, systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch
) -> SystemdManager:
    monkeypatch.setattr(v2.devices, "attach_program", lambda directory, rules: None)
    root = tmp_path / "cgroup"
    scope = root / "system.slice" / "x-abc.scope"
    scope.mkdir(parents=True)
    for directory in (root, root / "system.slice", scope):
        (directory / "cgroup.controllers").write_text("")
        (directory / "cgroup.subtree_control").write_text("")
    for name in ("cgroup.procs", "memory.max", "pids.max"):
        (scope / name).write_text("")
    host = CgroupHost(
        mode="v2", mounts={}, roots={}, unified=str(root), unified_controllers=frozenset(), own={}
    )
    annotations = {"org.systemd.property.CollectMode": "'inactive'"}
    return SystemdManager(
        host, "system.slice:x:abc", annotations=annotations, bus_path=systemd.path
    )


def test_a_scope_is_started_around_the_process(
    manager: SystemdManager, systemd: FakeSystemd
) -> None:
    assert manager.needs_pid
    assert manager.create({"memory": {"limit": 4096}}, pid=4321) == []
    (name, mode, properties, _), *_ = [
        body for member, body in systemd.calls if member == "StartTransientUnit"
    ]
    assert (name, mode) == ("x-abc.scope", "replace")
    found = dict(properties)
    assert found["PIDs"] == ("au", [4321])
    assert found["Slice"] == ("s", "system.slice")
    assert found["Delegate"] == ("b", True)
    assert found["MemoryMax"] == ("t", 4096)
    assert found["CollectMode"] == ("s", "inactive")
    assert Path(manager.paths()[""], "memory.max").read_text() == "4096"
    assert Path(manager.paths()[""], "cgroup.procs").read_text() == "4321"


def test_a_failed_leftover_of_the_same_name_is_cleared_once(
    manager: SystemdManager, systemd: FakeSystemd
) -> None:
    systemd.refusals = {"StartTransientUnit": ["UnitExists"]}
    manager.create({}, pid=1)
    assert [member for member, _ in systemd.calls].count("StartTransientUnit") == 2
    systemd.refusals = {"StartTransientUnit": ["UnitExists", "UnitExists"]}
    with pytest.raises(OSError, match="unable to start unit"):
        manager.create({}, pid=1)


def test_a_job_that_fails_is_an_error(manager: SystemdManager, systemd: FakeSystemd) -> None:
    systemd.result = "timeout"
    with pytest.raises(OSError, match="got 'timeout'"):
        manager.create({}, pid=1)


def test_a_limit_that_fails_stops_the_unit_again(
    manager: SystemdManager, systemd: FakeSystemd
) -> None:
    with pytest.raises(OSError, match="unified resource"):
        manager.create({"unified": {"cpu.odd": "1"}}, pid=1)
    assert systemd.calls[-2][0] == "StopUnit"


def test_updates_tell_systemd_first(manager: SystemdManager, systemd: FakeSystemd) -> None:
    manager.apply({"pids": {"limit": 5}})
    assert systemd.calls[-1] == (
        "SetUnitProperties",
        ["x-abc.scope", True, [("TasksMax", ("t", 5))]],
    )
    assert Path(manager.paths()[""], "pids.max").read_text() == "5"


def test_stopping_what_is_gone_is_success(
    manager: SystemdManager, systemd: FakeSystemd, tmp_path: Path
) -> None:
    for file in (tmp_path / "cgroup" / "system.slice" / "x-abc.scope").iterdir():
        file.unlink()
    systemd.refusals = {"StopUnit": ["NoSuchUnit"]}
    manager.destroy()
    assert not manager.exists()


def test_create_wants_a_process(manager: SystemdManager) -> None:
    with pytest.raises(ValueError, match="pid"):
        manager.create({})
