"""The keeper's messages, without its process: batches, ports that move, names of limited containers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.network import dns
from sampan.network.keeper import PROTOCOL, Keeper, listen


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    listener = listen(str(tmp_path / "keeper.sock"))
    made = Keeper(listener)
    yield made
    for name in list(made.names):
        made.handle({"op": "names-drop", "container": name}, [])
    for key in list(made.ports):
        made.handle({"op": "port-drop", "key": key}, [])
    made.loop.epoll.close()
    listener.close()


def listening() -> int:
    """A bound stream socket's descriptor, the keeper's from here on."""
    held = socket.create_server(("127.0.0.1", 0))
    return held.detach()


def service() -> list[int]:
    """Sockets as a container's name service has them."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    return [udp.detach(), listening()]


def port(key: str, **more: Any) -> dict[str, Any]:
    return {"op": "port", "key": key, "protocol": "tcp", "target": ["192.0.2.1", 80], **more}


def query(name: str, kind: int = dns.A) -> bytes:
    question = dns.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"
    return b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question


def code(response: bytes | None) -> int:
    assert response is not None
    return response[3] & 15


class TestBatch:
    def test_each_message_gets_its_own_descriptors(self, keeper: Keeper) -> None:
        fds = [listening(), *service()]
        names = {"op": "names", "container": "c", "networks": ["n"], "descriptors": 2}
        assert keeper.handle(
            {"op": "batch", "messages": [port("p", descriptors=1), names]}, fds
        ) == {"ok": True}
        held = keeper.handle({"op": "list"}, [])
        assert held == {
            "ok": True,
            "version": PROTOCOL,
            "containers": ["c"],
            "ports": ["p"],
            "zones": [],
        }

    def test_the_first_error_ends_it_and_closes_what_is_left(self, keeper: Keeper) -> None:
        fds = [listening(), listening(), listening()]
        wrong = {"op": "nonsense", "descriptors": 1}
        messages = [port("p", descriptors=1), wrong, port("q", descriptors=1)]
        answer = keeper.handle({"op": "batch", "messages": messages}, fds)
        assert "unknown operation 'nonsense'" in answer["error"]
        assert keeper.handle({"op": "list"}, [])["ports"] == ["p"]
        for fd in fds[1:]:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    def test_names_of_a_container_that_went_are_passed_over(self, keeper: Keeper) -> None:
        assert keeper.handle({"op": "names", "container": "gone", "networks": []}, []) == {
            "ok": True
        }
        assert keeper.handle({"op": "list"}, [])["containers"] == []


def test_a_port_s_target_changes_and_its_socket_stays(keeper: Keeper) -> None:
    fd = listening()
    keeper.handle(port("p"), [fd])
    keeper.handle({"op": "port-target", "key": "p", "target": ["192.0.2.9", 81]}, [])
    forward = keeper.ports["p"]
    assert forward.target == ("192.0.2.9", 81)
    os.fstat(fd)
    assert keeper.handle({"op": "port-target", "key": "gone", "target": ["192.0.2.9", 81]}, []) == {
        "ok": True
    }


class TestLimited:
    @pytest.fixture
    def names(self, keeper: Keeper) -> Any:
        limit = {"table": "no-such-table", "sources": ["172.17.0.2"], "names": ["good.test"]}
        message = {
            "op": "names",
            "container": "c",
            "networks": ["n"],
            "servers": ["192.0.2.53"],
            "limit": limit,
        }
        keeper.handle(message, service())
        zone = {"names": {"db": ["172.17.0.3"]}, "pointers": {"172.17.0.3": "db"}}
        keeper.handle({"op": "zone", "network": "n", "name": "net", **zone}, [])
        return keeper.names["c"]

    def test_only_listed_names_are_forwarded(self, keeper: Keeper, names: Any) -> None:
        assert names.answer(query("good.test"), udp=True) is None
        for asked in ("bad.test", "x.good.test", "good.test.corp"):
            assert code(names.answer(query(asked), udp=True)) == dns.NXDOMAIN
        assert keeper.handle({"op": "grants", "container": "c"}, [])["refused"] == {
            "bad.test": 1, "x.good.test": 1, "good.test.corp": 1,
        }  # fmt: skip

    def test_containers_are_known_but_nobody_s_addresses_are_not_asked_for(
        self, names: Any
    ) -> None:
        assert code(names.answer(query("db"), udp=True)) == dns.NOERROR
        assert (
            code(names.answer(query("3.0.17.172.in-addr.arpa", dns.PTR), udp=True)) == dns.NOERROR
        )
        assert code(names.answer(query("8.8.8.8.in-addr.arpa", dns.PTR), udp=True)) == dns.NXDOMAIN

    def test_a_lifted_limit_forwards_again(self, keeper: Keeper, names: Any) -> None:
        keeper.handle(
            {"op": "names", "container": "c", "networks": ["n"], "servers": [], "limit": None}, []
        )
        assert names.answer(query("bad.test"), udp=True) is None
        assert keeper.handle({"op": "grants", "container": "c"}, []) == {
            "ok": True,
            "grants": [],
            "refused": {},
        }
