"""docs/openapi.json is what the routes say."""

from __future__ import annotations

import json
from pathlib import Path

from sampan.api.openapi import all_routes, asked, document

ROUTES = all_routes()
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_document_is_up_to_date() -> None:
    assert json.loads(DOCUMENT.read_text()) == json.loads(json.dumps(document(ROUTES))), (
        "run: python -m sampan.api.openapi > docs/openapi.json"
    )


def test_parameters_are_found_through_helpers() -> None:
    by_path = {(route.method, route.pattern): asked(route) for route in ROUTES}
    assert set(by_path["POST", "/containers/{id}/stop"].parameters) == {"t", "signal"}
    assert by_path["POST", "/containers/create"].body == "CreateRequest"
    assert by_path["POST", "/images/load"].is_stream
    assert {"fromImage", "fromSrc", "changes"} <= set(by_path["POST", "/images/create"].parameters)
    assert {"dockerfile", "buildargs", "t"} <= set(by_path["POST", "/build"].parameters)
    assert {"stream", "detachKeys"} <= set(by_path["POST", "/containers/{id}/attach"].parameters)


def test_no_route_is_shadowed_by_an_earlier_one() -> None:
    seen: dict[tuple[str, str], str] = {}
    for route in ROUTES:
        example = route.pattern.replace("{id}", "x").replace("{checkpoint}", "y")
        for other in ROUTES:
            if other is route:
                break
            if other.method == route.method and "{" in other.pattern and "{" in route.pattern:
                assert not other.regex().fullmatch(example), (
                    f"{route.pattern} is hidden by {other.pattern}"
                )
        assert (route.method, route.pattern) not in seen
        seen[route.method, route.pattern] = route.pattern
