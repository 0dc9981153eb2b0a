"""The parent's side of making a container: cgroup, clone, id maps, hooks, and waiting for init.

    launch = Launch(plan, stdio=(0, 1, 2))
    child = launch.create()            # init is ready and waits: state `created`
    child.console_fd                   # the pty master, with plan.terminal and no console socket
    fd = child.hold_mounts()           # see performance: the exit of process 1 then does not unmount anything
    launch.start()                     # returns when the program runs; raises LaunchError when it cannot
    ... wait on child.pidfd ...
    launch.cgroup.destroy()            # the cgroup stays the caller's to remove; a failed create removes it

`create` and `start` raise LaunchError (message in runc's words, .step, .errno); after a failure nothing is
left: the child is reaped, the cgroup removed. Only for single-threaded processes. Both the shim and
sampan-oci use this.
"""

from __future__ import annotations

import _socket
import posix

from sampan.linux import constants as c
from sampan.linux import mounts as m
from sampan.linux.fds import close_quietly, socketpair
from sampan.linux.idmap import namespace_with_maps, write_maps
from sampan.linux.syscalls import clone3, prlimit, setns, unshare

from . import channel, devices, hooks
from .channel import InitGone, LaunchError, describe_error
from .child import SIGKILL, Child, await_execution
from .init import run_init
from .steps import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sampan.cgroups.host import CgroupHost
    from sampan.cgroups.manager import Manager

    from .plan import LaunchPlan


class Launch:
    """One container being made. Methods are called once each, in the order of the module's docstring."""

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        stdio: tuple[int, ...] = (0, 1, 2),
        cgroup: Manager | None = None,
        cgroup_host: CgroupHost | None = None,
        console_socket: int = -1,
        start_listener: int = -1,
        sibling: bool = False,
    ) -> None:
        """With `sibling` the container becomes a child of our parent, who reaps it (the shim's starter)."""
        self.plan = plan
        self.sibling = sibling
        self.stdio = () if plan.terminal else stdio
        self.cgroup = cgroup
        self.cgroup_host = cgroup_host
        self.console_socket = console_socket
        self.start_listener = start_listener
        self.warnings: list[str] = list(plan.warnings)
        self.child: Child | None = None
        self._channel: _socket.socket | None = None
        self._cgroup_made = False

    # ------------------------------------------------------------------------------------- create

    def create(self) -> Child:
        """Make the container up to READY."""
        handles: dict[str, int] = {}
        try:
            self._make_cgroup()
            self._open_handles(handles)
            self._clone(handles)
            self._converse()
            self._set_rlimits()
        except LaunchError:
            self.undo()
            raise
        except (OSError, ValueError) as error:
            self.undo()
            raise self._failure(error) from error
        except BaseException:
            self.undo()
            raise
        finally:
            close_quietly(*handles.values())
        return self._made()

    def _made(self) -> Child:
        if self.child is None:
            raise AssertionError("no child")
        return self.child

    def _failure(self, error: BaseException) -> LaunchError:
        number, text = describe_error(error)
        name = getattr(error, "filename", None)
        if name and str(name) not in text:
            text = f"{name}: {text}"
        return LaunchError(text, errno=number)

    def _make_cgroup(self) -> None:
        plan = self.plan
        if self.cgroup is None and plan.cgroup_path:
            from sampan.cgroups.manager import open_manager

            self.cgroup = open_manager(
                plan.cgroup_path,
                driver=plan.cgroup_driver,
                host=self.cgroup_host,
                rootless=plan.rootless,
                annotations=plan.annotations,
            )
        if self.cgroup is not None and not self.cgroup.needs_pid:
            self._fill_cgroup(0)

    def _fill_cgroup(self, pid: int) -> None:
        if self.cgroup is None:
            return
        resources: Any = self.plan.resources
        try:
            self.warnings += self.cgroup.create(resources, pid=pid)
        except (OSError, ValueError) as error:
            failure = self._failure(error)
            failure.message = f"unable to apply cgroup configuration: {failure.message}"
            raise failure from error
        self._cgroup_made = True

    def _open_handles(self, handles: dict[str, int]) -> None:
        """What init cannot open itself, or only too late."""
        for name, kind, path in self.plan.opens:
            try:
                handles[name] = open_handle(kind, path)
            except OSError as error:
                number, text = describe_error(error)
                raise LaunchError(f"open {path}: {text}", step=name, errno=number) from error
        if self.plan.netns_fd >= 0:
            handles["namespace:network"] = posix.dup(self.plan.netns_fd)
        if self.plan.premade_nodes:
            plan = self.plan
            handles.update(devices.premade(plan.premade_nodes, plan.uid_map, plan.gid_map))
        for name, uid_map, gid_map, recursive in self.plan.idmaps:
            if uid_map:
                namespace = namespace_with_maps(uid_map, gid_map)
            else:
                namespace = posix.dup(handles["namespace:user"])
            try:
                m.set_idmap(handles[name], namespace, recursive=recursive)
            except OSError as error:
                number, text = describe_error(error)
                raise LaunchError(
                    f"failed to set MOUNT_ATTR_IDMAP on {name}: {text}", errno=number
                ) from error
            finally:
                posix.close(namespace)

    def _clone(self, handles: dict[str, int]) -> None:
        plan = self.plan
        ours, theirs = socketpair()
        self._channel = ours
        cgroup_fd = (
            self.cgroup.clone_fd() if self.cgroup is not None and not self.cgroup.needs_pid else -1
        )
        came_from = self._enter_pid_namespace(handles)
        try:
            flags = 0 if plan.two_stage else plan.clone_flags
            if self.sibling:  # which signal its end sends is then our parent's affair: clone(2)
                pid, pidfd = clone3(
                    flags | c.CLONE_PARENT, cgroup_fd=cgroup_fd, pidfd=True, exit_signal=0
                )
            else:
                pid, pidfd = clone3(flags, cgroup_fd=cgroup_fd, pidfd=True)
            if pid == 0:
                self._be_child(theirs, handles, cgroup_fd >= 0)
        finally:
            if came_from >= 0:
                setns(came_from, c.CLONE_NEWPID)
                posix.close(came_from)
            close_quietly(cgroup_fd)
            theirs.close()
        self.child = Child(pid, pidfd)

    def _enter_pid_namespace(self, handles: dict[str, int]) -> int:
        """setns(CLONE_NEWPID) concerns only the children we make; returns the way back, or -1."""
        if "namespace:pid" not in handles or self.plan.two_stage:
            return -1
        back = posix.open("/proc/self/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC)
        setns(handles["namespace:pid"], c.CLONE_NEWPID)
        return back

    def _be_child(
        self, sock: _socket.socket, handles: dict[str, int], born_inside: bool
    ) -> NoReturn:
        stage = Stage(sock)
        try:
            stage.stdio = self.stdio
            stage.handles = handles
            stage.manager = self.cgroup
            stage.born_inside = born_inside
            stage.console_socket = self.console_socket
            stage.start_listener = self.start_listener
            stage.preserved = self.plan.preserve_fds
            if self.plan.two_stage:
                self._first_stage(stage)
        except BaseException as error:  # noqa: BLE001 - this process may only leave by _exit
            number, text = describe_error(error)
            channel.send_failure(sock, number=number, step=stage.now, text=f"{stage.now}: {text}")
            posix._exit(1)
        run_init(self.plan, stage)

    def _first_stage(self, stage: Stage) -> None:
        """Join a user namespace first, then make the others in it: init is our sibling, the caller's child."""
        stage.run(self.plan.first)
        stage.now = "make namespaces"
        unshare(self.plan.clone_flags)
        pid, _ = clone3(c.CLONE_PARENT, exit_signal=0)
        if pid:
            channel.send(stage.channel, channel.INIT_PID, str(pid))
            posix._exit(0)

    # ------------------------------------------------------------------------------ conversation

    def _converse(self) -> None:
        """Answer init until it is READY."""
        sock = self._sock()
        while True:
            kind, text, fds = channel.receive(sock)
            if kind == channel.READY:
                return
            if kind == channel.MAP_IDS:
                write_maps(self._made().pid, self.plan.uid_map, self.plan.gid_map)
                channel.send(sock, channel.GO)
            elif kind == channel.NEED_CGROUP:
                self._fill_cgroup(self._made().pid)
                channel.send(sock, channel.GO)
            elif kind == channel.RUN_HOOKS:
                self._run_hooks()
                channel.send(sock, channel.GO)
            elif kind == channel.INIT_PID:
                self._made().replace(int(text))
            elif kind == channel.CONSOLE:
                self._made().console_fd = fds[0]
            elif kind == channel.WARNING:
                self.warnings.append(text)
            else:
                self._raise_failure(kind, text)

    def _sock(self) -> _socket.socket:
        if self._channel is None:
            raise AssertionError("no channel")
        return self._channel

    def _run_hooks(self) -> None:
        plan = self.plan
        if plan.net_devices:
            from .netdevices import move_devices

            move_devices(plan.net_devices, self._made().pid)
        # prestart is older than the state `creating` and has always been told `created`
        hooks.run_all(
            plan.hooks.get("prestart"),
            "prestart",
            hooks.state_of(plan, "created", self._made().pid),
        )
        state = hooks.state_of(plan, "creating", self._made().pid)
        hooks.run_all(plan.hooks.get("createRuntime"), "createRuntime", state)

    def _raise_failure(self, kind: bytes, text: str) -> NoReturn:
        if kind == channel.FAILED:
            raise channel.parse_failure(text)
        if kind == b"":
            code = self._made().reap()
            if code == 128 + SIGKILL or (code < 0 and self._was_oom_killed()):
                raise InitGone("container init was OOM-killed (memory limit too low?)")
            raise InitGone(f"container init ended unexpectedly with exit status {code}")
        raise LaunchError(f"unexpected message {kind!r} from init")

    def _was_oom_killed(self) -> bool:
        try:
            return self.cgroup is not None and self.cgroup.oom_kills() > 0
        except OSError:
            return False

    def _set_rlimits(self) -> None:
        """From outside, at the last moment: a small limit must not hit our own preparations, and the right to
        raise one may be lost inside a user namespace."""
        for resource, soft, hard in self.plan.rlimits:
            try:
                prlimit(self._made().pid, resource, (soft, hard))
            except OSError as error:
                number, text = describe_error(error)
                name = c.RLIMITS[resource]
                raise LaunchError(f"error setting rlimit {name}: {text}", errno=number) from error

    # --------------------------------------------------------------------------------------- start

    def start(self) -> None:
        """Let the program run. Returns when execve succeeded; LaunchError (everything undone) when not."""
        sock = self._sock()
        try:
            channel.send(sock, channel.START)
            child = self._made()
            await_execution(sock, child.pidfd, hooks.state_of(self.plan, "creating", child.pid))
        except LaunchError:
            self.undo()
            raise
        except OSError as error:
            self.undo()
            raise self._failure(error) from error
        sock.close()
        self._channel = None

    def release(self) -> None:
        """`create` without `start` by us: init waits on its listener, we let go."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def undo(self) -> None:
        """Kill what was made and remove the cgroup; safe at every stage."""
        self.release()
        if self.child is not None:
            self.child.kill()
            close_quietly(self.child.pidfd, self.child.console_fd)
            self.child = None
        if self._cgroup_made and self.cgroup is not None:
            self._cgroup_made = False
            try:
                self.cgroup.kill_all()
                self.cgroup.destroy()
            except OSError:
                pass


def open_handle(kind: str, path: str) -> int:
    """What `LaunchPlan.opens` names: a namespace file, a detached copy of a mount."""
    if kind == "namespace":
        return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    word, _, variant = kind.partition("-")
    tree = m.clone_tree(path, recursive=word == "rtree", follow=variant != "nofollow")
    # A copy of a shared mount is in its peer group: what init mounts below would show on the host.
    m.set_attributes(tree, propagation=c.MS_SLAVE, recursive=True)
    return tree
