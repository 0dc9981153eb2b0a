"""daemon.json and flags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan import config
from sampan.errors import InvalidArgument


def load(tmp_path: Path, settings: object, *flags: str) -> config.Config:
    path = tmp_path / "daemon.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return config.load(["--config", str(path), *flags], {"HOME": str(tmp_path)})


def test_docker_s_keys_are_understood(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        {
            "data-root": "/srv/x", "log-driver": "local", "log-opts": {"max-size": "1m"}, "debug": True,
            "registry-mirrors": ["http://m"], "exec-opts": ["native.cgroupdriver=systemd"],
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 64000}},
            "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}], "live-restore": True,
            "default-shm-size": "128M", "features": {"buildkit": True},
        },
    )  # fmt: skip
    assert found.root == Path("/srv/x")
    assert (found.log.driver, found.log.options) == ("local", {"max-size": "1m"})
    assert found.registry_mirrors == ("http://m",)
    assert found.cgroup_driver == "systemd"
    assert found.default_ulimits["nofile"].hard == 64000
    assert found.address_pools[0].size == 24
    assert found.default_shm_size == 128 << 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"no-such-key": 1}, "no-such-key"),
        ({"debug": "yes"}, "debug"),
        ({"hosts": "unix:///x"}, "hosts"),
        ({"log-opts": {"a": 1}}, "expected an object of strings"),
        ("{", "unable to configure the daemon"),
        ("[]", "unable to configure the daemon"),
        ({"labels": ["novalue"]}, "bad attribute format"),
        ({"exec-opts": ["native.cgroupdriver=none"]}, "exec-opts"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, settings: object, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        load(tmp_path, settings)


def test_a_key_in_both_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match="both as a flag and in the configuration file: hosts"
    ):
        load(tmp_path, {"hosts": ["unix:///a"]}, "-H", "unix:///b")


def test_a_missing_file_is_only_an_error_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no such file"):
        config.load(["--config", str(tmp_path / "nothing.json")], {})


def test_the_default_host_is_the_socket_in_the_run_directory(tmp_path: Path) -> None:
    found = load(tmp_path, {}, "--run", "/run/other")
    assert found.hosts == ("unix:///run/other/sampan.sock",)


def test_engines_side_by_side_have_names_of_their_own(tmp_path: Path) -> None:
    one = load(tmp_path, {}, "--root", "/a").instance
    other = load(tmp_path, {}, "--root", "/b").instance
    assert one != other
    assert config.Config().instance == "sampan"


def test_rootless_lives_in_the_xdg_directories() -> None:
    found = config.rootless_defaults({"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/5"})
    assert found.root == Path("/h/.local/share/sampan")
    assert found.run == Path("/run/user/5/sampan")
    assert found.rootless


def test_boolean_flags_take_a_value_or_none(tmp_path: Path) -> None:
    assert load(tmp_path, {}, "--iptables=false").iptables is False
    assert load(tmp_path, {}, "--ipv6").ipv6 is True
    with pytest.raises(InvalidArgument):
        load(tmp_path, {}, "--ipv6=perhaps")


class TestRuntimeDirectory:
    """Where there is no $XDG_RUNTIME_DIR: logind's, or one in /tmp that nobody else could have prepared."""

    UID = 64399  # nobody's

    @pytest.fixture
    def made(self) -> Iterator[Path]:
        path = Path(f"/tmp/sampan-run-{self.UID}")
        assert not path.exists()
        yield path
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            path.rmdir()

    def test_what_is_named_is_taken(self) -> None:
        assert (
            config.runtime_directory({"XDG_RUNTIME_DIR": "/some/where"}, self.UID) == "/some/where"
        )

    def test_one_of_our_own_in_tmp(self, made: Path) -> None:
        assert config.runtime_directory({}, self.UID) == str(made)
        assert made.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("kind", ["somebody's", "a link"])
    def test_somebody_else_s_is_refused(self, made: Path, tmp_path: Path, kind: str) -> None:
        if kind == "a link":
            made.symlink_to(tmp_path)
        else:
            made.mkdir(mode=0o700)  # ours, and so not the user's
        with pytest.raises(InvalidArgument, match="not ours alone"):
            config.runtime_directory({}, self.UID)
