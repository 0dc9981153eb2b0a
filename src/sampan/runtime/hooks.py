"""OCI hooks: host or container programs that read the container's state on stdin and may say no.

    prestart, createRuntime   by the runtime, after the namespaces exist, before pivot_root
    createContainer           by init in the container's namespaces, before pivot_root
    startContainer            by init inside the container, after start, before its program
    poststart, poststop       by the runtime; a failure is only a warning

Source: runtime-spec config.md "POSIX-platform Hooks", runtime.md "Lifecycle".
"""

from __future__ import annotations

import posix
import time
from _signal import (  # type: ignore[import-not-found]
    SIG_BLOCK,
    SIG_SETMASK,
    SIGCHLD,
    pthread_sigmask,
    sigtimedwait,
    strsignal,
)

from sampan.linux.fastjson import dump_bytes
from sampan.linux.fds import close_quietly, write_all
from sampan.linux.process import decode_status, spawn

from .channel import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sampan.spec.runtime import Hook, State

    from .plan import LaunchPlan
    from .steps import Stage

OUTPUT_LIMIT = 4096


class HookFailed(LaunchError):
    """A hook that ran and said no, in Go's words for how it ended; `code` is the shell's."""

    def __init__(self, path: str, code: int, said: str) -> None:
        how = f"exit status {code}"
        if code > 128:
            how = f"signal: {(strsignal(code - 128) or str(code - 128)).lower()}"
        super().__init__(f"{path}: {how}" + (f", output: {said}" if said else ""))
        self.code = code


def state_of(plan: LaunchPlan, status: str, pid: int) -> dict[str, Any]:
    """The state document that hooks read: runtime-spec "State"."""
    state: dict[str, Any] = {
        "ociVersion": plan.oci_version,
        "id": plan.container_id,
        "status": status,
        "pid": pid,
        "bundle": plan.bundle,
    }
    if plan.annotations:
        state["annotations"] = plan.annotations
    return state


def run_all(hooks: list[Hook] | None, kind: str, state: State | dict[str, Any]) -> None:
    """Run in order; the first that fails ends it (LaunchError)."""
    for number, hook in enumerate(hooks or ()):
        _run_numbered(number, hook, kind, state, None)


def run_in_container(
    stage: Stage, plan: LaunchPlan, number: int, hook: Hook, kind: str, status: str
) -> None:
    """By init itself, so with the container's pid of it; where the hook names no environment, in the program's."""
    state = state_of(plan, status, posix.getpid())
    _run_numbered(number, hook, kind, state, stage.environ if kind == "startContainer" else None)


def _run_numbered(
    number: int,
    hook: Hook,
    kind: str,
    state: State | dict[str, Any],
    environ: list[str] | None,
) -> None:
    """runc's words in front of what went wrong: engines show them, their users look for them."""
    if environ is not None and hook.get("env") is None:
        hook = {**hook, "env": environ}
    try:
        run(hook, state)
    except LaunchError as error:
        error.message = f"error running {kind} hook #{number}: {error.message}"
        raise


def run(hook: Hook, state: State | dict[str, Any]) -> None:
    """One hook with the state on its stdin; LaunchError unless it exits 0 in time."""
    stdin = posix.memfd_create("state", posix.MFD_CLOEXEC)
    output = posix.memfd_create("output", posix.MFD_CLOEXEC)
    annotations = state.get("annotations") or {}
    stdout, stderr = (
        _redirected(annotations, "stdout", output),
        _redirected(annotations, "stderr", output),
    )
    try:
        write_all(stdin, dump_bytes(state))
        posix.lseek(stdin, 0, 0)
        code = _run(hook, stdin, stdout, stderr)
        if code:
            posix.lseek(output, 0, 0)
            said = posix.read(output, OUTPUT_LIMIT).decode("utf-8", "replace").strip()
            raise HookFailed(hook["path"], code, said)
    finally:
        close_quietly(*{stdin, output, stdout, stderr})


def _redirected(annotations: Mapping[str, str], stream: str, otherwise: int) -> int:
    """crun's annotation: a file that gets what hooks print. It is the configuration's, which is trusted."""
    path = annotations.get("run.oci.hooks." + stream)
    if not path:
        return otherwise
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC
    try:
        return posix.open(path, flags, 0o700)
    except OSError as error:
        raise LaunchError(
            f"could not open its {stream}: {path}: {posix.strerror(error.errno or 0)}"
        ) from None


def _run(hook: Hook, stdin: int, stdout: int, stderr: int) -> int:
    path = hook["path"]
    # With SIGCHLD blocked its arrival waits for us: no moment between looking and waiting is lost.
    before = pthread_sigmask(SIG_BLOCK, [SIGCHLD])
    try:
        pid = spawn(
            path,
            hook.get("args") or [path],
            _environ(hook),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        return _wait(pid, path, hook.get("timeout"))
    except OSError as error:
        text = posix.strerror(error.errno or 0)
        raise LaunchError(
            f"fork/exec {path}: {text[:1].lower()}{text[1:]}", errno=error.errno or 0
        ) from None
    finally:
        pthread_sigmask(SIG_SETMASK, before)


def _environ(hook: Hook) -> dict[str, str]:
    """The hook's own environment; ours when it names none, as runc has it."""
    entries = hook.get("env")
    if entries is None:
        return {
            name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
            for name, value in posix.environ.items()
        }
    return dict(entry.partition("=")[::2] for entry in entries if "=" in entry)


def _wait(pid: int, path: str, timeout: int | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        found, status = posix.waitpid(pid, posix.WNOHANG if deadline is not None else 0)
        if found:
            return decode_status(status)
        left = (deadline or 0) - time.monotonic()
        if left <= 0:
            posix.kill(pid, 9)
            posix.waitpid(pid, 0)
            raise LaunchError(f"timed out after {timeout} s: {path}")
        sigtimedwait([SIGCHLD], left)
