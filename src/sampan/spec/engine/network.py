"""Engine API bodies about networks. Wire rules: wire.py."""

from __future__ import annotations

from sampan.spec.engine.container import EndpointSettings
from sampan.spec.engine.wire import Body, names, null, sent

IPAM_NAMES = {"ip_range": "IPRange", "auxiliary_addresses": "AuxiliaryAddresses"}
NETWORK_NAMES = {"enable_ipv4": "EnableIPv4", "enable_ipv6": "EnableIPv6", "ipam": "IPAM"}


class IpamConfig(Body, frozen=True, kw_only=True, rename=names(**IPAM_NAMES)):
    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}


class Ipam(Body, frozen=True, kw_only=True):
    driver: str = sent(lambda: "default")
    options: dict[str, str] | None = null()
    config: list[IpamConfig] | None = sent(list)


class ConfigReference(Body, frozen=True, kw_only=True):
    network: str = sent(str)


class NetworkCreateRequest(Body, frozen=True, kw_only=True, rename=names(**NETWORK_NAMES)):
    """POST /networks/create."""

    name: str = sent(str)
    check_duplicate: bool = sent(bool)
    driver: str = sent(str)
    scope: str = sent(str)
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    ipam: Ipam | None = null()
    internal: bool = sent(bool)
    attachable: bool = sent(bool)
    ingress: bool = sent(bool)
    config_only: bool = sent(bool)
    config_from: ConfigReference | None = null()
    options: dict[str, str] | None = null()
    labels: dict[str, str] | None = null()


class NetworkCreateResponse(Body, frozen=True, kw_only=True):
    id: str
    warning: str = sent(str)


class EndpointResource(Body, frozen=True, kw_only=True, rename=names(
    endpoint_id="EndpointID", ipv4_address="IPv4Address", ipv6_address="IPv6Address",
)):  # fmt: skip
    """A container in a network's inspect; addresses carry their prefix length."""

    name: str = sent(str)
    endpoint_id: str = sent(str)
    mac_address: str = sent(str)
    ipv4_address: str = sent(str)
    ipv6_address: str = sent(str)


class NetworkInspect(Body, frozen=True, kw_only=True, rename=names(**NETWORK_NAMES)):
    """GET /networks/{id}, and a row of GET /networks."""

    name: str = sent(str)
    id: str = sent(str)
    created: str = sent(str)
    scope: str = sent(lambda: "local")
    driver: str = sent(str)
    enable_ipv4: bool | None = None  # API >= 1.48
    enable_ipv6: bool = sent(bool)
    ipam: Ipam = sent(Ipam)
    internal: bool = sent(bool)
    attachable: bool = sent(bool)
    ingress: bool = sent(bool)
    config_from: ConfigReference = sent(ConfigReference)
    config_only: bool = sent(bool)
    containers: dict[str, EndpointResource] = sent(dict)
    options: dict[str, str] = sent(dict)
    labels: dict[str, str] = sent(dict)


class ConnectRequest(Body, frozen=True, kw_only=True):
    """POST /networks/{id}/connect."""

    container: str = sent(str)
    endpoint_config: EndpointSettings | None = None


class DisconnectRequest(Body, frozen=True, kw_only=True):
    container: str = sent(str)
    force: bool = sent(bool)


class NetworksPruned(Body, frozen=True, kw_only=True):
    networks_deleted: list[str] | None = null()


# --- of our own: where a container may connect


class EgressRequest(Body, frozen=True, kw_only=True):
    """POST /containers/{id}/egress: the list as `--egress` takes it; null for no limit."""

    egress: str | None = None


class EgressGrant(Body, frozen=True, kw_only=True):
    """An address that a name of the list resolved to. `seconds` 0: as long as a container has the name."""

    name: str
    address: str
    seconds: int


class EgressResponse(Body, frozen=True, kw_only=True):
    """Where a container may connect: null is anywhere, an empty list nowhere."""

    egress: list[str] | None
    granted: list[EgressGrant]
    refused: dict[str, int]
    dropped: int
