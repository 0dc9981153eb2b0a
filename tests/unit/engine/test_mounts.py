"""-v, --mount, --tmpfs and --volumes-from as mounts."""

from __future__ import annotations

import pytest

from sampan.engine import mounts
from sampan.engine.records import ContainerRecord, MountRecord
from sampan.errors import InvalidArgument, NotFound
from sampan.spec.engine.container import ContainerConfig, HostConfig, MountRequest, TmpfsOptions
from sampan.spec.engine.wire import Empty


def nobody(ref: str) -> ContainerRecord:
    raise NotFound(ref)


def collect(host: HostConfig, config: ContainerConfig | None = None) -> dict[str, MountRecord]:
    found = mounts.collect(config or ContainerConfig(), host, find_container=nobody)
    return {mount.destination: mount for mount in found}


def test_a_bind_has_its_source_cleaned_and_its_options_read() -> None:
    mount = mounts.parse_bind("/a/../b/:/c/./d:ro,rshared,z")
    assert (mount.type, mount.source, mount.destination) == ("bind", "/b", "/c/d")
    assert not mount.writable
    assert mount.propagation == "rshared"
    assert mount.create_source


def test_a_name_is_a_volume_and_a_lone_path_an_anonymous_one() -> None:
    named = mounts.parse_bind("data:/d:nocopy")
    assert (named.type, named.name, named.no_copy, named.anonymous) == (
        "volume",
        "data",
        True,
        False,
    )
    lone = mounts.parse_bind("/d")
    assert lone.anonymous
    assert len(lone.name) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:",
        ":/b",
        "/a:/b:c:d",
        "/a:b",
        "/a:/",
        "/a:/b:nosuch",
        "/a:/b:ro,rw",
        "../x:/y",
        "/a:/b\0",
    ],
)
def test_wrong_binds_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        mounts.parse_bind(text)


@pytest.mark.parametrize(
    "wanted",
    [
        MountRequest(type="bind", source="rel", target="/x"),
        MountRequest(type="bind", target="/x"),
        MountRequest(type="bind", source="/a", target=""),
        MountRequest(type="bind", source="/a", target="/"),
        MountRequest(type="volume", source="a", target="/x", tmpfs_options=TmpfsOptions()),
        MountRequest(type="tmpfs", source="a", target="/x"),
        MountRequest(type="nosuch", target="/x"),
    ],
)
def test_wrong_mounts_are_refused(wanted: MountRequest) -> None:
    with pytest.raises(InvalidArgument):
        mounts.from_request(wanted)


def test_two_mounts_on_one_place_are_refused() -> None:
    host = HostConfig(
        binds=["/a:/x"], mounts=[MountRequest(type="volume", source="vv", target="/x/")]
    )
    with pytest.raises(InvalidArgument, match="Duplicate mount point: /x"):
        collect(host)


def test_an_image_s_volume_fills_only_what_nobody_named() -> None:
    config = ContainerConfig(volumes={"/x": Empty(), "/y": Empty()})
    found = collect(HostConfig(binds=["/a:/x"]), config)
    assert found["/x"].type == "bind"
    assert found["/y"].anonymous


@pytest.mark.parametrize("target", ["/proc", "/sys/fs", "/dev/../dev/shm", "/proc/../sys"])
def test_a_volume_of_an_image_never_hides_a_system_directory(target: str) -> None:
    with pytest.raises(InvalidArgument):
        collect(HostConfig(), ContainerConfig(volumes={target: Empty()}))


def test_tmpfs_keeps_the_safe_flags_and_adds_what_was_asked() -> None:
    mount = mounts.from_tmpfs("/t", "size=64k,mode=1777")
    assert mount.options == ("noexec", "nosuid", "nodev", "size=64k", "mode=1777")
    for options in ("nosuch", "size", "context=x"):
        with pytest.raises(InvalidArgument):
            mounts.from_tmpfs("/t", options)


def test_volumes_from_takes_binds_and_volumes_but_not_tmpfs() -> None:
    other = ContainerRecord(
        id="1", name="other", created_ns=1, image_id="i", chain_id="c", driver="overlay", path="x",
        config=ContainerConfig(), host_config=HostConfig(),
        mounts=(
            MountRecord(type="bind", source="/a", destination="/a"),
            MountRecord(type="volume", name="v", destination="/v", anonymous=True),
            MountRecord(type="tmpfs", destination="/t"),
        ),
    )  # fmt: skip
    found = mounts.collect(
        ContainerConfig(), HostConfig(volumes_from=["other:ro"]), find_container=lambda _: other
    )
    # Whose `rm -v` comes last takes the nameless volume away, so it stays one.
    assert [(m.destination, m.writable, m.anonymous, m.mode) for m in found] == [
        ("/a", False, False, "ro"),
        ("/v", False, True, "ro"),
    ]


def test_a_tmpfs_that_is_wished_twice_is_one() -> None:
    asked = HostConfig(mounts=[MountRequest(type="tmpfs", target="/t")], tmpfs={"/t": "", "/u": ""})
    found = mounts.collect(ContainerConfig(), asked, find_container=lambda _: None)  # type: ignore[arg-type,return-value]
    assert [m.destination for m in found] == ["/t", "/u"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/a:/b:nocopy", "field VolumeOptions must not"),
        ("v1:/b:rshared", "field BindOptions must not"),
    ],
)
def test_words_of_the_other_kind_of_mount(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        mounts.parse_bind(text)
