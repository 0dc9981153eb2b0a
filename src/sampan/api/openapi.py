"""The API as an OpenAPI document, read off the routes and the source of their endpoints.

`python -m sampan.api.openapi` prints it; docs/openapi.json is that output, held equal by a test, and what
the fuzz test generates requests from. Nothing is declared twice: a parameter is in the document because an
endpoint (or a helper that it passes its call to) asks for it with `call.text("name")`, `call.flag(...)`,
`call.body(Type)` and so on.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, cast

import msgspec

from sampan import __version__
from sampan.api.router import NEWEST, OLDEST, Route, dotted

Parts = dict[str, Any]

# How a query method of Call reads its parameter.
_SCHEMAS: dict[str, Parts] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "number": {"type": "integer", "format": "int64"},
    "size": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    "many": {"type": "array", "items": {"type": "string"}},
}
_REQUIRED = frozenset({"size"})
_FILTERS: Parts = {
    "name": "filters",
    "in": "query",
    "description": 'JSON: {"key": ["value"]} or {"key": {"value": true}}',
    "schema": {"type": "string"},
}
_AUTH: Parts = {"name": "X-Registry-Auth", "in": "header", "schema": {"type": "string"}}


class Asked(msgspec.Struct):
    """What an endpoint reads from its request."""

    parameters: dict[str, Parts] = {}
    body: str = ""  # name of the body's type
    is_stream: bool = False  # the body is a tar


@cache
def _functions(module: ModuleType) -> dict[str, ast.AsyncFunctionDef | ast.FunctionDef]:
    tree = ast.parse(inspect.getsource(module))
    kinds = ast.AsyncFunctionDef | ast.FunctionDef
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


def asked(route: Route) -> Asked:
    """Read off the endpoint's source, and that of the helpers in its module."""
    module = sys.modules[route.endpoint.__module__]
    found = Asked()
    seen: set[str] = set()
    pending = [getattr(route.endpoint, "__name__", "")]
    while pending:
        name = pending.pop()
        function = _functions(module).get(name)
        if function is None or name in seen:
            continue
        seen.add(name)
        for node in _calls(function):
            pending += _note(node, found)
    return found


def _calls(function: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Call))


def _note(node: ast.Call, found: Asked) -> list[str]:
    """Take down what one call asks for; helpers that it may ask through are returned."""
    target = node.func
    if isinstance(target, ast.Name):
        if target.id == "receive":
            found.is_stream = True
        if len(node.args) > 1 and isinstance(node.args[0], ast.Name) and node.args[0].id == "call":
            _note_method("text", node.args[1:], found)  # `_json(call, "labels")`
        return [target.id]
    if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)):
        return []
    if target.value.id == "call":
        _note_method(target.attr, node.args, found)
    return []


def _note_method(method: str, arguments: list[ast.expr], found: Asked) -> None:
    first = arguments[0] if arguments else None
    if method == "filters":
        found.parameters["filters"] = _FILTERS
    elif method == "auth":
        found.parameters["X-Registry-Auth"] = _AUTH
    elif method == "body" and isinstance(first, ast.Name):
        found.body = first.id
    elif method in _SCHEMAS and isinstance(first, ast.Constant) and isinstance(first.value, str):
        name = first.value
        found.parameters[name] = {"name": name, "in": "query", "schema": _SCHEMAS[method]}
        if method in _REQUIRED:
            found.parameters[name] = {**found.parameters[name], "required": True}


def document(routes: tuple[Route, ...]) -> Parts:
    """The whole API."""
    paths: dict[str, Parts] = {}
    bodies: dict[str, type] = {}
    for route in routes:
        asks = asked(route)
        if asks.body:
            bodies[asks.body] = getattr(sys.modules[route.endpoint.__module__], asks.body)
        paths.setdefault(route.pattern, {})[route.method.lower()] = _operation(route, asks)
    _, components = msgspec.json.schema_components(
        list(bodies.values()), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sampan's Engine API",
            "version": dotted(NEWEST),
            "description": f"Sampan {__version__}; every path also under /v{dotted(OLDEST)} to /v{dotted(NEWEST)}.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": components | {"Error": _ERROR}},
    }


_ERROR: Parts = {
    "type": "object",
    "required": ["message"],
    "properties": {"message": {"type": "string"}},
}
_REFUSED: Parts = {
    "description": "refused, with the reason",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def _operation(route: Route, asks: Asked) -> Parts:
    name = getattr(route.endpoint, "__name__", "")
    operation: Parts = {
        "operationId": f"{name}_{route.method.lower()}_{route.first_word or 'root'}".strip("_"),
        "summary": (inspect.getdoc(route.endpoint) or name.replace("_", " ")).partition("\n")[0],
        "parameters": [*_path_parameters(route), *asks.parameters.values()],
        "responses": {"2XX": {"description": "done"}, "4XX": _REFUSED, "5XX": _REFUSED},
    }
    if asks.body:
        schema = {"$ref": f"#/components/schemas/{asks.body}"}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    elif asks.is_stream:
        schema = {"type": "string", "format": "binary"}
        operation["requestBody"] = {"content": {"application/x-tar": {"schema": schema}}}
    return operation


def _path_parameters(route: Route) -> list[Parts]:
    names = [part.partition("}")[0] for part in route.pattern.split("{")[1:]]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


def all_routes() -> tuple[Route, ...]:
    """Those of the server, and the builder's, for which no builder is needed to be described."""
    from sampan.api import server

    return (*server.ROUTES, *server.builder_routes(cast("Any", None)))


if __name__ == "__main__":
    print(json.dumps(document(all_routes()), indent=1))
