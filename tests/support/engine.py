"""Start a real engine for a test, on directories of its own, and talk to it with real clients."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_NUMBERS = itertools.count()
REPOSITORY = Path(__file__).resolve().parents[2]


class EngineProcess:
    """`sampan daemon` on `<base>/root` and `<base>/run`, its log in `<base>/log`."""

    prefix: tuple[
        str, ...
    ] = ()  # what starts the interpreter: nsenter, for an engine on another network

    def __init__(self, base: Path, *flags: str) -> None:
        self.base = base
        self.root = base / "root"
        self.run = base / "run"
        self.socket = self.run / "sampan.sock"
        self.host = f"unix://{self.socket}"
        self.flags = flags
        self.program: tuple[str, ...] = ("-m", "sampan.daemon")
        # Of its own, so that the census of a test does not see what other engines on the machine do.
        self.cgroup_parent = f"sampan-{os.getpid()}-{next(_NUMBERS)}"
        self.bridge = "sampan-" + hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "DOCKER_HOST": self.host,
            "SAMPAN_HOST": self.host,
            "SAMPAN_AUTOSTART": "0",
            "DOCKER_BUILDKIT": "0",
            "DOCKER_CONFIG": str(self.base / "docker-config"),
        }

    def start(self) -> EngineProcess:
        self.run.mkdir(parents=True, exist_ok=True)
        log = (self.base / "log").open("ab")
        command = [
            *self.prefix, sys.executable, *self.program, "--root", str(self.root), "--run", str(self.run),
            "-H", self.host, "--cgroup-parent", "/" + self.cgroup_parent, *self.flags,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        log.close()
        self._wait_for_socket()
        return self

    def _wait_for_socket(self) -> None:
        import socket

        end = time.monotonic() + 120  # an emulated machine on a busy host needs more than 20
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the engine ended at once:\n{self.log_tail()}")
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"no engine on {self.socket} after 120 s:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """kill -9 of the daemon alone, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Remove every container, then end the daemon and the launcher."""
        if self.process is None:
            return
        if self.process.poll() is None:
            ids = self.docker("ps", "-aq", check=False).stdout.split()
            if ids:
                self.docker("rm", "-f", "-v", *ids, check=False)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._end_helpers()

    def _end_helpers(self) -> None:
        """The launcher and its helpers outlive a daemon by design; a test's engine is gone for good."""
        mark = str(self.run).encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                except OSError:
                    continue
                if mark in command:
                    try:
                        os.kill(int(entry), signal.SIGKILL)
                    except ProcessLookupError:
                        pass

    def docker(
        self,
        *arguments: str,
        check: bool = True,
        input: str | bytes | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run the stock docker CLI against this engine."""
        return self._client(["docker", *arguments], check=check, input=input, timeout=timeout)

    def sampan(
        self,
        *arguments: str,
        check: bool = True,
        input: str | bytes | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run our own CLI, from the tree, against this engine."""
        script = str(REPOSITORY / "sampan")
        return self._client([script, *arguments], check=check, input=input, timeout=timeout)

    def _client(
        self, command: list[str], *, check: bool, input: str | bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            command, input=data if data is not None else b"", capture_output=True, env=self.environment,
            timeout=timeout, check=False,
        )  # fmt: skip
        result = subprocess.CompletedProcess(
            command,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)} ended with {result.returncode}\n{result.stdout}{result.stderr}\n"
                f"--- engine log\n{self.log_tail()}"
            )
        return result
