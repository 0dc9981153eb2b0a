"""Which log configurations a container may be created with."""

from __future__ import annotations

import pytest

from sampan.engine.log_checks import check_log
from sampan.errors import InvalidArgument

AT_START = "failed to create task for container: failed to initialize logging driver: "


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("json-file", {}),
        ("json-file", {"max-size": "10m", "max-file": "3", "compress": "true", "tag": "x"}),
        ("json-file", {"max-size": "-1"}),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "1m"}),
        ("local", {"max-file": "1", "compress": "false"}),
        ("local", {"max-size": "1m"}),
        ("none", {"anything": "goes"}),
    ],
)
def test_good_ones_pass(driver: str, options: dict[str, str]) -> None:
    check_log(driver, options)


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("nosuch", {}, 'error looking up logging plugin nosuch: plugin "nosuch" not found'),
        ("json-file", {"nosuch": "1"}, "unknown log opt 'nosuch' for json-file log driver"),
        ("json-file", {"mode": "x"}, "logger: logging mode not supported: x"),
        ("json-file", {"max-buffer-size": "1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("json-file", {"max-file": "x"}, AT_START + 'strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"max-file": "0"}, AT_START + "max-file cannot be less than 1"),
        ("json-file", {"max-file": "-1"}, AT_START + "max-file cannot be less than 1"),
        ("json-file", {"compress": "x"}, AT_START + 'strconv.ParseBool: parsing "x": invalid syntax'),
        ("json-file", {"compress": "true", "max-file": "1"}, AT_START + "compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("local", {"max-file": "x"}, AT_START + 'invalid value for max-file: x: strconv.Atoi: parsing "x": invalid syntax'),
        ("local", {"max-file": "1"}, AT_START + "compression cannot be enabled when max file count is 1"),
        ("local", {"compress": "x"}, AT_START + 'error reading compress log option: strconv.ParseBool: parsing "x": invalid syntax'),
    ],
)  # fmt: skip
def test_bad_ones_are_refused_in_docker_s_words(
    driver: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_log(driver, options)
    assert caught.value.message == words
