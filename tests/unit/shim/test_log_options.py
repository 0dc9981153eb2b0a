"""What `--log-opt` means, in Docker's words where it refuses."""

from __future__ import annotations

import pytest

from sampan.errors import InvalidArgument
from sampan.shim.logs import rotation, validate


def test_a_container_that_asks_for_nothing_gets_a_bounded_compressed_log() -> None:
    limits = rotation("json-file", {})
    assert (limits.max_size, limits.max_files, limits.compress) == (10_000_000, 5, True)


def test_a_tag_alone_does_not_change_the_rotation() -> None:
    assert rotation("json-file", {"tag": "x"}).max_files == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max-size": "10m"}, (10_000_000, 1, False)),
        ({"max-size": "1k", "max-file": "3"}, (1000, 3, False)),
        ({"max-size": "1.5m", "max-file": "3", "compress": "true"}, (1_500_000, 3, True)),
        ({"max-size": "-1"}, (-1, 1, False)),
        ({"max-size": "512 kB"}, (512_000, 1, False)),
    ],
)
def test_explicit_sizes_are_taken_as_docker_takes_them(
    options: dict[str, str], expected: tuple[int, int, bool]
) -> None:
    limits = rotation("json-file", options)
    assert (limits.max_size, limits.max_files, limits.compress) == expected


def test_the_local_driver_has_dockers_defaults() -> None:
    limits = rotation("local", {})
    assert (limits.max_size, limits.max_files, limits.compress) == (20_000_000, 5, True)


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("json-file", {"max-size": "ten"}, "invalid size: 'ten'"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-size": "1_0m"}, "invalid size"),
        ("json-file", {"max-size": "٣m"}, "invalid size"),
        ("json-file", {"max-size": "1m", "max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("json-file", {"compress": "maybe"}, 'strconv.ParseBool: parsing "maybe": invalid syntax'),
        ("json-file", {"colour": "red"}, "unknown log opt 'colour' for json-file log driver"),
        ("json-file", {"mode": "eventually"}, "logger: logging mode not supported: eventually"),
        ("json-file", {"max-buffer-size": "1m"}, "max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("none", {"max-size": "1m"}, "unknown log opt 'max-size' for none log driver"),
        ("syslogg", {}, "logger: no log driver named 'syslogg' is registered"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate(driver, options)
    assert words in caught.value.message
