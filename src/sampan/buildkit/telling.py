"""A build's failure as gRPC says it: the message, the step, the lines of the Dockerfile, a command's exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampan.buildkit.faults import Code, GrpcError, exit_detail, source_detail
from sampan.buildkit.messages import Any as Detail
from sampan.errors import Cancelled, SampanError

if TYPE_CHECKING:
    from sampan.buildkit.builds import Build


def as_grpc(error: Exception, build: Build) -> GrpcError:
    """The failure for the client; what the client itself said passes as it is."""
    if isinstance(error, GrpcError):
        return error
    if isinstance(error, Cancelled):
        return GrpcError("context canceled", Code.CANCELLED)
    if not isinstance(error, SampanError | OSError):
        raise error
    details: list[Detail] = []
    line, end = getattr(error, "line", 0), getattr(error, "end", 0)
    source = getattr(error, "source", None)
    if source is not None and line:
        build.sources[source.name] = source.data
        details.append(source_detail(source.name, source.data, [(line, max(line, end))]))
    code = getattr(error, "exit_code", 0)
    if code:
        details.append(exit_detail(code))
    return GrpcError(_words(error), Code.UNKNOWN, details)


def _words(error: SampanError | OSError) -> str:
    if isinstance(error, SampanError):
        return error.message
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
