"""run's flags become the body of POST /containers/create."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sampan.cli import args, create
from sampan.cli.main import command_at
from sampan.spec.engine import container as spec


def body(*argv: str) -> dict[str, Any]:
    return create.request(args.parse(command_at("container run"), "run", list(argv)))


def wire_names(struct: Any) -> set[str]:
    return set(struct.__struct_encode_fields__)


def test_every_field_sent_is_one_that_the_engine_reads() -> None:
    made = body(
        "--health-cmd", "x", "--stop-signal", "TERM", "--stop-timeout", "3", "--init", "--tmpfs", "/t", "--sysctl", "net.a=1",
        "--annotation", "a=b", "--storage-opt", "size=1g", "--runtime", "r", "--mount", "dst=/m", "busybox",
    )  # fmt: skip
    windows = {"Isolation", "CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth"}
    host = made.pop("HostConfig")
    assert set(host) - windows - wire_names(spec.HostConfig) == set()
    top = wire_names(spec.CreateRequest) | wire_names(spec.ContainerConfig)
    assert set(made) - top == set()


def test_streams_follow_attach_and_interactive() -> None:
    made = body("-i", "busybox")
    assert (made["AttachStdin"], made["AttachStdout"], made["OpenStdin"], made["StdinOnce"]) == (
        True,
        True,
        True,
        True,
    )
    made = body("-a", "STDERR", "busybox")
    assert (made["AttachStdin"], made["AttachStdout"], made["AttachStderr"]) == (False, False, True)


def test_entrypoint_may_be_reset() -> None:
    assert body("busybox")["Entrypoint"] is None
    assert body("--entrypoint", "", "busybox")["Entrypoint"] == [""]
    assert body("--entrypoint", "sh", "busybox", "-c", "x")["Cmd"] == ["-c", "x"]


def test_ports() -> None:
    host = body(
        "-p", "8080:80", "-p", "127.0.0.1::53/udp", "-p", "[::1]:1:2", "-p", "9000-9001:90-91", "x"
    )["HostConfig"]
    assert host["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
        "2/tcp": [{"HostIp": "::1", "HostPort": "1"}],
        "90/tcp": [{"HostIp": "", "HostPort": "9000"}],
        "91/tcp": [{"HostIp": "", "HostPort": "9001"}],
    }
    assert body("-p", "8000-8010:80", "x")["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}]
    }
    assert body("-p", "target=80,published=8080,protocol=udp", "x")["ExposedPorts"] == {
        "80/udp": {}
    }
    assert set(body("--expose", "7000-7002/udp", "x")["ExposedPorts"]) == {
        "7000/udp",
        "7001/udp",
        "7002/udp",
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-p", "x"], "invalid containerPort: x"),
        (["-p", "1:2:3"], "invalid IP address: 1"),
        (["-p", "70000:80"], "invalid hostPort: 70000"),
        (["-p", "80-81:90-92"], "invalid ranges specified"),
        (["-p", "80/foo"], "invalid proto: foo"),
        (["-p", ":"], "no port specified: :<empty>"),
        (["--expose", "80-70"], "invalid range format for --expose"),
        (["--memory-swappiness", "101"], "Valid memory swappiness range is 0-100"),
        (["--rm", "--restart", "always"], "cannot specify both --restart and --rm"),
        (["--restart", "on-failure:x"], "maximum retry count must be an integer"),
        (["--restart", ":1"], "no policy provided before colon"),
        (["--security-opt", "x"], 'Invalid --security-opt: "x"'),
        (["--security-opt", "seccomp=/nosuch"], "opening seccomp profile (/nosuch) failed"),
        (["--log-driver", "none", "--log-opt", "a=b"], "invalid logging opts for driver none"),
        (["--pid", "x"], "--pid: invalid PID mode"),
        (["--health-cmd", "x", "--no-healthcheck"], "--no-healthcheck conflicts"),
        (["--health-interval", "-1s"], "--health-interval cannot be negative"),
        (["--device", "x"], "x is not an absolute path"),
        (["--device", "/a:/b:xyz"], "bad mode specified: xyz"),
        (["--mac-address", "x"], "x is not a valid mac address"),
        (
            ["--network", "a", "--network", "host"],
            "cannot attach both user-defined and non-user-defined",
        ),
        (["--network", "host", "--network-alias", "a"], "only supported for user-defined networks"),
        (["--network", "a", "--network", "a"], 'network "a" is specified multiple times'),
        (["--env-file", "/nosuch"], "open /nosuch: no such file or directory"),
        (["--storage-opt", "x"], "invalid storage option"),
    ],
)
def test_contradictions_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(create.Wrong) as caught:
        body(*argv, "busybox")
    assert words in str(caught.value)


def test_volumes_and_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = body("-v", "/anon", "-v", "vol:/v:ro", "-v", "./here:/h", "busybox")
    assert made["Volumes"] == {"/anon": {}}
    assert made["HostConfig"]["Binds"] == ["vol:/v:ro", f"{tmp_path}/here:/h"]


def test_endpoints() -> None:
    assert body("busybox")["HostConfig"]["NetworkMode"] == "default"
    assert body("--network", "n", "busybox")["NetworkingConfig"]["EndpointsConfig"] == {}
    made = body("--network", "n", "--ip", "1.2.3.4", "--network-alias", "a", "busybox")
    assert made["HostConfig"]["NetworkMode"] == "n"
    endpoint = made["NetworkingConfig"]["EndpointsConfig"]["n"]
    assert endpoint["IPAMConfig"] == {"IPv4Address": "1.2.3.4"} and endpoint["Aliases"] == ["a"]
    assert set(
        body("--network", "a", "--network", "b", "x")["NetworkingConfig"]["EndpointsConfig"]
    ) == {"a", "b"}


def test_environment_files(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbf# comment\nA=1\n\n  B=x y \nSAMPAN_TEST_ABSENT\n")
    assert body("--env-file", str(file), "-e", "A=2", "busybox")["Env"] == ["A=1", "B=x y ", "A=2"]
    file.write_text("a b=c")
    with pytest.raises(create.Wrong, match="variable 'a b' contains whitespaces"):
        body("--env-file", str(file), "busybox")
    file.write_bytes(b"ok=1\nA=\xff")
    with pytest.raises(create.Wrong, match="invalid utf8 bytes at line 2"):
        body("--env-file", str(file), "busybox")


def test_system_paths_can_be_opened() -> None:
    host = body("--security-opt", "systempaths=unconfined", "busybox")["HostConfig"]
    assert host["SecurityOpt"] == [] and host["MaskedPaths"] == [] and host["ReadonlyPaths"] == []


def test_proxies_of_the_configuration_do_not_override() -> None:
    config = {"proxies": {"default": {"httpProxy": "http://p", "noProxy": "x"}}}
    made = create.proxy_environment(config, "unix:///s", ["HTTP_PROXY=mine"])
    assert made == ["http_proxy=http://p", "NO_PROXY=x", "no_proxy=x"]


def test_capabilities_are_sent_in_full() -> None:
    host = body("--cap-add", "net_admin", "--cap-add", "CAP_CHOWN", "--cap-drop", "all", "busybox")[
        "HostConfig"
    ]
    assert host["CapAdd"] == ["CAP_CHOWN", "CAP_NET_ADMIN"] and host["CapDrop"] == ["ALL"]
    assert body("--cap-add", "ALL", "--cap-add", "KILL", "busybox")["HostConfig"]["CapAdd"] == [
        "ALL"
    ]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (":/b", "invalid spec: :/b: empty section between colons"),
        ("vol::ro", "invalid spec: vol::ro: empty section between colons"),
        ("/a:/b:", "invalid spec: /a:/b:: empty section between colons"),
        ("/a:/b:ro:x", "invalid spec: /a:/b:ro:x: too many colons"),
    ],
)
def test_a_volume_has_one_to_three_parts(spec: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        body("-v", spec, "busybox")


def test_a_single_letter_before_a_colon_counts_as_a_drive() -> None:
    made = body("-v", "a:b", "-v", "vol:/v", "-v", "/only", "busybox")
    assert made["Volumes"] == {"a:b": {}, "/only": {}}
    assert made["HostConfig"]["Binds"] == ["vol:/v"]
