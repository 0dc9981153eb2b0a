"""The graph: scopes of ARG, stages, configuration and history of the image, and what is refused."""

from __future__ import annotations

import pytest

from sampan.build import graph
from sampan.build.instructions import program_of
from sampan.build.parser import DockerfileError, parse
from sampan.build.plan import plan, triggers_of
from sampan.build.stages import Base, ImageName, Request, Stages, global_variables
from sampan.errors import InvalidArgument, PermissionDenied
from sampan.images.platform import parse_platform
from sampan.spec.image import encode, parse_image_document

AMD64 = parse_platform("linux/amd64")


def base(**config: object) -> Base:
    body = {
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]},
        "history": [{"created_by": "base"}],
    }  # fmt: skip
    document = parse_image_document(encode(body))
    return Base(image_id=document.id, reference="base:latest", document=document)


def outcome(text: str, image: Base | None = None, **request: object) -> graph.Outcome:
    program = program_of(parse(text.encode()))
    asked = Request(platform=AMD64, build_platform=AMD64, **request)  # type: ignore[arg-type]
    variables = global_variables(program, asked)
    stages = Stages(program, asked, variables, parse_platform)
    found = image or base(Env=["PATH=/bin"])
    bases = {ImageName(n, "linux/amd64"): found for n in ("base", "base:1", "other")}
    for name in stages.reachable(triggers_of(stages, bases))[1]:
        assert name in bases, name
    return plan(stages, asked, variables, bases, escape="\\")


def created_by(made: graph.Outcome) -> list[str]:
    return [entry.created_by for entry in made.history[1:]]


def test_global_arguments_serve_from_and_a_stage_must_declare_them_again() -> None:
    made = outcome("ARG V=1\nFROM base:$V\nRUN echo $V\nARG V\nENV W=${V}2", args={})
    assert isinstance(made.operation, graph.Run)
    assert "V=1" not in made.operation.env
    assert made.config.env == ("PATH=/bin", "W=12")
    assert created_by(made) == ["RUN /bin/sh -c echo $V # buildkit", "ARG V", "ENV W=12"]


def test_arguments_of_the_request_beat_defaults_and_env_beats_them() -> None:
    made = outcome("FROM base\nARG A=x\nENV A=y\nARG A=z\nLABEL l=$A", args={"A": "given"})
    assert made.config.labels == {"l": "given"}
    assert outcome("FROM base\nARG A=x\nENV A=y\nLABEL l=$A").config.labels == {"l": "y"}


def test_history_of_run_shows_the_arguments_it_saw() -> None:
    made = outcome("FROM base\nARG A=1\nARG B\nRUN x")
    assert created_by(made)[-1] == "RUN |2 A=1 B= /bin/sh -c x # buildkit"


def test_proxies_need_no_declaration_and_leave_no_trace() -> None:
    made = outcome("FROM base\nRUN x", args={"http_proxy": "http://u:p@host"})
    assert isinstance(made.operation, graph.Run)
    assert made.operation.proxy == ("HTTP_PROXY=http://u:p@host", "http_proxy=http://u:p@host")
    assert not any("host" in text for text in (*made.operation.env, *created_by(made)))
    assert b"u:p@host" not in graph.definition(made.operation)


def test_only_needed_stages_are_in_the_graph() -> None:
    text = "FROM base AS a\nRUN one\nFROM other AS b\nRUN two\nFROM scratch\nCOPY --from=a /x /y\n"
    made = outcome(text)
    assert [line.source for line in made.lines if line.is_from] == [
        "FROM base AS a",
        "FROM scratch",
    ]
    copy = made.operation
    assert isinstance(copy, graph.Copy)
    source = copy.items[0].source
    assert isinstance(source, graph.StageSource)
    assert isinstance(source.operation, graph.Run)
    assert source.operation.args[-1] == "one"


def test_target_names_the_last_stage() -> None:
    assert outcome("FROM base AS a\nENV A=1\nFROM other", target="a").config.env == (
        "PATH=/bin",
        "A=1",
    )
    with pytest.raises(
        InvalidArgument, match=r'target stage "buidl" could not be found \(did you mean build\?\)'
    ):
        outcome("FROM base AS build", target="buidl")


def test_a_stage_continues_another_with_its_configuration() -> None:
    made = outcome("FROM base AS a\nENV A=1\nWORKDIR /w\nUSER u\nFROM a\nWORKDIR v\nRUN x")
    run = made.operation
    assert isinstance(run, graph.Run)
    assert (run.cwd, run.user) == ("/w/v", "u")
    assert "A=1" in run.env


def test_triggers_of_the_base_run_first_and_are_not_inherited() -> None:
    made = outcome(
        "FROM base\nENV A=2", base(Env=["PATH=/bin"], OnBuild=["ENV A=1", "RUN make $A"])
    )
    assert created_by(made) == ["ENV A=1", "RUN /bin/sh -c make $A # buildkit", "ENV A=2"]
    assert made.config.on_build is None


def test_entrypoint_forgets_the_command_of_the_base() -> None:
    with_command = base(Cmd=["a"])
    assert outcome('FROM base\nENTRYPOINT ["e"]', with_command).config.cmd is None
    assert outcome('FROM base\nCMD ["c"]\nENTRYPOINT ["e"]', with_command).config.cmd == ("c",)


def test_equal_operations_are_equal_whatever_they_are_called() -> None:
    made = outcome(
        "FROM base AS a\nRUN x\nFROM base AS b\nRUN x\nFROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    second = made.operation
    assert isinstance(second, graph.Copy)
    assert isinstance(second.parent, graph.Copy)
    assert second.items[0].source == second.parent.items[0].source
    assert len({second.items[0].source, second.parent.items[0].source}) == 1


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("FROM base AS a\nCOPY --from=a x y", "circular dependency detected on stage: a", 1),
        (
            "FROM base AS a\nCOPY --from=b x y\nFROM a AS b",
            "circular|needs to be defined before",
            2,
        ),
        ("FROM base\nCOPY --from=7 x y", "invalid stage index 7", 2),
        ("FROM base\nCOPY --from=$A x y", "variable expansion is not supported for --from", 2),
        ("FROM base\nCOPY --chmod=99 x y", "invalid chmod parameter", 2),
        ("FROM base\nCOPY http://h/x y", "source can't be a URL for COPY", 2),
        ("FROM base\nADD --checksum=sha256:1 a b", "checksum requires HTTP", 2),
        ("FROM base\nEXPOSE 70000", "Invalid containerPort", 2),
        ("FROM base\nEXPOSE 80/tpc", "Invalid proto", 2),
        ("FROM base\nSTOPSIGNAL no!", "invalid signal", 2),
        ("FROM base\nRUN --mount=type=cache,target=/ x", "invalid mount target", 2),
        ("FROM $NO", "should not be blank", 1),
        ("FROM base\nENV A=${B?gone}", "gone", 2),
    ],
)
def test_refusals_say_where(text: str, message: str, line: int) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        outcome(text)
    assert caught.value.line in (line, 1)


def test_configuration_of_an_image() -> None:
    made = outcome(
        'FROM base\nEXPOSE 80 53/UDP\nVOLUME ["/a", "/b c"]\nSTOPSIGNAL SIGTERM\nSHELL ["/bin/bash", "-c"]\n'
        "CMD echo hi\nHEALTHCHECK --interval=5s CMD true\nLABEL a=b\n",
        labels={"c": "d"},
    )
    config = made.config
    assert config.exposed_ports == {"53/udp": {}, "80/tcp": {}}
    assert config.cmd == ("/bin/bash", "-c", "echo hi")
    assert config.labels == {"a": "b", "c": "d"}
    assert config.healthcheck is not None
    assert config.healthcheck.interval == 5_000_000_000
    assert (
        created_by(made)[:2] == ["EXPOSE [53/udp 80/tcp]", 'VOLUME [/a "/b c"]'] or config.volumes
    )


@pytest.mark.parametrize(
    ("flag", "name"), [("network=host", "network.host"), ("security=insecure", "security.insecure")]
)
def test_entitlements_must_be_allowed(flag: str, name: str) -> None:
    with pytest.raises(PermissionDenied, match=f"{name} is not allowed"):
        outcome(f"FROM base\nRUN --{flag} x")
    assert isinstance(
        outcome(f"FROM base\nRUN --{flag} x", allow=frozenset({name})).operation, graph.Run
    )
