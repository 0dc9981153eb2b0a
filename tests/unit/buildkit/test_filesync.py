"""Directory transfers both ways: our sender against our receiver over a real link, and senders that do wrong."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from sampan.buildkit import filesync
from sampan.buildkit import messages as m
from sampan.buildkit.faults import GrpcError
from sampan.buildkit.filesync import GO_DIRECTORY, GO_LINK, Receiver, TransferFault
from sampan.buildkit.link import Stream
from sampan.buildkit.wire import decode, encode
from tests.unit.buildkit.linked import joined, run_here

DAY_NS = 86_400 * 10**9


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a transfer keeps of what is below."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (
            stat.filemode(info.st_mode),
            info.st_mtime_ns,
            content,
        )
    return found


def make_source(root: Path) -> None:
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/f").write_bytes(b"f" * 100_000)
    (root / "d/empty").touch()
    (root / "d/e/f").chmod(0o4755)
    (root / "link").symlink_to("d/e/f")
    (root / "dangling").symlink_to("/nowhere")
    os.link(root / "d/e/f", root / "hard")
    (root / os.fsdecode(b"n\xff")).write_bytes(b"name")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(DAY_NS, DAY_NS + number), follow_symlinks=False)


def test_a_tree_arrives_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    make_source(source)
    counted: list[int] = []

    async def give(stream: Stream) -> None:
        root = os.open(source, os.O_RDONLY)
        try:
            await filesync.send(stream, {"": root}, run_here)
        finally:
            os.close(root)

    async def scenario() -> int:
        root = os.open(target, os.O_RDONLY)
        try:
            async with joined(give) as (caller, _):
                stream = caller.open("/moby.filesync.v1.FileSync/DiffCopy")
                receiver = Receiver(root)
                await filesync.receive(stream, receiver, run_here, counted.append)
                return receiver.size
        finally:
            os.close(root)

    size = asyncio.run(scenario())
    assert tree(target) == tree(source)
    assert (target / "hard").stat().st_ino == (target / "d/e/f").stat().st_ino
    assert size == counted[-1] > 100_000


def test_several_trees_go_into_directories_of_their_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    target = tmp_path / "target"
    target.mkdir()

    async def give(stream: Stream) -> None:
        roots = {f"linux_{n}": os.open(tmp_path / n, os.O_RDONLY) for n in ("a", "b")}
        try:
            await filesync.send(stream, roots, run_here)
        finally:
            for fd in roots.values():
                os.close(fd)

    async def scenario() -> None:
        root = os.open(target, os.O_RDONLY)
        try:
            async with joined(give) as (caller, _):
                await filesync.receive(caller.open("/x"), Receiver(root), run_here, lambda _: None)
        finally:
            os.close(root)

    asyncio.run(scenario())
    assert (target / "linux_a/f").read_text() == "a"
    assert (target / "linux_b/f").read_text() == "b"


# --- a receiver and whoever sends to it


def entry(path: str, mode: int = 0o644, **fields: object) -> bytes:
    return encode(m.Packet(stat=m.Stat(path=path, mode=mode, **fields)))  # type: ignore[arg-type]


def data(number: int, content: bytes = b"") -> bytes:
    return encode(m.Packet(type=m.PACKET_DATA, id=number, data=content))


END = encode(m.Packet(type=m.PACKET_STAT))
FIN = encode(m.Packet(type=m.PACKET_FIN))
DIRECTORY = GO_DIRECTORY | 0o755


def take(root: Path, messages: list[bytes], *, again: bool = False) -> list[m.Packet]:
    fd = os.open(root, os.O_RDONLY)
    receiver = Receiver(fd, filesync.known_entries(fd) if again else None)
    try:
        return [decode(m.Packet, answer) for answer in receiver.take(messages)]
    finally:
        receiver.close()
        os.close(fd)


def test_files_are_asked_for_by_their_number_and_then_all_is_there(tmp_path: Path) -> None:
    answers = take(
        tmp_path,
        [entry("d", DIRECTORY), entry("d/f"), entry("l", GO_LINK | 0o777, link="d/f"), entry("z"), END,
         data(1, b"one"), data(3, b"z"), data(1, b" two"), data(3), data(1)],
    )  # fmt: skip
    assert [(a.type, a.id) for a in answers] == [
        (m.PACKET_REQUEST, 1), (m.PACKET_REQUEST, 3), (m.PACKET_FIN, 0),
    ]  # fmt: skip
    assert (tmp_path / "d/f").read_bytes() == b"one two"
    assert (tmp_path / "l").read_bytes() == b"one two"


def requests(answers: list[m.Packet]) -> list[int]:
    return [answer.id for answer in answers if answer.type == m.PACKET_REQUEST]


def test_what_is_there_already_is_not_asked_for_again(tmp_path: Path) -> None:
    first = [
        entry("a", size=1, mtime_ns=DAY_NS), entry("b", size=1, mtime_ns=DAY_NS),
        entry("d", DIRECTORY, mtime_ns=DAY_NS), entry("d/c", size=1, mtime_ns=DAY_NS),
        entry("d/gone", size=1, mtime_ns=DAY_NS), entry("e", DIRECTORY), entry("e/f", size=1),
        entry("l", GO_LINK | 0o777, link="a", mtime_ns=DAY_NS), entry("m", size=1, mtime_ns=DAY_NS),
    ]  # fmt: skip
    assert requests(
        take(
            tmp_path,
            [*first, END, *(x for n in (0, 1, 3, 4, 6, 8) for x in (data(n, b"1"), data(n)))],
        )
    ) == [0, 1, 3, 4, 6, 8]
    second = [
        entry("a", size=1, mtime_ns=DAY_NS),  # as it was
        entry("b", size=1, mtime_ns=DAY_NS + 1),  # another time
        entry("d", DIRECTORY, mtime_ns=DAY_NS), entry("d/c", size=2, mtime_ns=DAY_NS),  # another size
        entry("e", size=1),  # a directory became a file
        entry("l", GO_LINK | 0o777, link="b", mtime_ns=DAY_NS),  # another target
        entry("m", 0o600, size=1, mtime_ns=DAY_NS),  # another mode
    ]  # fmt: skip
    sent = [x for n in (1, 3, 4, 6) for x in (data(n, b"22"), data(n))]
    assert requests(take(tmp_path, [*second, END, *sent], again=True)) == [1, 3, 4, 6]
    found = {path: content for path, (_, _, content) in tree(tmp_path).items()}
    assert found == {
        "a": b"1",
        "b": b"22",
        "d": None,
        "d/c": b"22",
        "e": b"22",
        "l": "b",
        "m": b"22",
    }
    assert (tmp_path / "d").stat().st_mtime_ns == DAY_NS


@pytest.mark.parametrize(
    "messages",
    [
        [entry("l", GO_LINK | 0o777, link="/etc", mtime_ns=1), entry("l/passwd")],
        [entry("f", size=1, mtime_ns=1), entry("f", size=1, mtime_ns=1)],
        [entry("f", size=2), entry("f", size=2)],
        [entry("l", DIRECTORY), entry("l/f"), entry("l", GO_LINK | 0o777, link="/etc")],
    ],
)
def test_a_kept_directory_opens_no_way_out(tmp_path: Path, messages: list[bytes]) -> None:
    kept = [entry("f", size=1, mtime_ns=1), entry("l", GO_LINK | 0o777, link="/etc", mtime_ns=1)]
    take(tmp_path, [*kept, END, data(0, b"1"), data(0)])
    with pytest.raises(TransferFault):
        take(tmp_path, messages, again=True)


def test_an_empty_directory_ends_at_once(tmp_path: Path) -> None:
    assert [a.type for a in take(tmp_path, [END])] == [m.PACKET_FIN]


@pytest.mark.parametrize(
    "messages",
    [
        [entry("../f")],
        [entry("/etc/f")],
        [entry("a//b")],
        [entry("")],
        [entry("a/./b")],
        [entry("a\0b")],
        [entry("no/such/directory")],
        [entry("f"), entry("f")],
        [entry("d", DIRECTORY), entry("d", DIRECTORY)],
        [entry("f"), entry("f/below")],
        [entry("l", GO_LINK | 0o777, link="/etc"), entry("l/passwd")],
        [entry("l", GO_LINK | 0o777, link="/etc"), entry("l", DIRECTORY)],
        [entry("h", link="../outside")],
        [entry("h", link="nothing")],
        [entry("l", GO_LINK | 0o777, link="/etc"), entry("h", link="l/passwd")],
        [entry("/".join("d" * 300))],
        [data(0, b"unasked")],
        [entry("d", DIRECTORY), data(0, b"a directory has none")],
        [entry("f"), data(0), data(0, b"after its end")],
        [END, entry("late")],
        [END, END],
        [entry("f"), END, FIN],
        [encode(m.Packet(type=m.PACKET_REQUEST, id=1))],
        [encode(m.Packet(type=m.PACKET_ERROR, data=b"lost my disk"))],
        [encode(m.Packet(type=99))],
        [*(entry(f"f{n:03}") for n in range(100)), *(data(n, b"x") for n in range(100))],
    ],
)
def test_a_sender_that_does_wrong_is_refused(tmp_path: Path, messages: list[bytes]) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside").write_text("kept")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransferFault):
        take(inside, messages)
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]
    assert (tmp_path / "outside").read_text() == "kept"


def test_devices_and_sockets_are_passed_over(tmp_path: Path) -> None:
    device = entry("null", 1 << 26 | 1 << 21 | 0o666, major=1, minor=3)
    assert [a.type for a in take(tmp_path, [device, entry("s", 1 << 24), END])] == [m.PACKET_FIN]
    assert not list(tmp_path.iterdir())


def test_a_sender_that_leaves_is_a_failure(tmp_path: Path) -> None:
    async def leave(stream: Stream) -> None:
        await stream.send(entry("f"))

    async def scenario() -> None:
        root = os.open(tmp_path, os.O_RDONLY)
        try:
            async with joined(leave) as (caller, _):
                with pytest.raises(GrpcError):
                    await filesync.receive(
                        caller.open("/x"), Receiver(root), run_here, lambda _: None
                    )
        finally:
            os.close(root)

    asyncio.run(scenario())


def test_a_receiver_that_asks_for_nonsense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    faults: list[BaseException] = []

    async def give(stream: Stream) -> None:
        root = os.open(tmp_path, os.O_RDONLY)
        try:
            await filesync.send(stream, {"": root}, run_here)
        except TransferFault as fault:
            faults.append(fault)
        finally:
            os.close(root)

    async def scenario() -> None:
        async with joined(give) as (caller, _):
            stream = caller.open("/x")
            await stream.send(encode(m.Packet(type=m.PACKET_REQUEST, id=77)))
            with pytest.raises(GrpcError):
                while await stream.receive() is not None:
                    continue

    asyncio.run(scenario())
    assert "invalid file id 77" in str(faults[0])
