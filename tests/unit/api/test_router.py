"""Paths, versions, statuses and queries, with endpoints of the test's own."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, cast

import pytest

from sampan import errors
from sampan.api.call import Call, header_json, integer, parse_filters
from sampan.api.http import Connection, HttpServer
from sampan.api.progress import Report, progress_stream
from sampan.api.router import Router, delete, get, parse_version, post
from sampan.spec.engine.container import ExecConfig


async def show(call: Call) -> None:
    await call.json({"path": call.path, "version": list(call.version)})


async def fail(call: Call) -> None:
    kind = getattr(errors, call.text("kind"), None)
    raise kind("told") if kind else RuntimeError("secret detail")


async def take(call: Call) -> None:
    await call.json((await call.body(ExecConfig)).cmd)


async def query(call: Call) -> None:
    await call.json(
        [call.flag("f"), call.flag("f", True), call.number("n"), call.text("t"), call.many("m")]
    )


async def progress(call: Call) -> None:
    async def verb(report: Report) -> None:
        for n in range(int(call.text("n", "0"))):
            report({"status": f"step {n}"})
            await asyncio.sleep(0)
        if call.flag("fail"):
            raise errors.NotFound("gone")

    await progress_stream(call, verb)


ROUTES = (
    get("/fail", fail),
    get("/query", query),
    post("/take", take),
    post("/progress", progress),
    get("/images/{id}/json", show),
    get("/images/{id}", show),
    delete("/images/{id}", show),
)


def ask(
    target: str, method: str = "GET", *headers: str, body: bytes = b"", check_origin: bool = False
) -> tuple[int, str, Any]:
    async def talk() -> bytes:
        server = HttpServer(Router(cast("Any", None), ROUTES), ())
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Connection(server, check_origin=check_origin), theirs
        )
        reader, writer = await asyncio.open_connection(sock=ours)
        lines = [f"{method} {target} HTTP/1.1", *headers]
        if not any(h.startswith("Host:") for h in headers):
            lines.append("Host: localhost:2375")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    head, _, payload = asyncio.run(talk()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    content_type = next((x[14:] for x in lines if x.startswith("Content-Type: ")), "")
    try:
        parsed = json.loads(payload)
    except ValueError:
        parsed = payload
    return int(lines[0].split()[1]), content_type, parsed


def test_names_may_hold_slashes_and_escapes() -> None:
    assert ask("/v1.44/images/a/b:c/json")[2] == {"path": {"id": "a/b:c"}, "version": [1, 44]}
    assert ask("/images/a%2Fb/json")[2] == {"path": {"id": "a/b"}, "version": [1, 51]}
    assert ask("/images/%2e%2e/json")[2]["path"] == {"id": ".."}


@pytest.mark.parametrize(
    "target", ["/", "/nope", "/v1.41/nope", "/fail/", "/images", "/images//json/x/", "/v1.41", "*"]
)
def test_unknown_paths(target: str) -> None:
    status, kind, body = ask(target, "POST")
    assert (status, kind, body) == (404, "application/json", {"message": "page not found"})


def test_wrong_method_is_a_wrong_path() -> None:
    assert ask("/take")[0] == 404


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            "/v1.99/images/x",
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "/v1.100/images/x",
            "client version 1.100 is too new. Maximum supported API version is 1.51",
        ),
        (
            "/v1.20/images/x",
            "client version 1.20 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
    ],
)
def test_versions_out_of_range(target: str, says: str) -> None:
    status, _, body = ask(target)
    assert status == 400
    text = body["message"] if isinstance(body, dict) else body.decode().strip()
    assert text == says


def test_odd_versions_do_no_harm() -> None:
    assert parse_version("1.41") == (1, 41)
    assert parse_version("...") == (0, 0)
    assert parse_version("99999999.1") == (0, 1)
    assert ask("/v..../images/x")[0] == 400


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("InvalidArgument", 400), ("NotFound", 404), ("Conflict", 409), ("PermissionDenied", 403),
        ("Unauthenticated", 401), ("Unavailable", 503), ("Unsupported", 501), ("Internal", 500),
    ],
)  # fmt: skip
def test_kinds_become_statuses(kind: str, status: int) -> None:
    assert ask(f"/fail?kind={kind}") == (status, "application/json", {"message": "told"})


def test_not_modified_has_no_body() -> None:
    assert ask("/fail?kind=NotModified") == (304, "", b"")


def test_a_defect_is_told_without_a_traceback() -> None:
    status, _, body = ask("/fail?kind=none")
    assert status == 500
    assert body["message"] == "internal error: RuntimeError: secret detail"


def test_every_kind_of_failure_has_a_status() -> None:
    from sampan.api.router import STATUS

    kinds = {
        k
        for k in vars(errors).values()
        if isinstance(k, type) and issubclass(k, errors.SampanError)
    }
    assert kinds - {kind for kind, _ in STATUS} <= {errors.Cancelled}


def test_bodies() -> None:
    json_type = "Content-Type: application/json"
    assert ask("/take", "POST", json_type, body=b'{"cmd":["a"]}')[2] == ["a"]
    assert (
        ask(
            "/take", "POST", "Content-Type: application/json; charset=utf-8", body=b'{"cmd":["a"]}'
        )[0]
        == 200
    )
    assert ask("/take", "POST")[2] is None
    status, _, body = ask("/take", "POST", "Content-Type: text/plain", body=b"{}")
    assert status == 400
    assert (
        body["message"]
        == "unsupported Content-Type header (text/plain): must be 'application/json'"
    )
    assert (
        ask("/take", "POST", json_type, body=b"{} x")[2]["message"]
        == "unexpected content after JSON"
    )


def test_queries() -> None:
    assert ask("/query?f=0&n=-5&t=a+b%21&m=1&m=2")[2] == [False, False, -5, "a b!", ["1", "2"]]
    assert ask("/query?f=No")[2][:2] == [False, False]
    assert ask("/query?f=yes")[2][:2] == [True, True]
    assert ask("/query")[2] == [False, True, None, "", []]
    assert ask("/query?n=1_0")[0] == 400
    assert ask("/query?n=%D9%A3")[0] == 400
    assert ask("/query?n=99999999999999999999")[0] == 400
    assert ask("/query?t=%zz")[0] == 400
    assert ask("/query?a;b")[0] == 400


def test_filters_in_both_spellings() -> None:
    assert parse_filters('{"label":{"a=b":true,"c":false}}') == {"label": ["a=b"]}
    assert parse_filters('{"label":["a=b"],"name":null}') == {"label": ["a=b"], "name": []}
    assert parse_filters("") == {}
    for wrong in (
        "[]",
        "{",
        '{"a":"b"}',
        '{"a":[1]}',
        '{"a":{"b":1}}',
        "[" * 100000,
        '{"a":' * 5000,
    ):
        with pytest.raises(errors.InvalidArgument):
            parse_filters(wrong)


def test_registry_headers() -> None:
    import base64

    text = json.dumps({"username": "u?>", "password": "p"}).encode()
    for coded in (
        base64.urlsafe_b64encode(text),
        base64.b64encode(text),
        base64.urlsafe_b64encode(text).rstrip(b"="),
    ):
        assert header_json(coded.decode()) == {"username": "u?>", "password": "p"}
    assert header_json("%%%") is None
    assert header_json("é") is None


def test_integers_are_go_s() -> None:
    assert integer("-5", "t") == -5
    for wrong in ("", "1_0", " 7", "0x1", "1.0", "٣", "9" * 30, "9223372036854775808"):
        with pytest.raises(errors.InvalidArgument):
            integer(wrong, "t")


def test_progress() -> None:
    status, kind, body = ask("/progress?n=2", "POST")
    assert (status, kind) == (200, "application/json")
    assert b'{"status":"step 0"}\r\n' in body and b'{"status":"step 1"}\r\n' in body


def test_progress_that_fails_early_has_a_status_and_late_an_error_line() -> None:
    assert ask("/progress?n=0&fail=1", "POST")[::2] == (404, {"message": "gone"})
    status, _, body = ask("/progress?n=1&fail=1", "POST")
    assert status == 200
    assert b'{"errorDetail":{"message":"gone"},"error":"gone"}\r\n' in body


def test_pages_in_a_browser_cannot_drive_a_tcp_listener() -> None:
    assert ask("/images/x", check_origin=True)[0] == 200
    assert ask("/images/x", "GET", "Host: 127.0.0.1:2375", check_origin=True)[0] == 200
    assert ask("/images/x", "GET", "Host: [::1]:2375", check_origin=True)[0] == 200
    assert ask("/images/x", "GET", "Host: evil.example:2375", check_origin=True)[0] == 403
    assert ask("/images/x", "DELETE", "Origin: http://evil.example", check_origin=True)[0] == 403
