"""Go's JSON habits, as the body types keep them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidArgument
from sampan.spec.engine.container import (
    ContainerConfig,
    ContainerInspect,
    CreateRequest,
    ExecConfig,
    HostConfig,
    NetworkSettings,
)
from sampan.spec.engine.image import ImageInspect
from sampan.spec.engine.network import NetworkCreateRequest, NetworkInspect
from sampan.spec.engine.system import DiskUsage, EventMessage, Info, Version
from sampan.spec.engine.volume import Volume
from sampan.spec.engine.wire import decode, encode, from_builtins


def test_names_match_in_any_case_and_unknown_ones_are_ignored() -> None:
    got = decode(b'{"IMAGE":"x","hostconfig":{"MEMORY":5},"Nonsense":{"a":[1]}}', CreateRequest)
    assert got.image == "x"
    assert got.host_config.memory == 5


def test_null_is_the_zero_value_everywhere() -> None:
    raw = b'{"Image":null,"Labels":null,"HostConfig":{"PortBindings":{"80/tcp":null},"Ulimits":[null],"Binds":null}}'
    got = decode(raw, CreateRequest)
    assert got.image == ""
    assert got.labels == {}
    assert got.host_config.port_bindings == {"80/tcp": []}
    assert got.host_config.ulimits is not None
    assert got.host_config.ulimits[0].name == ""
    assert got.host_config.binds is None


@pytest.mark.parametrize("field", ["Cmd", "Entrypoint", "Shell"])
def test_a_string_is_a_list_of_one(field: str) -> None:
    got = decode(f'{{"{field}":"ls -l"}}'.encode(), ContainerConfig)
    assert getattr(got, field.lower()) == ["ls -l"]
    assert decode(b'{"CapAdd":"NET_ADMIN"}', HostConfig).cap_add == ["NET_ADMIN"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert decode(b'{"Image":"a\xffb"}', ContainerConfig).image == "a\ufffdb"


def test_empty_body_is_the_zero_value() -> None:
    assert decode(b"", ExecConfig) == ExecConfig()
    assert decode(b" \n", ExecConfig) == ExecConfig()
    assert decode(b"null", ExecConfig) == ExecConfig()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"Image":5}', "$.Image"),
        (b'{"HostConfig":{"Memory":"1g"}}', "$.HostConfig.Memory"),
        (b'{"HostConfig":{"Memory":1e40}}', "$.HostConfig.Memory"),
        (b'{"HostConfig":{"Memory":9223372036854775808}}', "$.HostConfig.Memory"),
        (b'{"HostConfig":[]}', "$.HostConfig"),
        (b"[]", "invalid JSON"),
        (b'{"Image":"x"', "invalid JSON"),
        (b'{"Image":"x"} {}', "unexpected content after JSON"),
        (b'{"Image":NaN}', "invalid JSON"),
        (b"[" * 100_000, "max depth"),
    ],
)
def test_what_is_wrong_is_refused_with_the_field(body: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(body, CreateRequest)
    assert says in caught.value.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["Image", "HostConfig", "Cmd", "Env", "Labels", "Memory", "Mounts", "x"]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_is_decoded_or_refused(raw: object) -> None:
    try:
        got = from_builtins(raw, CreateRequest)
    except InvalidArgument:
        return
    assert isinstance(got, CreateRequest)
    assert from_builtins(_reread(got), CreateRequest) == got


def _reread(value: object) -> object:
    import json

    return json.loads(encode(value))


def test_what_inspect_says_of_config_is_what_create_takes() -> None:
    request = decode(
        b'{"Image":"x","Cmd":["a"],"HostConfig":{"Binds":["/a:/b"],"Init":true}}', CreateRequest
    )
    again = decode(encode(request), CreateRequest)
    assert again == request
    assert b'"HostConfig"' not in encode(request.config())


# What Docker 20.10 and 28 send in every answer of the kind, whether it has a value or not.
ALWAYS = {
    ContainerInspect: "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount "
    "Driver Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config NetworkSettings",
    ContainerConfig: "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd Image "
    "Volumes WorkingDir Entrypoint OnBuild Labels",
    HostConfig: "Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom "
    "CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode "
    "Privileged PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize ConsoleSize Isolation CpuShares Memory "
    "NanoCpus CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps "
    "BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices "
    "DeviceCgroupRules DeviceRequests MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits CpuCount "
    "CpuPercent IOMaximumIOps IOMaximumBandwidth MaskedPaths ReadonlyPaths",
    NetworkSettings: "Bridge SandboxID SandboxKey Ports HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen "
    "SecondaryIPAddresses SecondaryIPv6Addresses EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress "
    "IPPrefixLen IPv6Gateway MacAddress Networks",
    ImageInspect: "Id RepoTags RepoDigests Parent Comment DockerVersion Author Config Architecture Os Size "
    "GraphDriver RootFS Metadata",
    NetworkInspect: "Name Id Created Scope Driver EnableIPv6 IPAM Internal Attachable Ingress ConfigFrom "
    "ConfigOnly Containers Options Labels",
    Volume: "Driver Labels Mountpoint Name Options Scope",
    DiskUsage: "Images Containers Volumes BuildCache",
    Version: "Platform Components Version ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion",
    EventMessage: "Type Action Actor",
    Info: "ID Containers ContainersRunning ContainersPaused ContainersStopped Images Driver DriverStatus Plugins MemoryLimit "
    "SwapLimit CpuCfsPeriod CpuCfsQuota CPUShares CPUSet PidsLimit IPv4Forwarding Debug NFd OomKillDisable NGoroutines "
    "SystemTime LoggingDriver CgroupDriver NEventsListener KernelVersion OperatingSystem OSVersion OSType Architecture "
    "IndexServerAddress RegistryConfig NCPU MemTotal GenericResources DockerRootDir HttpProxy HttpsProxy NoProxy Name Labels "
    "ExperimentalBuild ServerVersion Runtimes DefaultRuntime Swarm LiveRestoreEnabled Isolation InitBinary ContainerdCommit "
    "RuncCommit InitCommit SecurityOptions CDISpecDirs Warnings",
}


@pytest.mark.parametrize("kind", ALWAYS, ids=lambda kind: kind.__name__)
def test_the_empty_body_has_exactly_the_fields_that_are_always_sent(kind: type) -> None:
    import json

    assert set(json.loads(encode(kind()))) == set(ALWAYS[kind].split())


def test_irregular_names_come_back() -> None:
    raw = b'{"Name":"n","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"10.0.0.0/8","IPRange":"10.1.0.0/16"}]}}'
    got = decode(raw, NetworkCreateRequest)
    assert got.enable_ipv6 is True
    assert got.ipam is not None and got.ipam.config is not None
    assert got.ipam.config[0].ip_range == "10.1.0.0/16"
