"""The texts of /etc/hosts and /etc/resolv.conf as Docker writes them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

HOSTS_HEAD = (
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n"
    "ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)
NAME_SERVER = "127.0.0.11"
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")


def hosts_file(
    own: Sequence[tuple[str, str]],
    extra: Iterable[tuple[str, str]] = (),
    links: Iterable[tuple[str, str]] = (),
) -> str:
    """`own`: (address, names) of the container in each of its networks; `extra`: --add-host; `links`: --link."""
    lines = [f"{address}\t{names}\n" for address, names in (*extra, *links, *own) if address]
    return HOSTS_HEAD + "".join(lines)


class Resolver:
    """A resolv.conf as values."""

    __slots__ = ("options", "search", "servers")

    def __init__(
        self, servers: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        self.servers = list(servers)
        self.search = list(search)
        self.options = list(options)


def parse_resolver(text: str) -> Resolver:
    """Read a resolv.conf(5); what is malformed is passed over, as the C library does."""
    found = Resolver()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            found.servers.append(words[1])
        elif words[0] in ("search", "domain"):
            found.search = words[1:]
        elif words[0] == "options":
            found.options += words[1:]
    return found


def read_host_resolver(path: str = "/etc/resolv.conf") -> Resolver:
    """The host's resolv.conf; where it names only a local stub, the one behind systemd-resolved."""
    found = _read(path)
    if found.servers and all(_is_loopback(server) for server in found.servers):
        behind = _read("/run/systemd/resolve/resolv.conf")
        if behind.servers:
            return behind
    return found


def _read(path: str) -> Resolver:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_resolver(file.read(1 << 16))
    except OSError:
        return Resolver()


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.split("%")[0]).is_loopback
    except ValueError:
        return False


def resolver_file(
    host: Resolver,
    *,
    own_names: bool,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    host_network: bool = False,
) -> str:
    """The container's resolv.conf: our name service on networks with names, else the servers that it can reach."""
    search = list(search) or host.search
    if search == ["."]:
        search = []
    options = list(options) or host.options
    if own_names:
        if not any(option.startswith("ndots:") for option in options):
            options = [*options, "ndots:0"]
        names = [NAME_SERVER]
    elif servers:
        names = list(servers)
    elif host_network:
        names = host.servers
    else:
        names = [s for s in host.servers if not _is_loopback(s)] or list(FALLBACK_SERVERS)
    lines = ["search " + " ".join(search)] if search else []
    lines += [f"nameserver {name}" for name in names]
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def upstream_servers(host: Resolver, servers: Sequence[str] = ()) -> list[str]:
    """Where the name service asks what it does not know."""
    return list(servers) or host.servers or list(FALLBACK_SERVERS)
