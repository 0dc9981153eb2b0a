"""The order of our own command line, and the way to an agent."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from sampan.build.own import Order, _below, _Relay, read_order
from sampan.errors import InvalidArgument, NotFound


def body(order: object) -> io.BytesIO:
    data = json.dumps(order).encode()
    return io.BytesIO(len(data).to_bytes(4, "big") + data + b"rest")


def test_an_order_stands_in_front_of_the_files() -> None:
    stream = body(
        {
            "attributes": {"build-arg:A": "1", "platform": "linux/arm64,linux/amd64"},
            "secrets": {"s": "eA=="},
        }
    )
    order = read_order(stream)
    assert stream.read() == b"rest"
    assert order.secrets == {"s": b"x"}
    request = order.request()
    assert request.args == {"A": "1"}
    assert request.platforms == ("linux/arm64", "linux/amd64")
    assert request.multi_platform


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cut off"),
        (b"\x00\x00\x00\x09{}", "cut off"),
        (b"\xff\xff\xff\xff", "may have"),
        (b"\x00\x00\x00\x02[]", "malformed order"),
    ],
)
def test_orders_that_are_none(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read_order(io.BytesIO(raw))


@pytest.mark.parametrize(
    "attributes",
    [{"requestid": "frontend.x"}, {"ulimit": "a=x"}, {"shm-size": "x"}, {"add-hosts": "a"}],
)
def test_attributes_that_mean_nothing(attributes: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        Order(attributes=attributes).request()


def test_a_link_is_no_directory_that_was_sent(tmp_path: Path) -> None:
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "named").symlink_to("/")
    assert _below(tmp_path, "real/inner", "inner") == tmp_path / "real/inner"
    for place in ("named/etc", "named", "real/../named", "real/nowhere", "real//inner"):
        with pytest.raises(NotFound, match="was not sent"):
            _below(tmp_path, place, "x")


def test_a_relay_leads_to_the_agent(tmp_path: Path) -> None:
    async def talk() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"agent: " + await reader.readline())
            writer.close()

        server = await asyncio.start_unix_server(answer, tmp_path / "agent")
        relay = _Relay(str(tmp_path / "agent"), tmp_path / "relays")
        path = await relay.start()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"hello\n")
        said = await reader.read()
        writer.close()
        await relay.close()
        server.close()
        assert not Path(path).exists()
        return said

    assert asyncio.run(talk()) == b"agent: hello\n"
