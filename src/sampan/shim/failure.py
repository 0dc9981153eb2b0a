"""An exception of ours or the kernel's as the `error` of a reply, and a defect of ours as lines in launcher.log."""

from __future__ import annotations

import posix

from sampan import errors
from sampan.runtime.channel import LaunchError
from sampan.shim.protocol import docker_exit_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def failure_of(error: Exception) -> dict[str, Any]:
    """protocol.Failure. What nobody foresaw is an Internal one with the exception's own words."""
    if isinstance(error, LaunchError):
        return _launch_failure(error)
    if isinstance(error, errors.SampanError):
        return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, OSError):
        return {
            "kind": "Internal",
            "message": _describe(error),
            "errno": error.errno or 0,
            "step": "; ".join(getattr(error, "__notes__", ())),
        }
    return {"kind": "Internal", "message": f"{type(error).__name__}: {error}"}


def _launch_failure(error: LaunchError) -> dict[str, Any]:
    """A process that could not be started. What the user wrote wrong (126, 127) is an InvalidArgument, as in Docker."""
    code = docker_exit_code(error.message)
    return {
        "kind": "InvalidArgument" if code in (126, 127) else "Internal",
        "message": error.message,
        "step": error.step,
        "errno": error.errno,
        "exit_code": code,
    }


def _describe(error: OSError) -> str:
    """Go's order of words: what was touched, then why not."""
    text = error.strerror or str(error)
    text = text[:1].lower() + text[1:]
    return f"{error.filename}: {text}" if error.filename else text


def complain(error: BaseException) -> None:
    """Say on stderr (launcher.log) what went wrong and where, without reading any source file to do so."""
    lines = [f"sampan {posix.getpid()}: {type(error).__name__}: {error}"]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    try:
        posix.write(2, ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    except OSError:
        pass
