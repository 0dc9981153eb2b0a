"""Flag values that are more than text: sizes, durations, processor shares, mounts, networks, limits.

Each checker takes what stood on the command line and gives what goes on the wire, or raises ValueError with the words
that docker's users know. `store` is the door: it knows which kinds repeat.

Hot (a `run -m 128m` comes through here): no `re`, no `ipaddress`, no `csv`.
"""

from __future__ import annotations

import posix

from sampan.cli.args import go_bool, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

INT64_MAX = (1 << 63) - 1
SIZE_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
ULIMITS = {
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
}  # fmt: skip


def store(given: dict[str, Any], name: str, kind: str, text: str) -> None:
    """Check `text` and put it under `name`; kinds that repeat collect."""
    if kind in SINGLE:
        given[name] = SINGLE[kind](text)
    elif kind == "filter":
        add_filter(given.setdefault(name, []), text)
    else:
        given.setdefault(name, []).append(REPEATED[kind](text))


# -- numbers ------------------------------------------------------------------------------------------------------


def size(text: str) -> int:
    """'512m', '1.5 GiB', '100': bytes, with binary units whatever the spelling."""
    digits = max(text.rfind(c) for c in "0123456789. ")
    if digits < 0:
        raise ValueError(f"invalid size: '{text}'")
    number = text[:digits] if text[digits] == " " else text[: digits + 1]
    suffix = text[digits + 1 :]
    amount = _float(number)
    if amount < 0:
        raise ValueError(f"invalid size: '{text}'")
    suffix = suffix.lower()
    if suffix in ("", "b"):
        return int(min(amount, INT64_MAX))
    factor = SIZE_UNITS.get(suffix[0])
    if factor is None or suffix[1:] not in ("", "b", "ib"):
        raise ValueError(f"invalid suffix: '{suffix}'")
    return int(min(amount * factor, INT64_MAX))


def _float(text: str) -> float:
    try:
        if text != text.strip() or "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise ValueError(f"strconv.ParseFloat: parsing {quote(text)}: invalid syntax") from None


def swap_size(text: str) -> int:
    return -1 if text == "-1" else size(text)


def cpus(text: str) -> int:
    """'1.5' or '3/2' processors in billionths, exactly."""
    top, slash, bottom = text.partition("/")
    try:
        numerator, scale = _decimal(top)
        denominator = int(bottom) if slash and bottom.isdigit() else 1
        if (slash and not bottom.isdigit()) or denominator == 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"failed to parse {text} as a rational number") from None
    parts: int = 10**scale
    nano, rest = divmod(numerator * 1_000_000_000, denominator * parts)
    if rest:
        raise ValueError("value is too precise")
    return nano


def _decimal(text: str) -> tuple[int, int]:
    """'-1.25' as (-125, 2)."""
    sign = -1 if text.startswith("-") else 1
    body = text[1:] if text[:1] in ("+", "-") else text
    whole, _, part = body.partition(".")
    exponent = 0
    if "e" in part.lower() or "e" in whole.lower():
        mantissa, _, power = body.lower().partition("e")
        whole, _, part = mantissa.partition(".")
        exponent = int(power)
        if abs(exponent) > 40:
            raise ValueError
    digits = whole + part
    if not digits.isascii() or not digits.isdigit():
        raise ValueError
    number, scale = sign * int(digits), len(part) - exponent
    return (number, scale) if scale >= 0 else (number * 10**-scale, 0)


def uint16(text: str) -> int:
    return go_uint(text, 16)


def go_uint(text: str, bits: int, base: int = 0) -> int:
    """strconv.ParseUint, error text included."""
    try:
        if not text or text[0] in "+-" or text != text.strip() or not text.isascii():
            raise ValueError
        octal = base == 0 and len(text) > 1 and text[0] == "0" and text[1].isdigit()
        number = int(text, 8 if octal else base)
    except ValueError:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax") from None
    if number >> bits:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    return number


def duration(text: str) -> int:
    """'1h30m', '1.5s': nanoseconds, as Go reads them."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, position, end = 0.0, 0, len(body)
    exact = 0
    if not body:
        raise ValueError(f"time: invalid duration {quote(text)}")
    while position < end:
        start = position
        while position < end and body[position] in "0123456789.":
            position += 1
        number = body[start:position]
        start = position
        while position < end and body[position] not in "0123456789.":
            position += 1
        unit = body[start:position]
        if number in ("", ".") or number.count(".") > 1:
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in DURATION_UNITS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        whole, _, part = number.partition(".")
        scale = DURATION_UNITS[unit]
        exact += int(whole or "0") * scale
        if part:
            total += int(part) * scale / 10 ** len(part)
    nanoseconds = exact + int(total)
    if nanoseconds > INT64_MAX:
        raise ValueError(f"time: invalid duration {quote(text)}")
    return -nanoseconds if text.startswith("-") else nanoseconds


# -- small words --------------------------------------------------------------------------------------------------


def is_address(text: str) -> bool:
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
            return True
        except (OSError, ValueError):
            continue
    return False


def address(text: str) -> str:
    stripped = text.strip()
    if not is_address(stripped):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return stripped


def search_domain(text: str) -> str:
    if text.strip() == ".":
        return text
    name = text.strip().rstrip(".")
    labels = name.split(".")
    fits = any(c.isalpha() for c in name) and len(name) < 255
    for label in labels:
        letters = label.replace("-", "").replace("_", "")
        fits = fits and bool(label) and letters.isalnum() and label.isascii()
        fits = fits and not label.startswith("-") and not label.endswith("-")
    if not fits:
        raise ValueError(f"{text} is not a valid domain")
    return name


def extra_host(text: str) -> str:
    """'name:ip' or 'name=ip' (brackets allowed) as the API wants it: 'name:ip'."""
    name, found, where = text.partition("=")
    if not found:
        name, found, where = text.partition(":")
    if not found or not name or ":" in name:
        raise ValueError(f"bad format for add-host: {quote(text)}")
    if where != "host-gateway":
        if len(where) > 2 and where[0] == "[" and where[-1] == "]":
            where = where[1:-1]
        if not is_address(where):
            raise ValueError(f"invalid IP address in add-host: {quote(where)}")
    return f"{name}:{where}"


def env(text: str) -> str:
    """'K=V' as it is; 'K' takes its value from our own environment, or stays bare where there is none."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    if equals:
        return text
    value = posix.environ.get(name.encode("utf-8", "surrogateescape"))
    return text if value is None else f"{name}={value.decode('utf-8', 'surrogateescape')}"


def label(text: str) -> str:
    key = text.partition("=")[0].lstrip(" \t")
    if not key:
        raise ValueError(f"invalid label '{text}': empty name")
    if " " in key or "\t" in key:
        raise ValueError(f"label '{key}' contains whitespaces")
    return text


def sysctl(text: str) -> str:
    known = (
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
        "kernel.shmmni", "kernel.shm_rmid_forced",
    )  # fmt: skip
    key, equals, _ = text.partition("=")
    if not equals or not (key in known or key.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def stream_name(text: str) -> str:
    lowered = text.lower()
    if lowered not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return lowered


def link(text: str) -> str:
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    return text


def device_rule(text: str) -> str:
    """'c 1:3 rwm', with * for any number."""
    parts = text.split(" ")
    if len(parts) == 3:
        kind, numbers, access = parts
        major, colon, minor = numbers.partition(":")
        whole = all(n == "*" or n.isdigit() for n in (major, minor))
        allowed = 0 < len(access) < 4 and not access.strip("rwm")
        if kind in ("a", "b", "c") and colon and whole and allowed:
            return text
    raise ValueError(f"invalid device cgroup format '{text}'")


def add_filter(filters: list[tuple[str, str]], text: str) -> None:
    if not text:
        return
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    filters.append((name.strip().lower(), value.strip()))


# -- devices and limits -------------------------------------------------------------------------------------------


def _device_part(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def weight_device(text: str) -> dict[str, object]:
    path, value = _device_part(text)
    if not value.isdigit() or (int(value) and not 10 <= int(value) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(value)}


def bps_device(text: str) -> dict[str, object]:
    path, value = _device_part(text)
    try:
        return {"Path": path, "Rate": size(value)}
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. "
            "Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ) from None


def iops_device(text: str) -> dict[str, object]:
    path, value = _device_part(text)
    if not value.isdigit():
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. "
            "Number must be a positive integer"
        )
    return {"Path": path, "Rate": int(value)}


def ulimit(text: str) -> dict[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    numbers = value.split(":")
    if len(numbers) > 2:
        raise ValueError(
            f"too many limit value arguments - {value}, can only have up to two, `soft[:hard]`"
        )
    soft = _ulimit_number(numbers[0])
    hard = _ulimit_number(numbers[1]) if len(numbers) == 2 else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(
            "ulimit soft limit must be less than or equal to hard limit: "
            + (f"soft: -1 (unlimited), hard: {hard}" if soft == -1 else f"{soft} > {hard}")
        )
    return {"Name": name, "Soft": soft, "Hard": hard}


def _ulimit_number(text: str) -> int:
    try:
        if text != text.strip() or "_" in text or not text.isascii():
            raise ValueError
        return int(text)
    except ValueError:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax") from None


def gpus(text: str) -> dict[str, object]:
    request: dict[str, Any] = {
        "Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": None, "Options": {},
    }  # fmt: skip
    seen: set[str] = set()
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if not equals:
            seen.add("count")
            request["Count"] = _gpu_count(key)
        elif key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _gpu_count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = dict(f.partition("=")[::2] for f in csv_fields(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    if request["Capabilities"] is None:
        request["Capabilities"] = [["gpu"]]
    return request


def _gpu_count(text: str) -> int:
    if text == "all":
        return -1
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f'invalid count ({text}): value must be either "all" or an integer: invalid syntax'
        ) from None


# -- comma separated ----------------------------------------------------------------------------------------------


def csv_fields(text: str) -> list[str]:
    """One line of comma separated values: a field may stand in double quotes, doubled inside."""
    if not text:
        raise ValueError("EOF")
    fields: list[str] = []
    position, end = 0, len(text)
    while True:
        if position < end and text[position] == '"':
            value, position = _quoted_field(text, position + 1)
        else:
            stop = text.find(",", position)
            stop = end if stop < 0 else stop
            value, position = text[position:stop], stop
            if '"' in value:
                column = position - len(value) + value.index('"') + 1
                raise ValueError(
                    f'parse error on line 1, column {column}: bare " in non-quoted field'
                )
        fields.append(value)
        if position >= end:
            return fields
        position += 1  # the comma


def _quoted_field(text: str, position: int) -> tuple[str, int]:
    value, end = "", len(text)
    while position < end:
        char = text[position]
        if char == '"':
            if text[position + 1 : position + 2] == '"':
                value += '"'
                position += 2
                continue
            if position + 1 < end and text[position + 1] != ",":
                raise ValueError(
                    f'parse error on line 1, column {position + 1}: extraneous or missing " in quoted-field'
                )
            return value, position + 1
        value += char
        position += 1
    raise ValueError(
        f'parse error on line 1, column {end + 1}: extraneous or missing " in quoted-field'
    )


def absolute(path: str) -> str:
    """'./x' and '../x' made absolute and clean; everything else as it is (a volume's name has no slash in front)."""
    if not path.startswith("."):
        return path
    return clean(f"{posix.getcwd()}/{path}")


def clean(path: str) -> str:
    """Go's path.Clean."""
    rooted = path.startswith("/")
    out: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and out and out[-1] != "..":
            out.pop()
        elif part != ".." or not rooted:
            out.append(part)
    return ("/" if rooted else "") + "/".join(out) or ("/" if rooted else ".")


def mount(text: str) -> dict[str, Any]:
    """`--mount`'s comma separated pairs as the API's Mount."""
    made: dict[str, Any] = {"Type": "volume"}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        _mount_field(made, field, key.lower(), value if equals else None)
    _check_mount(made)
    return made


def _mount_field(made: dict[str, Any], field: str, key: str, value: str | None) -> None:
    if value is None:
        if key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"):
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
        value = "true"
    if key == "type":
        made["Type"] = value.lower()
    elif key in ("source", "src"):
        made["Source"] = absolute(value)
    elif key in ("target", "dst", "destination"):
        made["Target"] = value
    elif key in ("readonly", "ro"):
        made["ReadOnly"] = _mount_bool(key, value)
    elif key == "consistency":
        made["Consistency"] = value.lower()
    elif key.startswith("bind-"):
        _bind_field(made.setdefault("BindOptions", {}), field, key, value)
    elif key.startswith("volume-"):
        _volume_field(
            made.setdefault("VolumeOptions", {"Labels": {}, "DriverConfig": {}}), field, key, value
        )
    elif key == "image-subpath":
        made["ImageOptions"] = {"Subpath": value}
    elif key == "tmpfs-size":
        try:
            made.setdefault("TmpfsOptions", {})["SizeBytes"] = size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-mode":
        try:
            made.setdefault("TmpfsOptions", {})["Mode"] = go_uint(value, 32, 8)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _mount_bool(key: str, value: str) -> bool:
    try:
        return go_bool(value)
    except ValueError:
        raise ValueError(f"invalid value for {key}: {value}") from None


def _bind_field(bind: dict[str, Any], field: str, key: str, value: str) -> None:
    recursion = {
        "disabled": "NonRecursive",
        "writable": "ReadOnlyNonRecursive",
        "readonly": "ReadOnlyForceRecursive",
    }
    if key == "bind-propagation":
        bind["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        bind["NonRecursive"] = _mount_bool(key, value)
    elif key == "bind-create-src":
        bind["CreateMountpoint"] = _mount_bool(key, value)
    elif key == "bind-recursive":
        if value in recursion:
            bind[recursion[value]] = True
        elif value != "enabled":
            raise ValueError(
                f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
            )
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _volume_field(volume: dict[str, Any], field: str, key: str, value: str) -> None:
    name, _, rest = value.partition("=")
    if key == "volume-subpath":
        volume["Subpath"] = value
    elif key == "volume-nocopy":
        volume["NoCopy"] = _mount_bool(key, value)
    elif key == "volume-label":
        if name:
            volume["Labels"][name] = rest
    elif key == "volume-driver":
        volume["DriverConfig"]["Name"] = value
    elif key == "volume-opt":
        if name:
            volume["DriverConfig"].setdefault("Options", {})[name] = rest
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _check_mount(made: dict[str, Any]) -> None:
    kind = made["Type"]
    if not kind:
        raise ValueError("type is required")
    if not made.get("Target"):
        raise ValueError("target is required")
    for options, owner in (
        ("VolumeOptions", "volume"),
        ("ImageOptions", "image"),
        ("BindOptions", "bind"),
        ("TmpfsOptions", "tmpfs"),
    ):
        if options in made and kind != owner:
            raise ValueError(f"cannot mix '{owner}-*' options with mount type '{kind}'")
    bind = made.get("BindOptions", {})
    if bind.get("ReadOnlyNonRecursive") and not made.get("ReadOnly"):
        raise ValueError(
            "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction"
        )
    if bind.get("ReadOnlyForceRecursive"):
        if not made.get("ReadOnly"):
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"
            )
        if bind.get("Propagation") != "rprivate":
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
            )


def network(text: str) -> dict[str, Any]:
    """`--network NAME` or `--network name=NAME,alias=A,...`."""
    attachment: dict[str, Any] = {"Target": text}
    before, equals, after = text.partition("=")
    long_form = equals and before[-1:].replace("_", "a").isalnum() and after[:1].replace("_", "a")
    if not (long_form and after[:1].replace("_", "a").isalnum()):
        return attachment
    attachment = {"Target": "", "Aliases": []}
    for field in csv_fields(text):
        key, equals, value = field.lower().partition("=")
        if not equals or not key:
            raise ValueError(f"invalid field {field}")
        _network_field(attachment, key.strip(), value.strip())
    if not attachment["Target"]:
        raise ValueError("network name/id is not specified")
    return attachment


def _network_field(attachment: dict[str, Any], key: str, value: str) -> None:
    single = {
        "name": "Target",
        "ip": "IPv4Address",
        "ip6": "IPv6Address",
        "mac-address": "MacAddress",
    }
    if key in single:
        attachment[single[key]] = value
    elif key == "alias":
        attachment["Aliases"].append(value)
    elif key == "link-local-ip":
        attachment.setdefault("LinkLocalIPs", []).append(value)
    elif key == "driver-opt":
        name, equals, rest = value.partition("=")
        if not equals or not name:
            raise ValueError("invalid key value pair format in driver options")
        attachment.setdefault("DriverOpts", {})[name.strip()] = rest.strip()
    elif key == "gw-priority":
        try:
            attachment["GwPriority"] = int(value)
        except ValueError:
            raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
    else:
        raise ValueError(f"invalid field key {key}")


def subnet(text: str) -> str:
    ip, slash, bits = text.partition("/")
    if not slash or not bits.isdigit() or not is_address(ip):
        raise ValueError(f"invalid CIDR address: {text}")
    return text


def tag(text: str) -> str:
    """The name of an image."""
    from sampan.cli import names
    from sampan.cli.failures import Failure

    try:
        names.parse(text)
    except Failure as failure:
        raise ValueError(failure.message) from None
    return text


SINGLE: dict[str, Callable[[str], Any]] = {
    "uint16": uint16,
    "float": _float,
    "duration": duration,
    "bytes": size,
    "swap": swap_size,
    "decimal": cpus,
    "ip": str,
    "subnet": subnet,
}
REPEATED: dict[str, Callable[[str], Any]] = {
    "env": env,
    "tag": tag,
    "label": label,
    "sysctl": sysctl,
    "attach": stream_name,
    "mount": mount,
    "network": network,
    "ulimit": ulimit,
    "gpus": gpus,
    "address": address,
    "host": extra_host,
    "search": search_domain,
    "device-rule": device_rule,
    "link": link,
    "weight": weight_device,
    "bps": bps_device,
    "iops": iops_device,
}
