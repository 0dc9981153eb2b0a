"""What daemon.json and the flags say about networks."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What daemon.json and the flags say about networks."""

    instance: str = "sampan"
    run: Path = Path("/run/sampan")
    default_bridge: str = ""  # '' ours, 'none' no default network
    bip: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    default_gateway: str = ""
    ipv6: bool = False
    pools: tuple[tuple[str, int], ...] = ()
    mtu: int = 0
    icc: bool = True
    masquerade: bool = True
    firewall: bool = True
    forward: bool = True
    publish_ip: str = ""
    dns: tuple[str, ...] = ()

    @property
    def bridge_name(self) -> str:
        if self.default_bridge:
            return self.default_bridge
        return "sampan0" if self.instance == "sampan" else self.instance[:15]
