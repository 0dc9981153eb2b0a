"""linux/process.py, fds.py, procfs.py: signals by name, descriptors with one owner, /proc text."""

from __future__ import annotations

import os

import pytest

from sampan.linux import fds, process, procfs


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("sigkill", 9),
        ("15", 15),
        (9, 9),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
    ],
)
def test_signals_have_names(text: str | int, number: int) -> None:
    assert process.signal_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "FOO", "-1", "65", "999", " 9", "1_0", "\u0663", "\u00b2", "RTMIN+99", "SIG"]
)
def test_anything_else_is_no_signal(text: str) -> None:
    with pytest.raises(ValueError):
        process.signal_number(text)


def test_names_come_back() -> None:
    assert [process.signal_name(n) for n in (15, 34, 37)] == ["SIGTERM", "SIGRTMIN", "SIGRTMIN+3"]


def test_an_owned_descriptor_closes_once() -> None:
    reader, writer = fds.pipe()
    with reader:
        number = writer.take()
        writer.close()  # nothing: it was handed on
        os.write(number, b"x")
        os.close(number)
        assert os.read(reader.fd, 2) == b"x"
    reader.close()


def test_descriptors_travel_and_are_close_on_exec() -> None:
    ours, theirs = fds.socketpair()
    with fds.pipe()[0] as reader:
        fds.send_fds(ours, b"hello", (reader.fd, reader.fd))
        data, received = fds.recv_fds(theirs)
        assert (data, len(received)) == (b"hello", 2)
        assert not any(os.get_inheritable(fd) for fd in received)
        fds.close_quietly(*received)
    ours.close()
    assert fds.recv_fds(theirs) == (b"", [])
    theirs.close()


def test_a_truncated_message_is_an_error_and_leaks_nothing() -> None:
    ours, theirs = fds.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    fds.send_fds(ours, b"long message", (0,))
    with pytest.raises(OSError):
        fds.recv_fds(theirs, size=4)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_mountinfo_is_read_with_its_escapes() -> None:
    line = (
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/ro\\134ot rw,errors=continue\n"
    )
    (mount,) = procfs.parse_mountinfo(line + "rubbish\n")
    assert (mount.path, mount.source, mount.propagation) == ("/mnt 2", "/dev/ro\\ot", ("master:1",))


def test_stat_survives_a_hostile_command_name() -> None:
    text = "42 (a) R 1 (b)) S 7 " + " ".join(str(n) for n in range(5, 60))
    stat = procfs.parse_stat(text)
    assert (stat.pid, stat.comm, stat.state, stat.parent, stat.start_time) == (
        42,
        "a) R 1 (b)",
        "S",
        7,
        22,
    )


def test_we_are_alive_and_others_with_our_number_are_not() -> None:
    started = procfs.start_time(os.getpid())
    assert procfs.is_alive(os.getpid(), started)
    assert not procfs.is_alive(os.getpid(), started + 1)
    with pytest.raises(ProcessLookupError):
        process.open_pidfd(os.getpid(), started + 1)
