"""An engine without root: it becomes root of a user namespace of its own, and of nothing else.

    user's process ──► user namespace (0 = the user, 1... = his subordinate ids)  ──► mount namespace
         │                                                                        ──► network namespace
         │ stays in the host's network namespace: API, registries, published ports
         │
         ├─ holder        `sleep` in all three, so that they outlive a daemon that restarts
         └─ pasta or slirp4netns    the way out of the network namespace, as an ordinary user's connections

The daemon enters the user namespace itself, without another program between: afterwards it is the engine that it
always is. What configures links and rules runs on threads in the network namespace (`Inside`); sockets that are to
be on the host are made on a thread that never left it (`HostThread`): a socket belongs to the namespace that it was
made in, whoever uses it.

Sources: user_namespaces(7), subuid(5), setns(2), pasta(1), slirp4netns(1).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pwd
import queue
import re
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sampan.config import Config
from sampan.errors import PermissionDenied
from sampan.linux import constants as c
from sampan.linux import procfs
from sampan.linux.idmap import HELPERS, namespace_with_maps
from sampan.linux.process import open_pidfd
from sampan.linux.syscalls import mount, pidfd_send_signal, setns, unshare

log = logging.getLogger("sampan.rootless")

T = TypeVar("T")
_NUMBER = re.compile("[0-9]{1,10}", re.ASCII)

FACTS = "rootless.json"
NETNS = "netns"
THREADS = 8
NAME_SERVER = {"pasta": "169.254.1.1", "slirp4netns": "10.0.2.3"}
NO_SUBORDINATE_IDS = (
    "only one user and group id can be used in containers: images with files of other owners will show them all as "
    "root's, and processes cannot change their user"
)
UPLINK_PATIENCE_S = 15.0  # an uplink that is not ready by then is done without
NO_UPLINK = (
    "neither pasta nor slirp4netns works here: containers reach each other and published ports work, "
    "but they have no way out but --network host (install slirp4netns, or the package with pasta)"
)


class Rootless:
    """What the daemon needs to know once it is inside."""

    def __init__(
        self, *, is_new: bool, netns_fd: int, uplink: str, facts_path: Path, host: HostThread
    ) -> None:
        self.is_new = is_new  # no earlier daemon's containers can live in these namespaces
        self.netns_fd = netns_fd
        self.uplink = uplink  # "pasta", "slirp4netns" or ""
        self.host = host
        self._facts_path = facts_path

    @property
    def name_servers(self) -> tuple[str, ...]:
        """Who answers for the host's resolver inside the network namespace."""
        server = NAME_SERVER.get(self.uplink)
        return (server,) if server else ()

    def leave(self) -> None:
        """No container runs any more: holder and uplink end, and the kernel takes the namespaces back."""
        facts = _read_facts(self._facts_path)
        self._facts_path.unlink(missing_ok=True)
        for pid, started in facts.get("processes", []):
            _end(pid, started)


def enter(config: Config) -> Rootless:
    """Become root of the engine's user namespace: the one that its containers still live in, or a new one.

    Call it before the first thread. Raises PermissionDenied where this host gives no user namespaces.
    """
    config.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts_path = config.run / FACTS
    lock = os.open(config.run / "rootless.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = _read_facts(facts_path)
        holder = _join_living(facts)
        is_new = not holder
        if is_new:
            _become_root()
            # A keeper that lives has lost its network: without its socket it ends.
            (config.run / "keeper.sock").unlink(missing_ok=True)
        host = HostThread()  # before anything leaves the host's network namespace
        if is_new:
            facts = _start_holder(facts_path)
            holder = facts["processes"][0][0]
        facts = _with_uplink(facts_path, facts)
    finally:
        os.close(lock)
    netns_fd = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    return Rootless(
        is_new=is_new,
        netns_fd=netns_fd,
        uplink=facts.get("uplink", ""),
        facts_path=facts_path,
        host=host,
    )


# -- the user namespace ------------------------------------------------------------------------------


def _join_living(facts: dict[str, Any]) -> int:
    """Enter the namespaces of an earlier daemon's holder; its pid, or 0 where it does not live."""
    for pid, started in facts.get("processes", [])[:1]:
        if procfs.is_alive(pid, started):
            pidfd = open_pidfd(pid, started)
            try:
                setns(pidfd, c.CLONE_NEWUSER | c.CLONE_NEWNS)
            finally:
                os.close(pidfd)
            os.chdir("/")
            return int(pid)
    return 0


def _become_root() -> None:
    """A new user namespace with all the ids that the user may use, and a mount namespace that hears of the host's."""
    uid_map, gid_map = id_maps(os.getuid(), os.getgid())
    try:
        fd = namespace_with_maps(uid_map, gid_map)
    except OSError as error:
        raise PermissionDenied(
            f"cannot make a user namespace: {error.strerror}",
            hint="see user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns; or run the engine as root",
        ) from error
    try:
        setns(fd, c.CLONE_NEWUSER)
    finally:
        os.close(fd)
    unshare(c.CLONE_NEWNS)
    mount(None, "/", None, c.MS_SLAVE | c.MS_REC)


def id_maps(uid: int, gid: int, directory: str = "/etc") -> tuple[bytes, bytes]:
    """(uid_map, gid_map): 0 is the user, the subordinate ids follow from 1 on. Only 0 where there are none."""
    names = (str(uid), _name_of(uid))
    ranges = [subordinate(Path(directory, file), names) for file in ("subuid", "subgid")]
    helpers = all(any(os.path.exists(path) for path in paths) for paths in HELPERS.values())
    if not all(ranges) or not helpers:
        missing = (
            "newuidmap and newgidmap (package uidmap)"
            if all(ranges)
            else "/etc/subuid, /etc/subgid"
        )
        log.warning("%s: %s", f"{missing} missing", NO_SUBORDINATE_IDS)
        ranges = [[], []]
    return _map_text(uid, ranges[0]), _map_text(gid, ranges[1])


def has_several_ids() -> bool:
    """Whether this process's user namespace maps more than its root."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return sum(count for _, _, count in procfs.parse_id_map(file.read())) > 1


def _map_text(own: int, ranges: list[tuple[int, int]]) -> bytes:
    lines = [f"0 {own} 1"]
    inside = 1
    for first, count in ranges:
        lines.append(f"{inside} {first} {count}")
        inside += count
    return "\n".join(lines).encode() + b"\n"


def subordinate(file: Path, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """subuid(5): (first, count) of every line that is for one of the names."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        name, *numbers = line.strip().split(":")
        if name in names and len(numbers) == 2 and all(_NUMBER.fullmatch(n) for n in numbers):
            first, count = (int(number) for number in numbers)
            if count > 0 and first + count < 1 << 32:
                found.append((first, count))
    return found


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# -- the network namespace ---------------------------------------------------------------------------


def _start_holder(facts_path: Path) -> dict[str, Any]:
    """The process that keeps the namespaces; written down for the next daemon."""
    holder = Inside.fresh(lambda: _spawn(["sleep", "infinity"]))
    # By a name of its own: who has given up capabilities may not look through the holder's /proc any more.
    netns = facts_path.parent / NETNS
    netns.touch(mode=0o600)
    mount(f"/proc/{holder[0]}/ns/net", str(netns), None, c.MS_BIND)
    return _write_facts(facts_path, [holder], "")


def _with_uplink(facts_path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """A way out of the network namespace: the one that there is, or a new one."""
    holder, *others = facts["processes"]
    if others and all(procfs.is_alive(pid, started) for pid, started in others):
        return facts
    run = facts_path.parent
    for name, begin in (("pasta", _pasta), ("slirp4netns", _slirp4netns)):
        pid = begin(str(run / NETNS), run) if shutil.which(name) else 0
        if pid:
            uplink = (pid, procfs.start_time(pid))
            return _write_facts(facts_path, [tuple(holder), uplink], name)
    log.warning(NO_UPLINK)
    return facts


def _write_facts(path: Path, processes: list[tuple[int, int]], uplink: str) -> dict[str, Any]:
    facts = {"version": 1, "processes": processes, "uplink": uplink}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts))
    temporary.rename(path)
    return facts


def _spawn(command: list[str], **options: Any) -> tuple[int, int]:
    """(pid, start time) of a program that outlives us."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)}, **options,
    )  # fmt: skip
    process.returncode = 0  # it outlives us on purpose: no warning that it is still running
    return process.pid, procfs.start_time(process.pid)


def _pasta(netns: str, run: Path) -> int:
    """pasta copies the host's address and routes; it goes into the background when it is ready. Its pid or 0."""
    pid_file = run / "pasta.pid"
    pid_file.unlink(missing_ok=True)
    command = [
        "pasta", "--config-net", "--quiet", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw",
        "--dns-forward", NAME_SERVER["pasta"], "--pid", str(pid_file), "--netns", netns,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=UPLINK_PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        log.warning("pasta: not ready after %.0f s", UPLINK_PATIENCE_S)
        return 0
    if done.returncode:
        log.warning("pasta: %s", (done.stderr or done.stdout).strip()[-500:])
        return 0
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return 0


def _slirp4netns(netns: str, run: Path) -> int:
    """slirp4netns makes 10.0.2.0/24 with a device tap0. Its pid or 0."""
    ready, told = os.pipe2(os.O_CLOEXEC)
    command = [
        "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", f"--ready-fd={told}",
        "--netns-type=path", netns, "tap0",
    ]  # fmt: skip
    with (run / "slirp4netns.log").open("wb") as output:
        pid, started = _spawn(command, pass_fds=(told,), stderr=output)
    os.close(told)
    try:
        if select.select([ready], [], [], UPLINK_PATIENCE_S)[0] and os.read(ready, 1):
            return pid
    finally:
        os.close(ready)
    _end(pid, started)
    log.warning("slirp4netns: %s", (run / "slirp4netns.log").read_text(errors="replace")[-500:])
    return 0


def _end(pid: int, started: int) -> None:
    if procfs.is_alive(pid, started):
        try:
            pidfd = open_pidfd(pid, started)
        except OSError:
            return
        try:
            pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("version") == 1 else {}


# -- threads in and out ------------------------------------------------------------------------------


class HostThread:
    """One thread that stays in the host's network namespace and calls what it is given."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="host-network", daemon=True).start()

    def _serve(self) -> None:
        while True:
            function, future = self._queue.get()
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed to who asked
                future.set_exception(error)

    def call(self, function: Callable[[], T]) -> T:
        """Its result or its exception."""
        future: Future[T] = Future()
        self._queue.put((function, future))
        return future.result()


class Inside:
    """An object whose methods are called on threads in a network namespace. What is no method is handed through."""

    def __init__(self, target: object, netns_fd: int) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(
            THREADS, "network", initializer=setns, initargs=(netns_fd, c.CLONE_NEWNET)
        )

    @staticmethod
    def fresh(function: Callable[[], T]) -> T:
        """Call it in a network namespace made for it."""

        def work() -> T:
            unshare(c.CLONE_NEWNET)
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def inside(*arguments: Any, **named: Any) -> Any:
            return self._pool.submit(value, *arguments, **named).result()

        return inside
