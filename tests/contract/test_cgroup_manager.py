"""What every cgroup manager promises, on whatever hierarchies this kernel has mounted.

The same cases run on the v1 or hybrid host and, inside tests/vm, on a unified one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from sampan.cgroups.host import CgroupHost, detect
from sampan.cgroups.manager import open_manager
from sampan.cgroups.stats import UNLIMITED
from sampan.linux import syscalls

if TYPE_CHECKING:
    from sampan.cgroups.manager import Manager

pytestmark = pytest.mark.root

PARENT = f"/sampan-test-{os.getpid()}"
MB = 1 << 20


@pytest.fixture(scope="module")
def host() -> Iterator[CgroupHost]:
    found = detect()
    if found.mode == "none":
        pytest.skip("this kernel has no cgroup hierarchy mounted")
    yield found
    for point in [*found.hierarchies(), *([found.unified] if found.unified else [])]:
        if os.path.isdir(point + PARENT):
            os.rmdir(point + PARENT)


@pytest.fixture
def manager(host: CgroupHost, request: pytest.FixtureRequest) -> Iterator[Manager]:
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    made = open_manager(f"{PARENT}/{name}", host=host)
    yield made
    if made.exists():
        if made.frozen():
            made.thaw()
        made.kill_all()
    made.destroy()
    assert not made.exists()


class Child:
    """A process born in the cgroup, as init is: clone3 into the unified side, `tasks` for the rest.

    It does what `work` says and then echoes bytes until its parent closes the line.
    """

    def __init__(self, manager: Manager, work: Callable[[], object] = lambda: None) -> None:
        self.ours, theirs = socket.socketpair()
        fd = manager.clone_fd()
        self.pid, _ = syscalls.clone3(0, cgroup_fd=fd)
        if self.pid == 0:
            code = 1
            try:
                manager.attach_self(born_inside=fd >= 0)
                self.ours.close()
                result = work()
                theirs.sendall(repr(result).encode().ljust(1))
                while chunk := theirs.recv(1):
                    theirs.sendall(chunk)
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        if fd >= 0:
            os.close(fd)

    def result(self) -> str:
        return self.ours.recv(4096).decode()

    def answers(self, seconds: float = 10.0) -> bool:
        self.ours.sendall(b"x")
        ready, _, _ = select.select([self.ours], [], [], seconds)
        return bool(ready) and self.ours.recv(1) == b"x"

    def wait(self) -> int:
        """The exit status; a signal as a negative number."""
        self.ours.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def file_of(manager: Manager, v1: str, v2: str) -> str:
    """A limit's file, by its v1 name (controller.rest) or its v2 name."""
    paths = manager.paths()
    controller = v1.partition(".")[0]
    if controller in paths:
        return f"{paths[controller]}/{v1}"
    return f"{paths['']}/{v2}"


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def needs(host: CgroupHost, *controllers: str) -> None:
    for controller in controllers:
        if not host.has(controller):
            pytest.skip(f"this kernel has no {controller} controller")


def test_directories_come_and_go(manager: Manager) -> None:
    assert manager.create({}) == []
    assert manager.exists()
    assert all(os.path.isdir(path) for path in manager.paths().values())
    manager.destroy()
    assert not any(os.path.exists(path) for path in manager.paths().values())
    manager.destroy()


def test_a_child_is_in_every_hierarchy_before_it_does_anything(
    manager: Manager, host: CgroupHost
) -> None:
    manager.create({})
    child = Child(manager, lambda: read("/proc/self/cgroup"))
    lines = child.result().strip("'").split("\\n")
    assert all(line.endswith(manager.path) for line in lines), lines
    assert manager.pids() == [child.pid]
    assert child.wait() == 0
    assert manager.pids() == []


def test_a_process_can_be_moved_in_from_outside(manager: Manager) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    manager.create({}, pid=pid)
    assert manager.pids() == [pid]
    assert manager.path in read(f"/proc/{pid}/cgroup")
    manager.kill_all()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_the_memory_limit_is_where_tutorials_look_for_it(
    manager: Manager, host: CgroupHost
) -> None:
    needs(host, "memory")
    manager.create({"memory": {"limit": 128 * MB}})
    assert read(file_of(manager, "memory.limit_in_bytes", "memory.max")) == "134217728"
    child = Child(manager, lambda: globals().update(kept=bytearray(b"x") * (4 * MB)))
    child.result()
    assert int(read(file_of(manager, "memory.usage_in_bytes", "memory.current"))) > 4 * MB
    assert manager.stats().memory.limit == 128 * MB
    assert child.wait() == 0


def test_running_out_of_memory_kills_wakes_and_counts(manager: Manager, host: CgroupHost) -> None:
    needs(host, "memory")
    manager.create({"memory": {"limit": 16 * MB, "swap": 16 * MB}})
    watch = manager.oom_watch()
    poll = select.poll()
    poll.register(watch.fileno(), watch.poll_events)
    assert poll.poll(0) == []
    assert watch.kills() == 0
    child = Child(manager, lambda: bytearray(b"x") * (64 * MB))
    assert child.wait() == -signal.SIGKILL
    assert poll.poll(10_000) != []
    watch.drain()
    assert watch.kills() == manager.oom_kills() == 1
    assert manager.stats().memory_events["oom_kill"] == 1
    watch.close()


def test_the_pids_limit_holds(manager: Manager, host: CgroupHost) -> None:
    needs(host, "pids")

    def fork_until_refused() -> str:
        children = 0
        while True:
            try:
                if os.fork() == 0:
                    signal.pause()
            except OSError as error:
                return f"{children} {errno.errorcode[error.errno or 0]}"
            children += 1

    manager.create({"pids": {"limit": 5}})
    child = Child(manager, fork_until_refused)
    assert child.result() == "'4 EAGAIN'"
    stats = manager.stats()
    assert (stats.pids, stats.pids_limit) == (5, 5)
    assert len(manager.pids()) == 5
    manager.kill_all()
    assert child.wait() == -signal.SIGKILL


def test_freezing_stops_and_thawing_goes_on(manager: Manager, host: CgroupHost) -> None:
    needs(host, "freezer")
    manager.create({})
    child = Child(manager)
    child.result()
    assert child.answers()
    manager.freeze()
    assert manager.frozen()
    assert not child.answers(seconds=0.05)
    manager.thaw()
    assert not manager.frozen()
    ready, _, _ = select.select([child.ours], [], [], 10)
    assert ready
    child.ours.recv(1)
    assert child.wait() == 0


def test_killing_reaches_frozen_processes_and_their_children(
    manager: Manager, host: CgroupHost
) -> None:
    needs(host, "freezer")

    def spread() -> None:
        for _ in range(3):
            if os.fork() == 0:
                while True:
                    if os.fork():
                        os._exit(0)
                    time.sleep(0.001)

    manager.create({"pids": {"limit": 100}})
    child = Child(manager, spread)
    child.result()
    manager.freeze()
    manager.kill_all()
    assert child.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while manager.pids() and time.monotonic() < deadline:
        time.sleep(0.001)  # the others are not our children: nothing to wait on
    assert manager.pids() == []
    manager.destroy()


def test_a_milder_signal_reaches_all(manager: Manager) -> None:
    manager.create({})
    child = Child(manager)
    child.result()
    manager.kill_all(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM


def test_statistics_count(manager: Manager, host: CgroupHost) -> None:
    needs(host, "memory", "cpuacct", "pids")
    manager.create({})

    def burn() -> int:
        end = time.process_time() + 0.05
        count = 0
        while time.process_time() < end:
            count += 1
        return count

    child = Child(manager, burn)
    child.result()
    stats = manager.stats()
    assert stats.cpu_total > 30_000_000
    assert stats.memory.usage > 0
    assert stats.memory.limit == UNLIMITED
    assert stats.memory_stat
    assert stats.pids == 1
    assert child.wait() == 0


def test_limits_can_be_changed(manager: Manager, host: CgroupHost) -> None:
    needs(host, "cpu", "memory", "pids")
    manager.create({"memory": {"limit": 64 * MB}})
    manager.apply({"cpu": {"quota": 50000, "period": 100000, "shares": 2}, "pids": {"limit": 7}})
    manager.apply({"cpu": {"quota": 20000}, "memory": {"limit": 256 * MB, "swap": -1}})
    quota = read(file_of(manager, "cpu.cfs_quota_us", "cpu.max")).split()[0]
    assert quota == "20000"
    assert read(file_of(manager, "cpu.shares", "cpu.weight")) in ("2", "1")
    assert read(file_of(manager, "pids.max", "pids.max")) == "7"
    assert read(file_of(manager, "memory.limit_in_bytes", "memory.max")) == str(256 * MB)
    manager.apply({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}})
    assert manager.stats().memory.limit == UNLIMITED
    assert manager.stats().pids_limit == UNLIMITED


def test_period_and_quota_change_together_whatever_was_before(
    manager: Manager, host: CgroupHost
) -> None:
    needs(host, "cpu")
    manager.create({})
    for quota, period in ((10000, 20000), (500000, 1000000), (1000, 1000), (90000, 100000)):
        manager.apply({"cpu": {"quota": quota, "period": period}})
        stored = (
            read(file_of(manager, f"cpu.cfs_{name}_us", "cpu.max")) for name in ("quota", "period")
        )
        assert " ".join(stored) in (f"{quota} {period}", f"{quota} {period} {quota} {period}")


def test_lowering_below_the_usage_is_refused_where_asked(
    manager: Manager, host: CgroupHost
) -> None:
    needs(host, "memory")
    manager.create({"memory": {"limit": 256 * MB}})
    child = Child(manager, lambda: globals().update(kept=bytearray(b"x") * (32 * MB)))
    child.result()
    with pytest.raises(OSError, match=r"unable to set memory limit|rejecting memory limit"):
        manager.apply({"memory": {"limit": MB, "checkBeforeUpdate": True}})
    assert child.answers()
    assert child.wait() == 0


def test_cpusets(manager: Manager, host: CgroupHost) -> None:
    needs(host, "cpuset")
    manager.create({"cpu": {"cpus": "0", "mems": "0"}})
    child = Child(manager, lambda: sorted(os.sched_getaffinity(0)))
    assert child.result() == "[0]"
    assert child.wait() == 0


def test_a_failed_create_leaves_nothing(manager: Manager, host: CgroupHost) -> None:
    needs(host, "cpuset")
    with pytest.raises(OSError, match="9999"):
        manager.create({"cpu": {"cpus": "9999"}})
    assert not any(os.path.exists(path) for path in manager.paths().values())


def test_a_cgroup_with_processes_is_not_shared(manager: Manager, host: CgroupHost) -> None:
    manager.create({})
    child = Child(manager)
    child.result()
    with pytest.raises(OSError, match="not empty"):
        open_manager(manager.path, host=host).create({})
    assert child.answers()
    assert child.wait() == 0


def test_what_the_container_made_below_goes_too(manager: Manager) -> None:
    manager.create({})
    for path in set(manager.paths().values()):
        os.makedirs(f"{path}/inner/deep")
    manager.destroy()
    assert not manager.exists()


def open_error(path: str, flags: int = os.O_RDONLY) -> str:
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def test_devices_outside_the_list_can_be_made_but_not_opened(
    manager: Manager, host: CgroupHost, tmp_path: object
) -> None:
    needs(host, "devices")
    node = f"{tmp_path}/kmsg"

    def try_devices() -> list[str]:
        os.mknod(node, 0o600 | 0o020000, os.makedev(1, 11))
        return [open_error("/dev/null", os.O_RDWR), open_error("/dev/zero"), open_error(node)]

    manager.create({"devices": [{"allow": False, "access": "rwm"}]})
    child = Child(manager, try_devices)
    assert child.result() == "['ok', 'ok', 'EPERM']"
    assert child.wait() == 0
    manager.apply(
        {
            "devices": [
                {"allow": False},
                {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"},
            ]
        }
    )
    child = Child(
        manager, lambda: [open_error(node), open_error(node, os.O_WRONLY), open_error("/dev/null")]
    )
    assert child.result() == "['ok', 'EPERM', 'ok']"
    assert child.wait() == 0
    manager.apply({"devices": [{"allow": True, "access": "rwm"}]})
    child = Child(manager, lambda: open_error(node, os.O_RDWR))
    assert child.result() == "'ok'"
    assert child.wait() == 0


def test_huge_pages(manager: Manager, host: CgroupHost) -> None:
    needs(host, "hugetlb")
    assert manager.create({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MB}]}) == []
    assert read(file_of(manager, "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")) == str(4 * MB)


def test_the_users_own_keys(manager: Manager, host: CgroupHost) -> None:
    resources = {"unified": {"memory.high": "8388608", "cpu.weight": "7"}}
    if host.mode != "v2":
        with pytest.raises(OSError, match="cgroup v2"):
            manager.create(resources)
        return
    manager.create(resources)
    assert read(f"{manager.paths()['']}/memory.high") == "8388608"
    assert read(f"{manager.paths()['']}/cpu.weight") == "7"
