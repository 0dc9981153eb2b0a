"""Network commands."""

from __future__ import annotations

from sampan.cli.args import Command
from sampan.cli.tables.container import (
    FILTER,
    FORCE_PRUNE,
    FORMAT,
    INSPECT_FORMAT,
    NO_TRUNC,
    PRUNE_FILTER,
    QUIET,
)

_ALL = (
    Command(
        "network connect", "[OPTIONS] NETWORK CONTAINER", (2, 2), "networks:connect",
        "Join a container to a network",
        (
            ("alias", "", "strings", None, "Another name on this network"),
            ("driver-opt", "", "strings", None, "Option for the driver (key=value)"),
            ("gw-priority", "", "int", 0, "The highest of a container's networks is its way out"),
            ("ip", "", "ip", "", "IPv4 address (172.30.100.104)"),
            ("ip6", "", "ip", "", "IPv6 address (2001:db8::33)"),
            ("link", "", "link", None, "Link to another container (name[:alias])"),
            ("link-local-ip", "", "strings", None, "Link-local address"),
        ),
    ),
    Command(
        "network create", "[OPTIONS] NETWORK", (1, 1), "networks:create", "Make a network",
        (
            ("attachable", "", "bool", False, "Containers may be attached by hand"),
            ("aux-address", "", "pairs", None, "Address that the driver keeps for itself (name=ip)"),
            ("config-from", "", "string", "", "Network whose settings to copy"),
            ("config-only", "", "bool", False, "Settings only, for other networks to copy"),
            ("driver", "d", "string", "bridge", "Kind of network"),
            ("egress", "", "string", "", "Where its containers may connect, unless one has a list of its own"),
            ("gateway", "", "strings", None, "Address of the gateway of a subnet"),
            ("ingress", "", "bool", False, "The swarm's routing mesh"),
            ("internal", "", "bool", False, "No way out of the network"),
            ("ip-range", "", "strings", None, "Part of the subnet to give addresses from"),
            ("ipam-driver", "", "string", "default", "Who gives out addresses"),
            ("ipam-opt", "", "pairs", None, "Option for the one who gives out addresses (key=value)"),
            ("ipv4", "", "bool", True, "Give out IPv4 addresses"),
            ("ipv6", "", "bool", False, "Give out IPv6 addresses"),
            ("label", "", "label", None, "Label (key=value)"),
            ("opt", "o", "pairs", None, "Option for the driver (key=value)"),
            ("scope", "", "string", "", "How far the network reaches"),
            ("subnet", "", "strings", None, "Subnet in CIDR form"),
        ),
    ),
    Command(
        "network disconnect", "[OPTIONS] NETWORK CONTAINER", (2, 2), "networks:disconnect",
        "Take a container out of a network",
        (("force", "f", "bool", False, "Also if the container is gone"),),
    ),
    Command(
        "network egress", "CONTAINER [any|none|LIST]", (1, 2), "extras:egress",
        "Show or change where a container may connect", own=True,
    ),
    Command(
        "network inspect", "[OPTIONS] NETWORK [NETWORK...]", (1, -1), "inspect:network",
        "Show everything about networks",
        (INSPECT_FORMAT, ("verbose", "v", "bool", False, "Say more, for diagnosis")),
    ),
    Command(
        "network ls", "[OPTIONS]", (0, 0), "networks:ls", "List networks", (FILTER, FORMAT, NO_TRUNC, QUIET),
        aliases=("network list",),
    ),
    Command(
        "network port add", "CONTAINER [HOST_IP:][HOST_PORT:]PORT[/PROTO] [...]", (2, -1), "extras:port_add",
        "Publish ports of a running container", own=True,
    ),
    Command(
        "network port rm", "CONTAINER PORT[/PROTO] [...]", (2, -1), "extras:port_rm",
        "Unpublish ports of a running container", own=True,
    ),
    Command(
        "network prune", "[OPTIONS]", (0, 0), "prune:networks", "Remove networks that no container uses",
        (PRUNE_FILTER, FORCE_PRUNE),
    ),
    Command(
        "network rm", "NETWORK [NETWORK...]", (1, -1), "networks:rm", "Remove networks",
        (("force", "f", "bool", False, "No error if it does not exist"),), aliases=("network remove",),
    ),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
