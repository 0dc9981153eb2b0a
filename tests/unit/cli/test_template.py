"""Go templates: the language, and how Go's types print."""

from __future__ import annotations

import pytest

from sampan.cli.govalues import Cell, Row, TemplateError, duration, go_float
from sampan.cli.templating import Template

CONTAINER = {
    "Id": "abc", "Name": "/web", "State": {"Running": True, "Status": "running"},
    "Config": {"Labels": {"a": "b", "c": "d"}, "Env": ["A=1", "B=2"], "Healthcheck": {"Interval": 1500000000}},
    "HostConfig": {"Memory": 5, "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
}  # fmt: skip


def render(text: str) -> str:
    return Template(text).render(Cell(CONTAINER, "ContainerInspect"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.ID}} {{.Name}}", "abc /web"),
        ("{{json .State.Running}}", "true"),
        ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}};{{end}}", "0=A=1;1=B=2;"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}{{$v}} {{end}}", "ab cd "),
        ("{{.Config.Labels}}", "map[a:b c:d]"),
        ('{{index .Config.Labels "a"}}{{index .Config.Labels "zz"}}', "b"),
        ('{{(index (index .HostConfig.PortBindings "80/tcp") 0).HostPort}}', "8080"),
        ('{{if eq .State.Status "running"}}yes{{else if true}}maybe{{else}}no{{end}}', "yes"),
        ("{{if .State.Paused}}p{{else if .State.Running}}r{{end}}", "r"),
        ("{{with .Config}}{{len .Env}}{{end}}", "2"),
        ("{{with .State.Health}}x{{else}}none{{end}}", "none"),
        ("{{.State.Health}} {{.HostConfig.Binds}} {{.HostConfig.LogConfig}}", "<nil> [] { map[]}"),
        ("{{.HostConfig.PortBindings}}", "map[80/tcp:[{ 8080}]]"),
        ('{{printf "%-5s|%03d|%q|%v" .ID 7 "x" .State.Running}}', 'abc  |007|"x"|true'),
        ('{{join .Config.Env ","}} {{upper .ID}} {{title "ab cd"}}', "A=1,B=2 ABC Ab Cd"),
        ('{{split "a,b" ","}} {{truncate "hello" 2}} {{pad "x" 1 2}}|', "[a b] he  x  |"),
        ("{{- /* comment */ -}}  x", "x"),
        ("a {{- 1 -}} b", "a1b"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{range .Config.Env}}{{if eq . \"B=2\"}}{{break}}{{end}}{{.}}{{end}}", "A=1"),
        ("{{range .HostConfig.Binds}}x{{else}}empty{{end}}", "empty"),
        ('{{define "t"}}<{{.}}>{{end}}{{template "t" .ID}}', "<abc>"),
        ("{{and true .ID}} {{or 0 .Name}} {{not false}}", "abc /web true"),
        ("{{lt 1 2}} {{ge 2 2}} {{ne 1 2}} {{eq 1 2 1}}", "true true true true"),
        ("{{.ID | printf \"%s-%s\" \"x\"}}", "x-abc"),
        ("{{println 1 \"a\"}}", "1 a\n"),
        ("{{slice .ID 1 2}}{{len .ID}}", "b3"),
        ("{{'a'}} {{0x10}} {{`raw\\n`}}", "97 16 raw\\n"),
        ("{{.Config.Healthcheck.Interval}}", "1.5s"),
        ("{{html \"<a>\"}} {{urlquery \"a b\"}}", "&lt;a&gt; a+b"),
    ],
)  # fmt: skip
def test_templates_render_as_go_does(text: str, shown: str) -> None:
    assert render(text) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{{.Foo}}",
            'template: :1:2: executing "" at <.Foo>: can\'t evaluate field Foo in type ContainerInspect',
        ),
        (
            "{{.State.Foo}}",
            'template: :1:8: executing "" at <.State.Foo>: can\'t evaluate field Foo in type *State',
        ),
        ("{{.ID", "template: :1: unclosed action"),
        ("{{nosuch}}", 'template: :1: function "nosuch" not defined'),
        ("{{}}", "template: :1: missing value for command"),
        ("{{if .ID}}x", "template: :1: unexpected EOF"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ('{{"a', "template: :1: unterminated quoted string"),
        ("\n{{range 1.5}}{{end}}", "range can't iterate over"),
        ("{{index .Config.Env 9}}", "error calling index: index out of range: 9"),
        ("{{len 3}}", "error calling len: len of type int"),
        ("{{break}}", "outside {{range}}"),
        ('{{template "zz"}}', 'template "zz" not defined'),
        (
            '{{define "r"}}{{template "r"}}{{end}}{{template "r"}}',
            "exceeded maximum template depth",
        ),
    ],
)
def test_wrong_templates_are_refused_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(text)
    assert words in str(caught.value)


def test_raw_json_prints_no_value_for_what_is_missing_and_refuses_it_when_strict() -> None:
    value = Cell({"a": None})
    assert Template("{{.a}} {{.b}}").render(value) == "<no value> <no value>"
    with pytest.raises(TemplateError, match='map has no entry for key "b"'):
        Template("{{.b}}").render(value, strict=True)


def test_json_of_a_struct_has_its_order_and_zero_values() -> None:
    shown = Template("{{json .LogConfig}}").render(Cell({"LogConfig": {"Type": "x"}}, "HostConfig"))
    assert shown == '{"Type":"x","Config":null}'


def test_json_of_a_row_is_sorted_and_escapes_as_gos_encoder() -> None:
    row = Row("r", {"B": lambda: "a->b", "A": lambda: True})
    assert Template("{{json .}}").render(row) == '{"A":true,"B":"a-\\u003eb"}'


def test_durations_and_floats_print_as_go_prints_them() -> None:
    assert [duration(n) for n in (0, 1500, 90_500_000_000, 3_600_000_000_000)] == [
        "0s",
        "1.5µs",
        "1m30.5s",
        "1h0m0s",
    ]
    assert [go_float(n) for n in (1.0, 1.5, 1e21, 1e-7)] == ["1", "1.5", "1e+21", "1e-07"]
