"""Where a registry is: mirrors, plain HTTP where allowed, private authorities, proxies. No connection is made here.

    domain of a reference        endpoints, in the order they are tried
    docker.io                    each mirror, then https://registry-1.docker.io
    an insecure one              https without verification, then http
    any other                    https

Insecure is what the configuration lists (`insecure-registries`: host[:port] or CIDR) and what is on loopback,
as Docker has it. Certificates come from `<certs dir>/<host[:port]>/`: `*.crt` are authorities, `X.cert` with
`X.key` is our own. Sources: Docker's daemon.json reference; "Verify repository client with certificates";
Go's httpproxy for NO_PROXY.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import time
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

from sampan.errors import InvalidArgument
from sampan.spec.reference import DEFAULT_DOMAIN

HUB_HOST = "registry-1.docker.io"
_SYSTEM_CONTEXT_LIFE_S = 600
CERTS_DIRS = ("/etc/sampan/certs.d", "/etc/docker/certs.d")


class Proxies(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests go through which proxy. Loopback never does."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""

    def for_url(self, scheme: str, host: str, port: int) -> str:
        proxy = self.https if scheme == "https" else self.http
        return "" if not proxy or self._is_direct(host, port) else proxy

    def _is_direct(self, host: str, port: int) -> bool:
        host = host.lower().strip("[]")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(
            _matches_no_proxy(rule.strip().lower(), host, port, address)
            for rule in self.no_proxy.split(",")
        )


def proxies_from_environment(environ: dict[str, str] | None = None) -> Proxies:
    env = os.environ if environ is None else environ

    def read(name: str) -> str:
        return env.get(name) or env.get(name.lower()) or ""

    http = read("HTTP_PROXY")
    return Proxies(http=http, https=read("HTTPS_PROXY"), no_proxy=read("NO_PROXY"))


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What daemon.json says about registries."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    certs_dirs: tuple[str, ...] = CERTS_DIRS
    proxies: Proxies = msgspec.field(default_factory=proxies_from_environment)
    user_agent: str = "sampan"
    concurrent_downloads: int = 3
    concurrent_uploads: int = 5
    idle_timeout_s: float = 30.0
    connect_timeout_s: float = 15.0
    retry_delay_s: float = 1.0
    attempts: int = 5

    def is_insecure(self, domain: str) -> bool:
        host, _, _ = split_host(domain)
        for rule in ("127.0.0.0/8", "::1/128", *self.insecure):
            if rule in {domain, host}:
                return True
            try:
                network = ipaddress.ip_network(rule, strict=False)
            except ValueError:
                continue
            if any(address in network for address in _addresses(host)):
                return True
        return False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One way to reach a registry: a base URL without `/v2/`, and how its certificate is taken."""

    base: str
    host: str
    verify: bool = True
    mirror: bool = False


def endpoints(config: RegistryConfig, domain: str, *, for_push: bool = False) -> list[Endpoint]:
    """All the ways to a registry, best first. Mirrors are for reading."""
    found = []
    if domain == DEFAULT_DOMAIN and not for_push:
        found += [_mirror(url) for url in config.mirrors]
    host = HUB_HOST if domain == DEFAULT_DOMAIN else domain
    if config.is_insecure(domain):
        found.append(Endpoint(base=f"https://{host}", host=host, verify=False))
        found.append(Endpoint(base=f"http://{host}", host=host, verify=False))
    else:
        found.append(Endpoint(base=f"https://{host}", host=host))
    return found


def check_mirror(url: str) -> str:
    """A mirror as daemon.json may name it; the error is Docker's."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidArgument(f"invalid mirror: {url!r} is not a valid URI")
    if parts.query or parts.fragment or parts.username:
        raise InvalidArgument(
            f"invalid mirror: path, query, user or fragment at end of the URI {url!r}"
        )
    return url.rstrip("/")


def _mirror(url: str) -> Endpoint:
    base = check_mirror(url)
    return Endpoint(base=base, host=urlsplit(base).netloc, mirror=True)


def split_host(domain: str) -> tuple[str, int, bool]:
    """host, port, and whether the port was written."""
    parts = urlsplit(f"//{domain}")
    try:
        port = parts.port
    except ValueError:
        raise InvalidArgument(f"invalid registry address {domain!r}") from None
    return (parts.hostname or ""), port or 443, port is not None


def tls_context(config: RegistryConfig, host: str, *, verify: bool) -> ssl.SSLContext:
    """The system's authorities (SSL_CERT_FILE and SSL_CERT_DIR count) and what certs.d adds for this host."""
    folders = [] if "/" in host or host in {"", ".", ".."} else _folders(config, host)
    if not folders and verify:
        return _system_context(int(time.monotonic() // _SYSTEM_CONTEXT_LIFE_S))
    context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for folder in folders:
        _add_certificates(context, folder)
    return context


@lru_cache(maxsize=1)
def _system_context(_: int) -> ssl.SSLContext:
    """Reading the system's authorities takes 30 ms, so every registry shares them for a while."""
    return ssl.create_default_context()


def _folders(config: RegistryConfig, host: str) -> list[str]:
    found = [os.path.join(directory, host) for directory in config.certs_dirs]
    return [folder for folder in found if os.path.isdir(folder)]


def _add_certificates(context: ssl.SSLContext, folder: str) -> None:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(".crt"):
            context.load_verify_locations(cafile=path)
        elif name.endswith(".cert"):
            key = path.removesuffix(".cert") + ".key"
            if not os.path.exists(key):
                raise InvalidArgument(
                    f"missing key {os.path.basename(key)} for client certificate {name}"
                )
            context.load_cert_chain(path, key)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    literal = _address(host)
    if literal is not None:
        return [literal]
    if host == "localhost":
        return [ipaddress.ip_address("127.0.0.1")]
    try:
        return [
            ipaddress.ip_address(str(info[4][0]).partition("%")[0])
            for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        ]
    except (OSError, ValueError, UnicodeError):
        return []


def _matches_no_proxy(
    rule: str,
    host: str,
    port: int,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> bool:
    if not rule:
        return False
    if rule == "*":
        return True
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, colon, wanted = rule.rpartition(":")
    if colon and wanted.isascii() and wanted.isdigit() and _address(rule) is None:
        if int(wanted[:6]) != port:
            return False
        rule = name
    rule = rule.strip("[]")
    if rule.startswith("*."):
        rule = rule[1:]
    if rule.startswith("."):
        return host.endswith(rule)
    return host == rule or (address is None and host.endswith("." + rule))
