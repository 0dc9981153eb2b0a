"""Whether a container may be created with a log configuration; refusals in Docker's words. Pure.

Docker knows a driver and its options at create, and reads their values only at the start: those refusals carry the
words of a failed start. We refuse all of it at create, so that no container is left that cannot start.
"""

from __future__ import annotations

from collections.abc import Mapping

from sampan.errors import InvalidArgument
from sampan.units import parse_bool, parse_int, parse_size

DRIVERS = ("json-file", "local", "none")
_COMMON = "max-size max-file compress labels labels-regex env env-regex tag mode max-buffer-size"
_OPTIONS = {
    "json-file": frozenset(_COMMON.split()),
    "local": frozenset(_COMMON.split()),
    "none": frozenset[str](),
}
_AT_START = "failed to create task for container: failed to initialize logging driver: "


def check_log(driver: str, options: Mapping[str, str]) -> None:
    """Raises InvalidArgument for an unknown driver or option, and for a value that cannot be read."""
    if driver not in DRIVERS:
        raise InvalidArgument(
            f'error looking up logging plugin {driver}: plugin "{driver}" not found'
        )
    if driver == "none":
        return
    for key in sorted(options):
        if key not in _OPTIONS[driver]:
            raise InvalidArgument(f"unknown log opt '{key}' for {driver} log driver")
    _check_delivery(options)
    fault = _local_fault(options) if driver == "local" else _json_file_fault(options)
    if fault:
        raise InvalidArgument(f"{_AT_START}{fault}")


def _check_delivery(options: Mapping[str, str]) -> None:
    mode = options.get("mode", "blocking")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )
        parse_size(options["max-buffer-size"])


def _json_file_fault(options: Mapping[str, str]) -> str:
    if fault := _size_fault(options):
        return fault
    if fault := _count_fault(options):
        return fault
    if (parse_int(options.get("max-file", "1")) or 0) < 1:
        return "max-file cannot be less than 1"
    if fault := _switch_fault(options):
        return fault
    if parse_bool(options.get("compress", "")) is True and options.get("max-file") == "1":
        return "compress cannot be true when max-file is less than 2 or max-size is not set"
    return ""


def _local_fault(options: Mapping[str, str]) -> str:
    if fault := _size_fault(options):
        return f"invalid value for max-size: {options['max-size']}: {fault}"
    if fault := _count_fault(options):
        return f"invalid value for max-file: {options['max-file']}: {fault}"
    if fault := _switch_fault(options):
        return f"error reading compress log option: {fault}"
    if (parse_int(options.get("max-file", "5")) or 0) < 2 and parse_bool(
        options.get("compress", "")
    ) is not False:
        return "compression cannot be enabled when max file count is 1"
    return ""


def _size_fault(options: Mapping[str, str]) -> str:
    text = options.get("max-size", "-1")
    if text == "-1":
        return ""
    try:
        parse_size(text)
    except InvalidArgument as error:
        return error.message
    return ""


def _count_fault(options: Mapping[str, str]) -> str:
    text = options.get("max-file", "1")
    return "" if parse_int(text) is not None else f'strconv.Atoi: parsing "{text}": invalid syntax'


def _switch_fault(options: Mapping[str, str]) -> str:
    text = options.get("compress", "true")
    if parse_bool(text) is not None:
        return ""
    return f'strconv.ParseBool: parsing "{text}": invalid syntax'
