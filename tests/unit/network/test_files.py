"""/etc/hosts and /etc/resolv.conf, byte by byte as Docker writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.network import files
from sampan.network.files import (
    Resolver,
    hosts_file,
    parse_resolver,
    read_host_resolver,
    resolver_file,
    upstream_servers,
)


class TestHosts:
    def test_the_head_and_the_container(self) -> None:
        assert hosts_file([("172.17.0.2", "3f0a web")]) == (
            "127.0.0.1\tlocalhost\n"
            "::1\tlocalhost ip6-localhost ip6-loopback\n"
            "fe00::0\tip6-localnet\n"
            "ff00::0\tip6-mcastprefix\n"
            "ff02::1\tip6-allnodes\n"
            "ff02::2\tip6-allrouters\n"
            "172.17.0.2\t3f0a web\n"
        )

    def test_the_order_is_extra_links_own(self) -> None:
        text = hosts_file(
            [("172.17.0.2", "web"), ("fd00::2", "web")],
            extra=[("10.0.0.9", "db.local"), ("10.0.0.9", "again")],
            links=[("172.17.0.3", "db 0123 database")],
        )
        assert text.removeprefix(files.HOSTS_HEAD).splitlines() == [
            "10.0.0.9\tdb.local",
            "10.0.0.9\tagain",
            "172.17.0.3\tdb 0123 database",
            "172.17.0.2\tweb",
            "fd00::2\tweb",
        ]

    def test_what_has_no_address_has_no_line(self) -> None:
        assert hosts_file([("", "web")], extra=[("", "x")]) == files.HOSTS_HEAD
        assert hosts_file([]) == files.HOSTS_HEAD


class TestParse:
    def test_all_that_we_keep(self) -> None:
        found = parse_resolver(
            "# comment\n; another\nnameserver 192.0.2.1 # ours\nnameserver\tfe80::1%eth0\n"
            "domain old.example\nsearch a.example b.example\noptions ndots:2\noptions timeout:1;x\n"
            "sortlist 1.2.3.4\nnameserver\n\nsearch\n"
        )
        assert found.servers == ["192.0.2.1", "fe80::1%eth0"]
        assert found.search == ["a.example", "b.example"]
        assert found.options == ["ndots:2", "timeout:1"]

    @settings(derandomize=True, deadline=None, max_examples=30)
    @given(st.text(max_size=80))
    def test_any_text(self, text: str) -> None:
        found = parse_resolver(text)
        again = parse_resolver(resolver_file(found, own_names=False, host_network=True))
        if not any("#" in word or ";" in word for word in found.servers):
            assert again.servers == found.servers


class TestHostResolver:
    def test_a_missing_file_names_nothing(self, tmp_path: Path) -> None:
        found = read_host_resolver(str(tmp_path / "none"))
        assert (found.servers, found.search, found.options) == ([], [], [])

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "resolv.conf"
        path.write_bytes(b"\xff\xfe\nnameserver 192.0.2.1\n")
        assert read_host_resolver(str(path)).servers == ["192.0.2.1"]

    @pytest.mark.parametrize(
        ("own", "behind", "expected"),
        [
            ("127.0.0.53", "192.0.2.9", ["192.0.2.9"]),
            ("::1", "192.0.2.9", ["192.0.2.9"]),
            ("127.0.0.53", "", ["127.0.0.53"]),
            ("192.0.2.1", "192.0.2.9", ["192.0.2.1"]),
            ("not-an-address", "192.0.2.9", ["not-an-address"]),
        ],
    )
    def test_behind_a_local_stub(
        self, own: str, behind: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = {"/etc/resolv.conf": own, "/run/systemd/resolve/resolv.conf": behind}
        monkeypatch.setattr(
            files, "_read", lambda path: Resolver(servers=[texts[path]] if texts[path] else [])
        )
        assert read_host_resolver().servers == expected


class TestResolverFile:
    HOST = Resolver(["127.0.0.53", "192.0.2.1"], ["a.example"], ["edns0"])

    @staticmethod
    def settings(text: str) -> list[str]:
        """What counts of it: the lines that are no comments."""
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    @staticmethod
    def notes(text: str) -> list[str]:
        """The comments after the settings, which say how the file came about."""
        return [line[2:] for line in text.splitlines() if line.startswith("# ")][3:]

    def test_on_networks_with_names(self) -> None:
        text = resolver_file(self.HOST, own_names=True)
        assert self.settings(text) == [
            "nameserver 127.0.0.11", "search a.example", "options edns0 ndots:0",
        ]  # fmt: skip
        assert self.notes(text) == [
            "Based on host file: '/etc/resolv.conf' (internal resolver)",
            "ExtServers: [host(127.0.0.53) 192.0.2.1]",
            "Overrides: []",
            "Option ndots from: internal",
        ]

    def test_the_user_s_ndots_stays(self) -> None:
        text = resolver_file(Resolver(), own_names=True, options=["ndots:3"])
        assert self.settings(text) == ["nameserver 127.0.0.11", "options ndots:3"]
        assert self.notes(text)[1:] == [
            "Used default nameservers.",
            "ExtServers: [8.8.8.8 8.8.4.4]",
            "Overrides: [options]",
            "Option ndots from: override",
        ]

    def test_the_host_s_ndots_stays(self) -> None:
        text = resolver_file(Resolver(["192.0.2.1"], options=["ndots:2"]), own_names=True)
        assert self.settings(text)[-1] == "options ndots:2"
        assert self.notes(text)[-1] == "Option ndots from: host"

    def test_on_the_default_network_only_servers_that_can_be_reached(self) -> None:
        text = resolver_file(self.HOST, own_names=False)
        assert self.settings(text) == ["nameserver 192.0.2.1", "search a.example", "options edns0"]
        assert self.notes(text) == [
            "Based on host file: '/etc/resolv.conf' (legacy)",
            "Overrides: []",
        ]

    def test_on_the_host_s_network_the_host_s_servers(self) -> None:
        text = resolver_file(self.HOST, own_names=False, host_network=True)
        assert "nameserver 127.0.0.53\nnameserver 192.0.2.1\n" in text
        assert self.notes(text) == ["Based on host file: '/etc/resolv.conf'", "Overrides: []"]

    def test_where_none_can_be_reached(self) -> None:
        text = resolver_file(Resolver(["127.0.0.53", "::1"]), own_names=False)
        assert self.settings(text) == ["nameserver 8.8.8.8", "nameserver 8.8.4.4"]
        assert "Used default nameservers." in self.notes(text)

    def test_what_the_user_gave_goes_first(self) -> None:
        text = resolver_file(
            self.HOST,
            own_names=False,
            servers=["1.1.1.1"],
            search=["b.example"],
            options=["rotate"],
        )
        assert self.settings(text) == ["nameserver 1.1.1.1", "search b.example", "options rotate"]
        assert self.notes(text)[-1] == "Overrides: [nameservers search options]"

    def test_a_dot_means_no_search_list(self) -> None:
        text = resolver_file(self.HOST, own_names=True, search=["."])
        assert not any(line.startswith("search") for line in self.settings(text))

    def test_the_host_s_values_stay_as_they_are(self) -> None:
        resolver_file(self.HOST, own_names=True)
        assert self.HOST.options == ["edns0"]


def test_where_the_name_service_asks() -> None:
    host = Resolver(["127.0.0.53"])
    assert upstream_servers(host, ["1.1.1.1"]) == ["1.1.1.1"]
    assert upstream_servers(host) == ["127.0.0.53"]
    assert upstream_servers(Resolver()) == ["8.8.8.8", "8.8.4.4"]
