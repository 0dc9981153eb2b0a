"""The ruleset as nft(8) would list it. `SAMPAN_WRITE_GOLDEN=1 pytest ...` writes the texts anew: read the difference."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from sampan.linux import nft
from sampan.network import egress
from sampan.network.names import service_table
from sampan.network.records import (
    EndpointRecord,
    NetworkRecord,
    NetworkSpec,
    PoolSpec,
    PublishedPort,
)
from sampan.network.rules import (
    GATEWAY_MODE_4,
    GATEWAY_MODE_6,
    ICC,
    MASQUERADE,
    ruleset,
    translations,
)

GOLDEN = Path(__file__).parents[2] / "data" / "network"
FOUR = PoolSpec(subnet="172.17.0.0/16", gateway="172.17.0.1")
SIX = PoolSpec(subnet="fd00::/64", gateway="fd00::1")


def network(
    bridge: str = "br-a", *pools: PoolSpec, internal: bool = False, config_only: bool = False, **options: str
) -> NetworkRecord:  # fmt: skip
    return NetworkRecord(
        id="n" + bridge,
        created="",
        bridge=bridge,
        pools=pools or (FOUR,),
        spec=NetworkSpec(name=bridge, internal=internal, config_only=config_only, options=options),
    )


def endpoint(
    *ports: PublishedPort, ipv6: str = "", entries: tuple[str, ...] | None = None
) -> EndpointRecord:
    return EndpointRecord(
        id="e0123456789abcdef", network_id="nbr-a", network_name="br-a", driver="bridge",
        container_id="c", container_name="web", ipv4="172.17.0.2", ipv6=ipv6, ports=ports, egress=entries,
        host_link="vethe012345", mac="02:42:ac:11:00:02",
    )  # fmt: skip


def port(host_ip: str, host: int, container: int, protocol: str = "tcp") -> PublishedPort:
    return PublishedPort(
        container_port=container, protocol=protocol, host_ip=host_ip, host_port=host
    )


def table(*networks: NetworkRecord, endpoints: Iterable[EndpointRecord] = ()) -> nft.Table:
    members = list(endpoints)
    published = [each for member in members for each in translations(member, member.ports)]
    return ruleset("sampan", networks, published, limits(members))


def limits(members: Iterable[EndpointRecord]) -> list[egress.Limit]:
    return egress.limits(members, {"nbr-a": "02:42:00:00:00:01"})


LISTED = ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "example.com", "2001:db8::/32")

CASES = {
    "default": table(network()),
    "empty": table(),
    "icc_off": table(network(**{ICC: "false"})),
    "internal": table(network(internal=True)),
    "ipv6": table(network("br-a", FOUR, SIX)),
    "no_masquerade": table(network(**{MASQUERADE: "false"})),
    "routed": table(network("br-a", FOUR, SIX, **{GATEWAY_MODE_4: "routed", GATEWAY_MODE_6: "nat-unprotected"})),
    "two_networks": table(network("br-b", PoolSpec(subnet="172.18.0.0/16")), network("br-a")),
    "published_any": table(network(), endpoints=[endpoint(port("0.0.0.0", 8080, 80))]),
    "published_one": table(network(), endpoints=[endpoint(port("192.0.2.1", 8080, 80))]),
    "published_udp": table(network(), endpoints=[endpoint(port("0.0.0.0", 53, 5353, "udp"))]),
    "published_ipv6": table(
        network("br-a", FOUR, SIX),
        endpoints=[endpoint(port("0.0.0.0", 80, 80), port("::", 80, 80), port("2001:db8::1", 81, 80), ipv6="fd00::2")],
    ),
    "egress_limited": table(network(), endpoints=[endpoint(entries=LISTED)]),
    "egress_nothing": table(network("br-a", FOUR, SIX), endpoints=[endpoint(ipv6="fd00::2", entries=())]),
    "egress_guard": egress.guard("sampan", limits([endpoint(ipv6="fd00::2", entries=LISTED)])),
    "names": service_table({"udp": 40001, "tcp": 40002}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.nft"
    text = nft.describe(CASES[name])
    if os.environ.get("SAMPAN_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_text_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_rulesets_have_a_wire_form(name: str) -> None:
    """Every expression and element encodes; a chain that is jumped to is there."""
    case = CASES[name]
    for message in nft.replace_messages(case):
        assert message
    for chain in case.chains:
        for rule in chain.rules:
            assert all(expression.encode() for expression in rule)
    chains = {chain.name for chain in case.chains}
    for each in case.sets:
        for element in each.elements:
            assert element.encode()
            assert element.verdict is None or element.verdict[1] in chains


def test_the_order_of_networks_does_not_matter() -> None:
    one, other = network("br-a"), network("br-b", PoolSpec(subnet="172.18.0.0/16"))
    assert nft.describe(table(one, other)) == nft.describe(table(other, one))


def test_networks_without_a_bridge_have_no_rules() -> None:
    plain = nft.describe(table())
    assert nft.describe(table(network(""), network(config_only=True))) == plain


def test_loopback_and_families_the_container_lacks_are_not_translated() -> None:
    """The keeper's sockets carry those (CVE-2025-54410 and the likes: loopback must not be reachable by routing)."""
    ports = [port("127.0.0.1", 1, 1), port("127.5.5.5", 1, 1), port("::1", 1, 1), port("::", 1, 1)]
    assert translations(endpoint(), ports) == []


def test_a_translation_s_key_is_padded_as_the_kernel_wants_it() -> None:
    (one,) = translations(endpoint(), [port("192.0.2.1", 8080, 80)])
    element = one.element()
    assert element.key == bytes((6, 0, 0, 0, 192, 0, 2, 1, 0x1F, 0x90, 0, 0))
    assert element.data == bytes((172, 17, 0, 2, 0, 80, 0, 0))
    assert one.map_name == "published4"
