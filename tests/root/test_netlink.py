"""rtnetlink against the real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from sampan.linux import netlink

CLONE_NEWNET = 0x40000000


@pytest.fixture
def namespace() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Runs a function on a thread in a new network namespace, the same for the whole test."""
    holder: list[int] = []

    def make() -> None:
        os_unshare()
        holder.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def os_unshare() -> None:
        from sampan.linux import syscalls

        syscalls.unshare(CLONE_NEWNET)

    on_thread(make)

    def inside(function: Callable[[], object]) -> object:
        from sampan.linux import syscalls

        def run() -> object:
            syscalls.setns(holder[0], CLONE_NEWNET)
            return function()

        return on_thread(run)

    yield inside
    os.close(holder[0])


def on_thread(function: Callable[[], object]) -> object:
    results: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def test_veth_is_born_with_its_peer_in_the_other_namespace(
    namespace: Callable[..., object],
) -> None:
    here = on_thread_new_namespace()

    def build() -> tuple[list[str], bool]:
        with netlink.Netlink() as link:
            link.send(netlink.bridge("br0", up=True))
            index = netlink.link_by_name(link, "br0").index
            link.send(netlink.veth("v0", peer="eth0", peer_netns_fd=here, master=index, mtu=1400))
            found = netlink.link_by_name(link, "v0")
            return sorted(
                x.name for x in netlink.links(link)
            ), found.master == index and found.mtu == 1400

    names, right = namespace(build)  # type: ignore[misc]
    assert names == ["br0", "lo", "v0"]
    assert right
    os.close(here)


def on_thread_new_namespace() -> int:
    from sampan.linux import syscalls

    def make() -> int:
        syscalls.unshare(CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return on_thread(make)  # type: ignore[return-value]


def test_addresses_and_routes_read_back(namespace: Callable[..., object]) -> None:
    def build() -> str:
        with netlink.Netlink() as link:
            lo = netlink.link_by_name(link, "lo").index
            link.send(
                netlink.set_link(lo, up=True),
                netlink.add_address(lo, bytes((10, 9, 8, 7)), 24),
                netlink.add_address(lo, bytes.fromhex("fd000000000000000000000000000007"), 64),
                netlink.add_route(family=netlink.AF_INET, gateway=bytes((10, 9, 8, 1)), index=lo),
            )
            found = {(a.address.hex(), a.prefix) for a in netlink.addresses(link)}
            assert ("0a090807", 24) in found
            assert ("fd000000000000000000000000000007", 64) in found
            assert [r.gateway for r in netlink.routes(link) if not r.destination] == [
                bytes((10, 9, 8, 1))
            ]
        return subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout

    assert "default via 10.9.8.1 dev lo" in str(namespace(build))


def test_failures_carry_errno_and_the_kernels_words(namespace: Callable[..., object]) -> None:
    def build() -> None:
        with netlink.Netlink() as link:
            outcomes = link.send_all(netlink.bridge("br0"), netlink.bridge("br0"))
            assert outcomes[0] is None
            assert isinstance(outcomes[1], FileExistsError)
            with pytest.raises(OSError, match="no-such"):
                netlink.link_by_name(link, "no-such")

    namespace(build)


def test_attribute_that_does_not_fit_its_length_is_refused() -> None:
    """CVE-2021-43784: a wrapped 16-bit length lets payload be read as attributes."""
    with pytest.raises(OverflowError):
        netlink.attribute(1, b"x" * 70_000)
