"""Platforms, proxies, certificates, changes, progress bars, the program that Python writes."""

from __future__ import annotations

import gzip
import os
import platform as host
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from sampan.errors import InvalidArgument, NotFound
from sampan.images import builtin, elf, platform, progress
from sampan.images.catalog import Catalog
from sampan.images.changes import apply_changes
from sampan.images.compress import Compressor
from sampan.images.endpoints import Proxies, RegistryConfig, check_mirror, endpoints, tls_context
from sampan.images.transport import retry_after_seconds
from sampan.images.unpack import ensure
from sampan.spec.image import Descriptor, Platform, RunConfig

# --- platforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("LINUX/ARM64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm64/8", "linux/arm64/v8"),
        ("linux/armhf", "linux/arm/v7"),
        ("arm64", "linux/arm64"),
        ("i386", "linux/386"),
    ],
)
def test_platforms_are_read(text: str, expected: str) -> None:
    assert str(platform.parse_platform(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "/", "a/b/c/d", "linux/", "linux//v8", "nonsense", "linux/amd64 ; x", "é/amd64"]
)
def test_nonsense_is_no_platform(text: str) -> None:
    with pytest.raises(InvalidArgument):
        platform.parse_platform(text)


def entry(name: str) -> Descriptor:
    found = platform.parse_platform(name)
    return Descriptor(digest="sha256:" + "0" * 64, size=1, platform=found)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/arm64", "linux/386"], "linux/386"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], "linux/arm/v5"),
    ],
)
def test_the_best_is_chosen(wanted: str, offered: list[str], chosen: str) -> None:
    found = platform.choose([entry(name) for name in offered], platform.parse_platform(wanted))
    assert str(found.platform) == chosen


def test_none_is_not_found() -> None:
    with pytest.raises(NotFound) as caught:
        platform.choose(
            [entry("linux/amd64")], Platform(os="linux", architecture="arm64", variant="v8")
        )
    assert (
        str(caught.value) == "no matching manifest for linux/arm64/v8 in the manifest list entries"
    )


def test_this_host_is_some_platform() -> None:
    assert platform.host_platform("x86_64").architecture == "amd64"
    assert str(platform.host_platform("aarch64")) == "linux/arm64/v8"


# --- endpoints -----------------------------------------------------------------------------------------------------


def test_where_registries_are() -> None:
    config = RegistryConfig(
        mirrors=("https://mirror.example/",), insecure=("10.0.0.0/8", "plain.example:5000")
    )

    def bases(domain: str, **options: bool) -> list[str]:
        return [endpoint.base for endpoint in endpoints(config, domain, **options)]

    assert bases("docker.io") == ["https://mirror.example", "https://registry-1.docker.io"]
    assert bases("docker.io", for_push=True) == ["https://registry-1.docker.io"]
    assert bases("10.1.2.3:5000") == ["https://10.1.2.3:5000", "http://10.1.2.3:5000"]
    assert bases("plain.example:5000") == [
        "https://plain.example:5000",
        "http://plain.example:5000",
    ]
    assert bases("127.0.0.1:5000")[-1] == "http://127.0.0.1:5000"
    assert bases("localhost:5000")[-1] == "http://localhost:5000"
    assert bases("[::1]:5000")[-1] == "http://[::1]:5000"
    assert bases("192.0.2.1:5000") == ["https://192.0.2.1:5000"]


@pytest.mark.parametrize(
    "url", ["mirror.example", "ftp://a", "https://", "https://a/?q", "https://u:p@a/"]
)
def test_bad_mirrors_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid mirror"):
        check_mirror(url)


@pytest.mark.parametrize(
    ("host_name", "port", "direct"),
    [
        ("example.com", 443, False), ("internal", 443, True), ("a.internal", 443, True), ("xinternal", 443, False),
        ("a.dots.example", 443, True), ("dots.example", 443, False), ("10.1.2.3", 80, True), ("11.1.2.3", 80, False),
        ("ported.example", 8080, True), ("ported.example", 80, False), ("127.0.0.1", 80, True),
        ("localhost", 80, True), ("::1", 80, True),
    ],
)  # fmt: skip
def test_no_proxy(host_name: str, port: int, direct: bool) -> None:
    proxies = Proxies(
        http="http://p:1",
        https="http://p:2",
        no_proxy="internal, .dots.example,10.0.0.0/8,ported.example:8080",
    )
    assert (proxies.for_url("http", host_name, port) == "") is direct
    assert Proxies(http="http://p", no_proxy="*").for_url("http", "a", 1) == ""


def test_certificates_of_a_host_are_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "r.example:5000"
    folder.mkdir()
    (folder / "client.cert").write_text("")
    config = RegistryConfig(certs_dirs=(str(tmp_path),), proxies=Proxies())
    with pytest.raises(InvalidArgument, match="missing key client.key"):
        tls_context(config, "r.example:5000", verify=True)
    tls_context(config, "../r.example:5000", verify=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("0", 0.0), ("-1", None), ("soon", None), ("٣", None), ("", None)],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after_seconds(text) == seconds


# --- changes --------------------------------------------------------------------------------------------------------


def changed(*lines: str, config: RunConfig | None = None) -> dict[str, object]:
    raw = msgspec.json.encode(apply_changes(config or RunConfig(), lines))
    return msgspec.json.decode(raw, type=dict[str, object])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("CMD echo $HOME", {"Cmd": ["/bin/sh", "-c", "echo $HOME"]}),
        ("cmd a", {"Cmd": ["/bin/sh", "-c", "a"]}),
        ('ENTRYPOINT ["/e"]', {"Entrypoint": ["/e"]}),
        ("ENTRYPOINT []", {}),
        ("ENV A=1 B='two words' C=\"x\\\"y\"", {"Env": ["A=1", "B=two words", 'C=x"y']}),
        ("ENV A some words", {"Env": ["A=some words"]}),
        ("EXPOSE 80 53/udp 100-102", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "100/tcp": {}, "101/tcp": {}, "102/tcp": {}}}),
        ("LABEL a=b c.d=\"e f\"", {"Labels": {"a": "b", "c.d": "e f"}}),
        ("USER www:data", {"User": "www:data"}),
        ('VOLUME ["/a b", "/c"]', {"Volumes": {"/a b": {}, "/c": {}}}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("WORKDIR /w", {"WorkingDir": "/w"}),
        ("ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        ("HEALTHCHECK --interval=5s --retries=2 CMD curl x",
         {"Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000, "Retries": 2}}),
        ("# a comment", {}),
        ("USER a b", {"User": "a b"}),
        ("ENV P=$P:/x Q=\"${Z:-z}\" R='$P' S=${P:+t} T=\\$P", {"Env": ["P=:/x", "Q=z", "R=$P", "S=", "T=$P"]}),
    ],
)  # fmt: skip
def test_each_change(line: str, expected: dict[str, object]) -> None:
    assert changed(line) == expected


def test_changes_build_on_each_other() -> None:
    assert changed("ENV A=1", "ENV A=2 B=3", "WORKDIR /a", "WORKDIR b")["Env"] == ["A=2", "B=3"]
    assert changed("WORKDIR /a", "WORKDIR b") == {"WorkingDir": "/a/b"}
    assert changed("ENV PATH=/bin", "ENV PATH=/x:$PATH")["Env"] == ["PATH=/x:/bin"]
    assert changed("ENV D=/d", "WORKDIR ${D}/e")["WorkingDir"] == "/d/e"


@pytest.mark.parametrize(
    "line",
    ["RUN x", "FROM a", "NONSENSE", "ENV", "ENV A", "EXPOSE x", "EXPOSE 99999", "EXPOSE 5-1", "EXPOSE 1_0", "LABEL",
     "USER", "", "EXPOSE", "ONBUILD", "HEALTHCHECK", 'CMD ["a", 1]', 'ENV A="x', 'SHELL ["/bin/bash"]', "VOLUME", "HEALTHCHECK x", "HEALTHCHECK --retries=x CMD a", "ONBUILD FROM x",
     "HEALTHCHECK --bad=1 CMD x", "VOLUME []"],
)  # fmt: skip
def test_bad_changes_are_refused(line: str) -> None:
    with pytest.raises(InvalidArgument):
        changed(line)


# --- progress and compression ---------------------------------------------------------------------------------------


def test_the_bar_is_dockers() -> None:
    assert progress.bar(50, 100) == "[" + "=" * 25 + ">" + " " * 24 + "]  50B/100B"
    assert progress.bar(100, 100) == "[" + "=" * 50 + "]  100B/100B"
    assert progress.bar(5, 0).strip() == "5B"


def test_compression_is_gzip_and_the_same_each_time() -> None:
    data = bytes(range(256)) * 10_000

    def compress() -> bytes:
        one = Compressor()
        return b"".join(
            [
                *(one.compress(data[n : n + 100_000]) for n in range(0, len(data), 100_000)),
                one.flush(),
            ]
        )

    assert gzip.decompress(compress()) == data
    assert compress() == compress()
    assert gzip.decompress(Compressor().flush() or b"") == b""


# --- the images that need no network --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_program_is_small_and_one_segment(architecture: str) -> None:
    program = elf.program(elf.GREETING, architecture)
    assert program[:4] == b"\x7fELF"
    assert len(program) < 2048
    assert program == elf.program(elf.GREETING, architecture)


def test_the_program_greets(tmp_path: Path) -> None:
    machine = platform.host_platform().architecture
    if machine not in elf.MACHINES:
        pytest.skip(f"no program for {machine}")
    path = tmp_path / "hello"
    path.write_bytes(elf.program(elf.GREETING, machine))
    path.chmod(0o755)
    said = subprocess.run([path], capture_output=True, text=True, check=True).stdout
    assert "Hello from Sampan!" in said
    assert f"  host name       {host.node()}\n" in said
    seccomp = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Seccomp:")
    )
    assert f"  seccomp mode    {seccomp}  " in said
    bounding = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapBnd:")
    )
    assert f"  capabilities    {int(bounding, 16).bit_count()}  " in said


def test_hello_is_made_when_asked_for(catalog: Catalog) -> None:
    assert builtin.ensure(catalog, "busybox") is None
    assert builtin.ensure(catalog, "hello:v2") is None
    assert builtin.ensure(catalog, "quay.io/hello") is None
    image = builtin.ensure(catalog, "hello")
    assert image is not None
    assert image.repo_tags == ("hello:latest",)
    assert image.config.cmd == ("/hello",)
    again = builtin.ensure(catalog, "docker.io/library/hello:latest")
    assert again is not None
    assert again.id == image.id
    ensure(catalog, image)


def test_host_is_empty_and_only_ours_is_filled(catalog: Catalog, tmp_path: Path) -> None:
    image = builtin.ensure(catalog, "host")
    assert image is not None
    assert builtin.is_host(catalog, image)
    hello = builtin.ensure(catalog, "hello")
    assert hello is not None
    assert builtin.host_mounts(catalog, hello, str(tmp_path / "c")) == []


def test_an_image_that_claims_to_be_the_host_is_not(catalog: Catalog, tmp_path: Path) -> None:
    import io

    from sampan.images.archive import load
    from tests.support.oci import docker_archive, simple_image

    builtin.ensure(catalog, "host")
    for claim in ("", "true", "0" * 32):
        liar = simple_image(claim, config={"Labels": {builtin.HOST_LABEL: claim}})
        load(catalog, io.BytesIO(docker_archive((liar, ["liar:v1"]))))
        image = catalog.resolve("liar:v1")
        assert not builtin.is_host(catalog, image)
        assert builtin.host_mounts(catalog, image, str(tmp_path / "c")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are devices")
def test_what_others_may_not_read_is_hidden(tmp_path: Path) -> None:
    etc, mask = tmp_path / "etc", tmp_path / "mask"
    for name, mode in {"shadow": 0o640, "passwd": 0o644, "deep/key": 0o600, "deep/open": 0o644, "ssh/config": 0o644,
                       "closed/file": 0o644}.items():  # fmt: skip
        path = etc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.chmod(mode)
    (etc / "closed").chmod(0o700)
    (etc / "link").symlink_to("shadow")
    assert builtin.hide_secrets(str(etc), str(mask)) == 4
    hidden = {str(p.relative_to(mask)) for p in mask.rglob("*") if stat.S_ISCHR(p.lstat().st_mode)}
    assert hidden == {"shadow", "deep/key", "ssh", "closed"}


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu sse sse2", ""),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", "v2"),
        ("cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave", "v3"),
        ("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave avx512f avx512bw avx512cd avx512dq avx512vl", ""),
    ],
)  # fmt: skip
def test_the_level_of_an_amd64(flags: str, level: str) -> None:
    assert platform.amd64_level(frozenset(flags.split())) == level
