"""version, info, plugins, dial-stdio, and what is said about swarm."""

from __future__ import annotations

import posix
import sys

from sampan.cli import human
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import emit, out, warn
from sampan.cli.table import columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

API_VERSION = "1.51"
ENGINE_DETAILS = (
    ("Go version", "GoVersion"),
    ("Git commit", "GitCommit"),
    ("Built", "BuildTime"),
)


def own_version() -> str:
    from sampan import __version__

    return __version__


def version_line(session: Session, options: Options) -> int:
    out(f"Sampan version {own_version()}, build python{sys.version_info[0]}.{sys.version_info[1]}")
    return 0


# -- version ------------------------------------------------------------------------------------------------------


def version(session: Session, options: Options) -> int:
    form = options.text("format")
    template = _template(form)
    client = _client_version(session)
    server: dict[str, Any] | None = None
    failure: Failure | None = None
    try:
        server = session.client.json("/version")
        client["ApiVersion"] = _smaller(API_VERSION, server.get("ApiVersion") or API_VERSION)
        _with_engine(server)
    except Failure as problem:
        failure = problem
    if template is not None:
        _print(template, {"Client": client, "Server": server})
    else:
        emit(_version_text(client, server))
    if failure is not None:
        warn(failure.message)
        return 1
    return 0


def _template(form: str) -> Any:
    if not form:
        return None
    from sampan.cli.govalues import TemplateError
    from sampan.cli.templating import Template

    try:
        return Template("{{json .}}" if form == "json" else form)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}", status=64) from None


def _print(template: Any, value: dict[str, Any]) -> None:
    from sampan.cli.govalues import Cell, TemplateError

    try:
        out(template.render(Cell(value, "system.versionInfo")))
    except TemplateError as error:
        out(error.partial)
        words = str(error).replace("template: :", "template: version:", 1)
        raise Failure(words.replace('executing ""', 'executing "version"', 1)) from None


def _client_version(session: Session) -> dict[str, Any]:
    facts = posix.uname()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(facts.machine, facts.machine)
    return {
        "Version": own_version(),
        "ApiVersion": API_VERSION,
        "DefaultAPIVersion": API_VERSION,
        "GitCommit": "",
        "GoVersion": f"python{'.'.join(map(str, sys.version_info[:3]))}",
        "Os": "linux",
        "Arch": architecture,
        "BuildTime": "",
        "Context": session.endpoint[1],
    }


def _smaller(a: str, b: str) -> str:
    def key(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return a if key(a) <= key(b) else b


def _with_engine(server: dict[str, Any]) -> None:
    """Old engines have no component called Engine."""
    components = server.setdefault("Components", None) or []
    if not any(c.get("Name") == "Engine" for c in components):
        names = (
            "ApiVersion", "MinAPIVersion", "GitCommit", "GoVersion", "Os", "Arch", "BuildTime",
        )  # fmt: skip
        details = {name: str(server.get(name, "")) for name in names}
        details["Experimental"] = "true" if server.get("Experimental") else "false"
        engine = {"Name": "Engine", "Version": server.get("Version", ""), "Details": details}
        components = [*components, engine]
    for component in components:
        details = component.get("Details") or {}
        if component.get("Name") == "Engine" and details.get("BuildTime"):
            details["BuildTime"] = _ansi(details["BuildTime"])
    server["Components"] = components


def _ansi(text: str) -> str:
    """Mon Jan _2 15:04:05 2006 of an RFC 3339 time."""
    import time

    from sampan.cli.times import parse

    try:
        at = time.gmtime(parse(text) // 1_000_000_000)
    except (ValueError, OverflowError):
        return text
    return time.strftime(f"%a %b {at.tm_mday:>2} %H:%M:%S %Y", at)


def _version_text(client: dict[str, Any], server: dict[str, Any] | None) -> str:
    lowered = client["ApiVersion"] != client["DefaultAPIVersion"]
    api = client["ApiVersion"] + (
        f" (downgraded from {client['DefaultAPIVersion']})" if lowered else ""
    )
    lines = [
        "Client:",
        f" Version:\t{client['Version']}",
        f" API version:\t{api}",
        f" Python version:\t{client['GoVersion'].removeprefix('python')}",
        f" OS/Arch:\t{client['Os']}/{client['Arch']}",
        f" Context:\t{client['Context']}",
    ]
    if server is not None:
        platform = (server.get("Platform") or {}).get("Name") or ""
        lines += ["", f"Server: {platform}".rstrip()]
        for component in server["Components"]:
            lines += _component(component)
    return columns(lines, least=20, gap=1)


def _component(component: dict[str, Any]) -> list[str]:
    details = component.get("Details") or {}
    lines = [f" {component['Name']}:", f"  Version:\t{component['Version']}"]
    if component["Name"] != "Engine":
        return lines + [f"  {key}:\t{details[key]}" for key in sorted(details)]
    api, least = details.get("ApiVersion", ""), details.get("MinAPIVersion", "")
    lines.append(f"  API version:\t{api} (minimum version {least})")
    lines += [f"  {title}:\t{details.get(key, '')}" for title, key in ENGINE_DETAILS]
    lines.append(f"  OS/Arch:\t{details.get('Os', '')}/{details.get('Arch', '')}")
    lines.append(f"  Experimental:\t{details.get('Experimental', '')}")
    return lines


# -- info ---------------------------------------------------------------------------------------------------------


def info(session: Session, options: Options) -> int:
    form = options.text("format")
    template = _template(form)
    client = _client_version(session)
    client_info = {"Debug": session.debug, **client, "Plugins": [], "Warnings": None}
    found: dict[str, Any] = {}
    failure: Failure | None = None
    try:
        found = session.client.json("/info")
    except Failure as problem:
        failure = problem
    if template is not None:
        _print_info(template, found, client_info)
    else:
        emit(f"Client:\n Version:    {client['Version']}\n Context:    {client['Context']}\n")
        emit(f" Debug Mode: {_word(session.debug)}\n\nServer:\n")
        if failure is None:
            emit(_info_text(session, found))
            for warning in found.get("Warnings") or []:
                warn(warning)
    if failure is not None:
        if isinstance(failure, Refused):
            warn(f"ERROR: {failure.message}")
            warn("errors pretty printing info")
        else:
            warn(failure.message)
        return 1
    return 0


def _print_info(template: Any, found: dict[str, Any], client: dict[str, Any]) -> None:
    from sampan.cli.govalues import Cell, TemplateError

    try:
        out(template.render(Cell({**found, "ClientInfo": client}, "system.dockerInfo")))
    except TemplateError as error:
        out(error.partial)
        raise Failure(str(error)) from None


def _word(value: object) -> str:
    return "true" if value else "false"


def _info_text(session: Session, info: dict[str, Any]) -> str:
    lines: list[str] = []

    def line(label: str, value: object, *, always: bool = True) -> None:
        if always or value:
            lines.append(f"{label} {_word(value) if isinstance(value, bool) else value}")

    line(" Containers:", info.get("Containers", 0))
    for state in ("Running", "Paused", "Stopped"):
        line(f"  {state}:", info.get(f"Containers{state}", 0))
    line(" Images:", info.get("Images", 0))
    line(" Server Version:", info.get("ServerVersion"), always=False)
    line(" Storage Driver:", info.get("Driver"), always=False)
    lines += [f"  {key}: {value}" for key, value in info.get("DriverStatus") or []]
    for label, key in (
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
    ):
        line(f" {label}:", info.get(key), always=False)
    plugins = info.get("Plugins") or {}
    lines.append(" Plugins:")
    for kind in ("Volume", "Network", "Authorization", "Log"):
        if kind != "Authorization" or plugins.get(kind):
            line(f"  {kind}:", " ".join(plugins.get(kind) or []))
    if info.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {path}" for path in info["CDISpecDirs"])]
    line(" Swarm:", (info.get("Swarm") or {}).get("LocalNodeState", ""))
    if info.get("Runtimes"):
        line(" Runtimes:", " ".join(sorted(info["Runtimes"])))
        line(" Default Runtime:", info.get("DefaultRuntime", ""))
    lines += _programs(info)
    for label, key in (
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
    ):
        line(f" {label}:", info.get(key), always=False)
    line(" CPUs:", info.get("NCPU", 0))
    line(" Total Memory:", human.memory(info.get("MemTotal") or 0))
    line(" Name:", info.get("Name"), always=False)
    line(" ID:", info.get("ID"), always=False)
    line(" Docker Root Dir:", info.get("DockerRootDir", ""))
    line(" Debug Mode:", bool(info.get("Debug")))
    if info.get("Debug") or session.debug:
        for label, key in (
            ("File Descriptors", "NFd"),
            ("Goroutines", "NGoroutines"),
            ("System Time", "SystemTime"),
            ("EventsListeners", "NEventsListener"),
        ):
            line(f"  {label}:", info.get(key, 0))
    for label, key in (
        ("HTTP Proxy", "HttpProxy"),
        ("HTTPS Proxy", "HttpsProxy"),
        ("No Proxy", "NoProxy"),
    ):
        line(f" {label}:", info.get(key), always=False)
    line(" Username:", _username(session), always=False)
    if info.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in info["Labels"])]
    line(" Experimental:", bool(info.get("ExperimentalBuild")))
    lines += _registries(info.get("RegistryConfig") or {})
    line(" Live Restore Enabled:", bool(info.get("LiveRestoreEnabled")))
    line(" Product License:", info.get("ProductLicense"), always=False)
    if info.get("DefaultAddressPools"):
        pools = info["DefaultAddressPools"]
        lines += [
            " Default Address Pools:",
            *(f"   Base: {p['Base']}, Size: {p['Size']}" for p in pools),
        ]
    return "\n".join(lines) + "\n\n"


def _username(session: Session) -> str:
    from sampan.cli.registry import credentials

    try:
        return credentials(session, "docker.io").get("username", "")
    except Failure:
        return ""


def _programs(info: dict[str, Any]) -> list[str]:
    if info.get("OSType") != "linux":
        return []
    lines = [f" Init Binary: {info.get('InitBinary', '')}"]
    for label, key in (
        ("containerd", "ContainerdCommit"),
        ("runc", "RuncCommit"),
        ("init", "InitCommit"),
    ):
        lines.append(f" {label} version: {(info.get(key) or {}).get('ID', '')}")
    if info.get("SecurityOptions"):
        lines.append(" Security Options:")
        for option in info["SecurityOptions"]:
            fields = dict(field.partition("=")[::2] for field in option.split(","))
            lines.append(f"  {fields.get('name', option)}")
            if "profile" in fields:
                lines.append(f"   Profile: {fields['profile']}")
    return lines


def _registries(config: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    cidrs, indexes = config.get("InsecureRegistryCIDRs") or [], config.get("IndexConfigs") or {}
    if cidrs or indexes:
        lines.append(" Insecure Registries:")
        lines += [f"  {index['Name']}" for index in indexes.values() if not index.get("Secure")]
        lines += [f"  {cidr}" for cidr in cidrs]
    if config.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in config["Mirrors"])]
    return lines


# -- the rest -----------------------------------------------------------------------------------------------------


def plugins(session: Session, options: Options) -> int:
    from sampan.cli.client import filters
    from sampan.cli.govalues import Row
    from sampan.cli.table import listing

    query = {"filters": filters(options.list("filter")) or None}
    found: list[dict[str, Any]] = session.client.json("/plugins", query=query) or []
    form = options.text("format") or "table"
    if form == "table":
        table = "table {{.ID}}\\t{{.Name}}\\t{{.Description}}\\t{{.Enabled}}"
        form = "{{.ID}}" if options.flag("quiet") else table
    headers = {"ID": "ID", "Name": "NAME", "Description": "DESCRIPTION", "Enabled": "ENABLED"}

    def row(plugin: dict[str, Any]) -> Row:
        return Row(
            "*plugin.pluginContext",
            {
                "Description": lambda: (plugin.get("Config") or {}).get("Description", ""),
                "Enabled": lambda: bool(plugin.get("Enabled")),
                "ID": lambda: plugin.get("Id", "")[: None if options.flag("no-trunc") else 12],
                "Name": lambda: plugin.get("Name", ""),
            },
        )

    listing(form, [row(plugin) for plugin in found], headers)
    return 0


def dial_stdio(session: Session, options: Options) -> int:
    """Standard input and output joined to the engine's socket: what `ssh://` runs on the far side."""
    import select

    connection = session.connect()
    fd = connection.fileno()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(0, select.POLLIN)
    from sampan.cli.session import write_all

    while True:
        for ready, _ in poller.poll():
            if ready == fd:
                data = connection.recv(1 << 16)
                if not data:
                    return 0
                write_all(1, data)
            else:
                data = posix.read(0, 1 << 16)
                if data:
                    connection.sendall(data)
                else:
                    poller.unregister(0)
                    connection.shutdown(1)
