"""Flag values: what goes on the wire, and the words that refuse the rest."""

from __future__ import annotations

import pytest

from sampan.cli import values


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("100", 100),
        ("64m", 64 << 20),
        ("1.5g", 3 << 29),
        ("1 GiB", 1 << 30),
        ("2KB", 2048),
        ("7b", 7),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, number: int) -> None:
    assert values.size(text) == number


@pytest.mark.parametrize(
    ("text", "words"),
    [("abc", "invalid size: 'abc'"), ("", "invalid size: ''"), ("-1", "invalid size: '-1'"), ("1xb", "invalid suffix: 'xb'"),
     ("1mbb", "invalid suffix"), ("1_0", "strconv.ParseFloat"), ("1kk", "invalid suffix: 'kk'")],
)  # fmt: skip
def test_wrong_sizes(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "nano"),
    [("1.5", 1_500_000_000), ("3/2", 1_500_000_000), (".01", 10_000_000), ("1e-2", 10_000_000)],
)
def test_processors_are_exact(text: str, nano: int) -> None:
    assert values.cpus(text) == nano


def test_processors_too_precise_or_no_number() -> None:
    with pytest.raises(ValueError, match="value is too precise"):
        values.cpus("1.0000000001")
    for text in ("x", "", "1/0", "1/x", "1e99999999"):
        with pytest.raises(ValueError, match="rational number"):
            values.cpus(text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("30s", 30 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("1.5s", 1_500_000_000),
        ("-2ms", -2_000_000),
        ("0", 0),
        ("100us", 100_000),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert values.duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5", "missing unit"),
        ("", "invalid duration"),
        ("1y", "unknown unit"),
        ("1.2.3s", "invalid duration"),
    ],
)
def test_wrong_durations(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        values.duration(text)


def test_mounts() -> None:
    made = values.mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave")
    assert made == {
        "Type": "bind",
        "Source": "/a",
        "Target": "/b",
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rslave"},
    }
    made = values.mount("src=v,target=/x,volume-opt=a=b,volume-label=k=v,volume-nocopy")
    assert made["VolumeOptions"] == {
        "Labels": {"k": "v"},
        "DriverConfig": {"Options": {"a": "b"}},
        "NoCopy": True,
    }
    assert values.mount("type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770")["TmpfsOptions"] == {
        "SizeBytes": 64 << 20,
        "Mode": 0o1770,
    }
    assert values.mount('type=bind,"src=/a,b",dst=/c')["Source"] == "/a,b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("type=bind,src=/x", "target is required"),
        ("type=bind,dst=/x,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
        ("type=volume,dst=/x,bind-recursive=foo", "invalid value for bind-recursive"),
        ("dst=/x,foo=bar", "unexpected key 'foo' in 'foo=bar'"),
        ("type=bind,dst=/x,bind-recursive=writable", "requires 'readonly'"),
        ('"dst=x', 'extraneous or missing " in quoted-field'),
        ('dst="x', 'bare " in non-quoted field'),
    ],
)
def test_wrong_mounts(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        values.mount(text)
    assert words in str(caught.value)


def test_networks() -> None:
    assert values.network("host") == {"Target": "host"}
    made = values.network("name=n,alias=a,alias=b,ip=1.2.3.4,driver-opt=x=y,gw-priority=-3")
    assert made == {
        "Target": "n", "Aliases": ["a", "b"], "IPv4Address": "1.2.3.4", "DriverOpts": {"x": "y"}, "GwPriority": -3,
    }  # fmt: skip
    with pytest.raises(ValueError, match="network name/id is not specified"):
        values.network("alias=a")
    with pytest.raises(ValueError, match="invalid field key foo"):
        values.network("name=a,foo=b")


def test_limits() -> None:
    assert values.ulimit("nofile=10:20") == {"Name": "nofile", "Soft": 10, "Hard": 20}
    assert values.ulimit("core=-1") == {"Name": "core", "Soft": -1, "Hard": -1}
    for text, words in (
        ("x=1", "invalid ulimit type: x"), ("nofile", "invalid ulimit argument"), ("nofile=1:2:3", "too many limit value"),
        ("nofile=3:2", "less than or equal"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            values.ulimit(text)


def test_hosts_addresses_and_rules() -> None:
    assert values.extra_host("a:[::1]") == "a:::1"
    assert values.extra_host("a=host-gateway") == "a:host-gateway"
    assert values.address(" 1.2.3.4 ") == "1.2.3.4"
    assert values.device_rule("c 1:* rwm") == "c 1:* rwm"
    for check, text in ((values.extra_host, "a"), (values.extra_host, "a:300.1.1.1"), (values.address, "x"),
                        (values.device_rule, "c 1:3 xyz"), (values.search_domain, "a_.-"), (values.label, "=x"),
                        (values.label, "a b=c"), (values.sysctl, "vm.x=1"), (values.link, "a:b:c"), (values.env, "=x")):  # fmt: skip
        with pytest.raises(ValueError):
            check(text)


def test_a_bare_variable_takes_our_value_or_stays_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import posix

    monkeypatch.setitem(posix.environ, b"SAMPAN_TEST", b"v")
    assert values.env("SAMPAN_TEST") == "SAMPAN_TEST=v"
    assert values.env("SAMPAN_TEST_ABSENT") == "SAMPAN_TEST_ABSENT"


def test_graphics_processors() -> None:
    assert values.gpus("all")["Count"] == -1
    assert values.gpus("device=0")["DeviceIDs"] == ["0"]
    assert values.gpus("2,capabilities=compute")["Capabilities"] == [["compute", "gpu"]]
    with pytest.raises(ValueError, match="invalid count"):
        values.gpus("x")


def test_paths_are_cleaned_as_go_does() -> None:
    assert values.clean("/a/../b/./c//") == "/b/c"
    assert values.clean("../a/..") == ".."
    assert values.clean("/..") == "/"
