"""Other hosts for network tests: namespaces joined to this one by a veth pair, with programs in them.

    this host 10.200.N.1, fd00:200:N::1 ───── neighbour 10.200.N.2, fd00:200:N::2

Everything of a neighbour goes with `close`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable

_NUMBERS = itertools.count(10)

# A server of any protocol is a line of Python: tests must not depend on programs that a distribution may lack.
HELLO = """
import socket, sys, threading
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
tcp = socket.create_server((address, port), family=family)
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.bind((address, port))
def datagrams():
    while True:
        _, sender = udp.recvfrom(2048)
        udp.sendto(b'hello ' + sender[0].encode(), sender)
threading.Thread(target=datagrams, daemon=True).start()
print('ready', flush=True)
while True:
    client, sender = tcp.accept()
    client.sendall(b'hello ' + sender[0].encode() + b'\\n')
    client.close()
"""

NAMES = """
import socket, sys
table = dict(pair.split('=') for pair in sys.argv[3:])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print('ready', flush=True)
while True:
    query, sender = sock.recvfrom(4096)
    name, at = [], 12
    while query[at]:
        name.append(query[at + 1:at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    kind, end = int.from_bytes(query[at + 1:at + 3], 'big'), at + 5
    found = table.get('.'.join(name), '')
    family = socket.AF_INET6 if ':' in found else socket.AF_INET
    record = b''
    if found and kind == (28 if ':' in found else 1):
        raw = socket.inet_pton(family, found)
        record = b'\\xc0\\x0c' + query[at + 1:end] + (5).to_bytes(4, 'big') + len(raw).to_bytes(2, 'big') + raw
    code = 0 if found else 3
    head = query[:2] + bytes((0x81, 0x80 | code)) + b'\\0\\1' + (b'\\0\\1' if record else b'\\0\\0') + bytes(4)
    sock.sendto(head + query[12:end] + record, sender)
"""


def run(*words: str) -> str:
    """Run a command of the host; its output. Raises with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true within a time that is far longer than it takes."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Neighbour:
    """A host beside this one. `routes`: networks that it sends to this host; everything, unless given."""

    def __init__(self, *extra: str, routes: Iterable[str] = ("default",)) -> None:
        number = next(_NUMBERS)
        self.name = f"nbr-{os.getpid()}-{number}"
        self.link = f"nb{os.getpid() % 100000}-{number}"
        self.host4, self.ipv4 = f"10.200.{number}.1", f"10.200.{number}.2"
        self.host6, self.ipv6 = f"fd00:200:{number}::1", f"fd00:200:{number}::2"
        self._programs: list[subprocess.Popen[str]] = []
        run("ip", "netns", "add", self.name)
        try:
            self._join(extra, routes)
        except BaseException:
            self.close()
            raise

    def _join(self, extra: Iterable[str], routes: Iterable[str]) -> None:
        run(
            "ip",
            "link",
            "add",
            self.link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.name,
        )
        run("ip", "addr", "add", f"{self.host4}/24", "dev", self.link)
        run("ip", "addr", "add", f"{self.host6}/64", "dev", self.link, "nodad")
        run("ip", "link", "set", self.link, "up")
        self.ip("addr", "add", f"{self.ipv4}/24", "dev", "eth0")
        self.ip("addr", "add", f"{self.ipv6}/64", "dev", "eth0", "nodad")
        self.ip("link", "set", "eth0", "up")
        self.ip("link", "set", "lo", "up")
        for route in routes:
            self.ip("route", "add", route, "via", self.host4)
            self.ip("-6", "route", "add", "default", "via", self.host6)
        for address in extra:
            six = ":" in address
            self.ip("addr", "add", address, "dev", "lo", *(("nodad",) if six else ()))
            via = self.ipv6 if six else self.ipv4
            run("ip", *(("-6",) if six else ()), "route", "add", address, "via", via)

    def ip(self, *words: str) -> str:
        """iproute2 in the neighbour."""
        return run("ip", "-n", self.name, *words)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program in the neighbour, to its end."""
        command = ["ip", "netns", "exec", self.name, *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    def python(self, program: str, *words: str) -> str:
        """A Python program in the neighbour, to its end; what it printed."""
        return self.command(sys.executable, "-I", "-S", "-c", program, *words).stdout

    def serve(self, program: str, *words: str) -> None:
        """A Python program that goes on; it has printed its first line when this returns."""
        command = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-I",
            "-S",
            "-c",
            program,
            *words,
        ]
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self._programs.append(started)
        assert started.stdout is not None
        assert started.stdout.readline().strip() == "ready"
        threading.Thread(target=started.stdout.read, daemon=True).start()

    def hello(self, address: str = "", port: int = 80) -> None:
        """A server that says hello and who asked, over TCP and UDP."""
        self.serve(HELLO, address or self.ipv4, str(port))

    def names(self, **table: str) -> None:
        """A name server on port 53 that knows these names (dots written as two underscores)."""
        words = [f"{name.replace('__', '.')}={address}" for name, address in table.items()]
        self.serve(NAMES, self.ipv4, "53", *words)

    def close(self) -> None:
        """Idempotent."""
        for program in self._programs:
            program.kill()
            program.wait()
            assert program.stdout is not None
            program.stdout.close()
        self._programs.clear()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
