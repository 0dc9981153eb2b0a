"""linux.netDevices: host network devices that become the container's, with their addresses, and up.

Moving a device between namespaces takes its addresses away, so the permanent global ones are read before
and given back after. The device falls back to the host's namespace when the container's ends (the kernel does it).
Source: runtime-spec 1.3 config-linux.md "Network Devices".
"""

from __future__ import annotations

import posix

from sampan.linux import constants as c
from sampan.linux.netlink import Netlink, add_address, addresses, link_by_name, links, set_link
from sampan.linux.syscalls import setns

from .channel import LaunchError, describe_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.linux.netlink import Address

IFA_F_PERMANENT = 0x80
SCOPE_UNIVERSE = 0


def move_devices(devices: dict[str, Any], pid: int) -> None:
    """Move each device into the network namespace of a process; LaunchError naming the one that cannot be."""
    namespace = posix.open(f"/proc/{pid}/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        with Netlink() as host, socket_inside(namespace) as inside:
            for name, settings in devices.items():
                try:
                    _move(host, inside, namespace, name, (settings or {}).get("name") or name)
                except OSError as error:
                    number, text = describe_error(error)
                    raise LaunchError(
                        f"cannot move network device {name}: {text}", errno=number
                    ) from error
    finally:
        posix.close(namespace)


def socket_inside(namespace: int) -> Netlink:
    """A socket belongs to the namespace in which it was made; this single-threaded process visits it for that."""
    back = posix.open("/proc/self/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        setns(namespace, c.CLONE_NEWNET)
        try:
            return Netlink()
        finally:
            setns(back, c.CLONE_NEWNET)
    finally:
        posix.close(back)


def _move(host: Netlink, inside: Netlink, namespace: int, name: str, wanted: str) -> None:
    link = link_by_name(host, name)
    kept = [address for address in addresses(host) if _is_kept(address, link.index)]
    there = {other.index for other in links(inside)}
    host.send(set_link(link.index, rename=wanted, netns_fd=namespace))
    moved = next(other for other in links(inside) if other.index not in there)
    inside.send(
        *(
            add_address(
                moved.index, old.address, old.prefix, broadcast=old.broadcast, peer=old.peer
            )
            for old in kept
        ),
        set_link(moved.index, up=True),
    )


def _is_kept(address: Address, index: int) -> bool:
    permanent = bool(address.flags & IFA_F_PERMANENT)
    return address.index == index and permanent and address.scope == SCOPE_UNIVERSE
