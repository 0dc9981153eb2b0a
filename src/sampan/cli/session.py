"""What the global flags and the environment decided: which engine, which configuration directory; made once a run.

The engine, first that is set:
    --context NAME | -H ADDRESS | SAMPAN_HOST | DOCKER_HOST | DOCKER_CONTEXT | currentContext of config.json
    | unix:///run/sampan/sampan.sock, or $XDG_RUNTIME_DIR/sampan/sampan.sock for those who are not root
Configuration: --config, DOCKER_CONFIG, ~/.docker: docker's own files, so that a login serves both.

Only the default engine is started when it is missing (cli/autostart.py). Other addresses than unix sockets are
dialled by cli/remote.py. Both are loaded when met.
"""

from __future__ import annotations

import _socket
import posix

from sampan.cli import wire
from sampan.cli.client import Client
from sampan.cli.failures import Failure, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENOENT, EACCES, ECONNREFUSED = 2, 13, 111
ROOT_SOCKET = "/run/sampan/sampan.sock"


def getenv(name: str) -> str:
    return posix.environ.get(name.encode(), b"").decode("utf-8", "surrogateescape")


def default_socket() -> str:
    """Root's engine for root; for others their own, or root's where they were let in and have none."""
    if posix.geteuid() == 0:
        return ROOT_SOCKET
    own = f"{runtime_directory(posix.geteuid())}/sampan/sampan.sock"
    if not posix.access(own, posix.F_OK) and posix.access(ROOT_SOCKET, posix.R_OK | posix.W_OK):
        return ROOT_SOCKET
    return own


def runtime_directory(uid: int) -> str:
    """Where an engine of our own listens (config.py). One in /tmp that is somebody else's is not looked into."""
    if named := getenv("XDG_RUNTIME_DIR"):
        return named
    usual, made = f"/run/user/{uid}", f"/tmp/sampan-run-{uid}"
    if posix.access(usual, posix.F_OK):
        return usual
    try:
        facts = posix.lstat(made)
    except OSError:
        return made
    return made if facts.st_uid == uid and facts.st_mode & 0o170022 == 0o040000 else usual


class Session:
    """One run of the command line against one engine."""

    __slots__ = (
        "_client",
        "_config",
        "_endpoint",
        "config_flag",
        "context_flag",
        "debug",
        "host_flags",
        "tls",
    )

    def __init__(
        self,
        *,
        hosts: list[str] | None = None,
        context: str = "",
        config: str = "",
        debug: bool = False,
        tls: dict[str, Any] | None = None,
    ) -> None:
        self.host_flags = hosts or []
        self.context_flag = context
        self.config_flag = config
        self.debug = debug
        self.tls = tls or {}
        self._client: Client | None = None
        self._config: dict[str, Any] | None = None
        self._endpoint: tuple[str, str] | None = None

    # -- configuration --------------------------------------------------------------------------------------------

    @property
    def config_directory(self) -> str:
        return self.config_flag or getenv("DOCKER_CONFIG") or f"{getenv('HOME') or '/root'}/.docker"

    @property
    def config(self) -> dict[str, Any]:
        """config.json, or nothing where there is none."""
        if self._config is None:
            path = f"{self.config_directory}/config.json"
            self._config = {}
            text = read_file(path)
            if text.strip():
                try:
                    loaded = wire.loads(text)
                except ValueError as error:
                    warn(f"WARNING: Error loading config file: {path}: {error}")
                else:
                    self._config = loaded if isinstance(loaded, dict) else {}
        return self._config

    def setting(self, key: str) -> str:
        value = self.config.get(key, "")
        return value if isinstance(value, str) else ""

    # -- the engine -----------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> tuple[str, str]:
        """(address, context name)."""
        if self._endpoint is None:
            self._endpoint = self._choose()
        return self._endpoint

    @property
    def host(self) -> str:
        return self.endpoint[0]

    def _choose(self) -> tuple[str, str]:
        if self.host_flags:
            if self.context_flag:
                raise Failure("conflicting options: cannot specify both --host and --context")
            if len(self.host_flags) > 1:
                raise Failure("Specify only one -H")
            return normal_address(self.host_flags[0]), "default"
        if self.context_flag and self.context_flag != "default":
            return self._from_context(self.context_flag)
        if not self.context_flag:
            named = getenv("SAMPAN_HOST") or getenv("DOCKER_HOST")
            if named:
                return normal_address(named), "default"
            name = getenv("DOCKER_CONTEXT") or self.setting("currentContext")
            if name and name != "default":
                return self._from_context(name)
        named = getenv("SAMPAN_HOST") or getenv("DOCKER_HOST")
        return (normal_address(named) if named else f"unix://{default_socket()}"), "default"

    def _from_context(self, name: str) -> tuple[str, str]:
        from sampan.cli import contexts

        endpoint = contexts.endpoint(self, name)
        self.tls = endpoint.tls or self.tls
        return normal_address(
            endpoint.host
        ) if endpoint.host else f"unix://{default_socket()}", name

    @property
    def client(self) -> Client:
        if self._client is None:
            headers = self.config.get("HttpHeaders")
            self._client = Client(
                self.connect,
                headers=headers if isinstance(headers, dict) else None,
                version=getenv("DOCKER_API_VERSION"),
            )
        return self._client

    def connect(self) -> _socket.socket:
        """A connection to the engine, started first if it is the default one and nobody listens."""
        host = self.host
        if not host.startswith("unix://"):
            from sampan.cli import remote

            return remote.connect(host, self.tls)
        path = host[7:]
        try:
            return dial(path)
        except OSError as error:
            if error.errno in (ENOENT, ECONNREFUSED) and path == default_socket():
                from sampan.cli import autostart

                if autostart.wanted():
                    autostart.start(path)
                    return dial(path)
            raise unreachable(host, error) from None


def dial(path: str) -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(path.encode("utf-8", "surrogateescape"))
    except OSError:
        connection.close()
        raise
    return connection


def unreachable(host: str, error: OSError) -> Unreachable:
    if error.errno == EACCES:
        return Unreachable(
            f"permission denied while trying to connect to the Docker daemon socket at {host}: "
            f"dial unix {host.removeprefix('unix://')}: connect: permission denied"
        )
    return Unreachable(
        f"Cannot connect to the Docker daemon at {host}. Is the docker daemon running?"
    )


def normal_address(text: str) -> str:
    """What may stand behind -H: a scheme, or an absolute path, or host:port."""
    text = text.strip()
    if text.startswith("/"):
        return f"unix://{text}"
    if text == "unix://":
        return f"unix://{default_socket()}"
    if text.startswith(("unix://", "tcp://", "ssh://", "http://", "https://", "fd://")):
        return text
    if "://" in text:
        raise Failure(f"invalid bind address format: {text}")
    return f"tcp://{text}"


def read_file(path: str) -> str:
    """The text of a file, '' where it is absent or closed to us."""
    try:
        descriptor = posix.open(
            path.encode("utf-8", "surrogateescape"), posix.O_RDONLY | posix.O_CLOEXEC
        )
    except OSError:
        return ""
    try:
        pieces = []
        while piece := posix.read(descriptor, 1 << 20):
            pieces.append(piece)
    except OSError:
        return ""
    finally:
        posix.close(descriptor)
    return b"".join(pieces).decode("utf-8", "surrogateescape")


def write_all(descriptor: int, data: bytes) -> None:
    """All of it, also where the descriptor was made non-blocking by somebody else."""
    view = memoryview(data)
    while view:
        try:
            view = view[posix.write(descriptor, view) :]
        except BlockingIOError:
            import select

            select.select([], [descriptor], [])


def out(text: str) -> None:
    """A line to stdout."""
    write_all(1, (text + "\n").encode("utf-8", "surrogateescape"))


def emit(text: str) -> None:
    """Text to stdout as it is."""
    write_all(1, text.encode("utf-8", "surrogateescape"))


def warn(text: str) -> None:
    """A line to stderr."""
    write_all(2, (text + "\n").encode("utf-8", "surrogateescape"))
