"""Calls that we serve: a table from method names to functions over typed messages.

Methods = {"/moby.buildkit.v1.Control/Info": one(Empty, control.info), ".../Status": many(StatusRequest, control.status)}
Link(serve=dispatcher(methods))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from sampan import errors
from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Stream
from sampan.buildkit.wire import Message, WireError, decode, encode

Perform = Callable[[Stream], Awaitable[None]]
Methods = Mapping[str, Perform]


async def _request(stream: Stream, kind: type[Message]) -> Any:
    message = await stream.receive()
    if message is None:
        raise GrpcError("the call has no request", Code.INTERNAL)
    try:
        return decode(kind, message)
    except WireError as error:
        raise GrpcError(f"grpc: error unmarshalling request: {error}", Code.INTERNAL) from None


def one(kind: type[Message], function: Callable[[Stream, Any], Awaitable[Message]]) -> Perform:
    """A request, one answer."""

    async def perform(stream: Stream) -> None:
        answer = await function(stream, await _request(stream, kind))
        await stream.send(encode(answer))

    return perform


def many(kind: type[Message], function: Callable[[Stream, Any], AsyncIterator[Message]]) -> Perform:
    """A request, a stream of answers."""

    async def perform(stream: Stream) -> None:
        async for answer in function(stream, await _request(stream, kind)):
            await stream.send(encode(answer))

    return perform


def dispatcher(methods: Methods) -> Perform:
    """What a link serves: the method that a call names, failures as gRPC says them."""

    async def serve(stream: Stream) -> None:
        perform = methods.get(stream.path)
        if perform is None:
            service, _, method = stream.path.lstrip("/").partition("/")
            raise GrpcError(f"unknown method {method} for service {service}", Code.UNIMPLEMENTED)
        try:
            await perform(stream)
        except GrpcError:
            raise
        except errors.Cancelled as error:
            raise GrpcError(error.message or "context canceled", Code.CANCELLED) from error
        except errors.SampanError as error:
            raise GrpcError(error.message) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise GrpcError(f"{where}{error.strerror or error}") from error

    return serve
