"""create and run of sampan-oci."""

from __future__ import annotations

import posix

from sampan.errors import NotFound
from sampan.linux.paths import clean

from . import container as verbs
from . import creation, foreground
from .channel import LaunchError
from .cli import environment
from .cli_flags import check_terminal, integer, preserved
from .cli_life import readiness_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime import Spec

    from .cli import Context
    from .cli_flags import Parsed
    from .creation import CreateOptions


def create(context: Context, parsed: Parsed) -> int:
    container_id = parsed.operands[0]
    verbs.check_id(container_id)
    bundle, spec, text = _bundle(parsed)
    options = _options(context, parsed, spec)
    check_terminal(spec["process"], parsed, detach=True)
    _, launch, _ = creation.create(
        context.store(), container_id, bundle, spec, text, options, wait=True
    )
    _warn(context, launch.warnings)
    return 0


def run(context: Context, parsed: Parsed) -> int:
    container_id = parsed.operands[0]
    verbs.check_id(container_id)
    detach = parsed.flag("detach")
    bundle, spec, text = _bundle(parsed)
    options = _options(context, parsed, spec)
    check_terminal(spec["process"], parsed, detach=detach)
    if not detach:
        foreground.block_signals()
        if not parsed.flag("no-subreaper"):
            _become_subreaper()
    store = context.store()
    container, launch, child = creation.create(
        store, container_id, bundle, spec, text, options, wait=False
    )
    _warn(context, launch.warnings)
    if child.console_fd >= 0:
        foreground.keep_line_ends(child.console_fd)
    readiness = readiness_of(container)
    try:
        launch.start()
    except LaunchError:
        verbs.destroy(container)
        raise
    verbs.run_poststart(container)
    if detach:
        if readiness is not None:
            readiness.main_pid = child.pid
            readiness.wait(child.pidfd)
        return 0
    code = foreground.stay(child, readiness)
    if not parsed.flag("keep"):
        _warn(context, verbs.destroy(container))
    return code


def _become_subreaper() -> None:
    from sampan.linux.process import set_subreaper

    set_subreaper()


# ------------------------------------------------------------------------------------ bundle, options


def _bundle(parsed: Parsed) -> tuple[str, Spec, bytes]:
    bundle = parsed.text("bundle") or posix.getcwd()
    if not bundle.startswith("/"):
        bundle = clean(f"{posix.getcwd()}/{bundle}")
    config = parsed.text("config", "config.json")
    try:
        posix.stat(bundle)
    except OSError as error:
        raise NotFound(f"{bundle}: {posix.strerror(error.errno or 0).lower()}") from None
    if "config" in parsed.values and not config.startswith("/"):
        # crun: relative to where we are, and the bundle is where we are
        config = clean(f"{posix.getcwd()}/{config}")
    spec, text = creation.load_spec(bundle, config)
    return bundle, spec, text


def _options(context: Context, parsed: Parsed, spec: Spec) -> CreateOptions:
    options = creation.CreateOptions()
    options.cgroup_driver = context.cgroup_driver
    options.no_cgroup = context.no_cgroup
    options.rootless = context.rootless
    options.console_socket = parsed.text("console-socket")
    receiver = (spec.get("annotations") or {}).get("run.oci.pidfd_receiver", "")  # crun's way
    options.pidfd_socket = parsed.text("pidfd-socket") or receiver
    options.new_keyring = not parsed.flag("no-new-keyring")
    options.no_pivot = parsed.flag("no-pivot")
    options.pid_file = parsed.text("pid-file")
    options.preserve_fds = preserved(parsed.number("preserve-fds") + _listen_fds(spec))
    options.seccomp_cache = context.root + "/.seccomp"
    options.notify_socket = environment("NOTIFY_SOCKET")
    if context.debug:
        options.tell = context.log.debug
    return options


def _listen_fds(spec: Spec) -> int:
    """Socket activation: descriptors that systemd opened for us are the container's (sd_listen_fds(3))."""
    count, pid = environment("LISTEN_FDS"), environment("LISTEN_PID")
    if not count or (pid and pid != str(posix.getpid())):
        return 0
    spec["process"].setdefault("env", [])
    spec["process"]["env"] += [f"LISTEN_FDS={count}", "LISTEN_PID=1"]
    return integer(count, "LISTEN_FDS")


def _warn(context: Context, warnings: list[str]) -> None:
    for warning in warnings:
        context.log.warning(warning)


HANDLERS = {"create": create, "run": run}
