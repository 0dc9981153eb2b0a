from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sampan.errors import Internal, InvalidArgument, NotFound
from sampan.storage.blobs import BlobStore, digest_of, split_digest


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "images")


def in_the_making(store: BlobStore) -> list[str]:
    return os.listdir(Path(store.root, "ingest"))


HELLO = digest_of(b"hello")


def test_store_is_an_oci_image_layout(store: BlobStore) -> None:
    assert b'"imageLayoutVersion"' in Path(store.root, "oci-layout").read_bytes()
    assert b'"manifests":[]' in store.read_index()
    store.put(b"hello")
    assert Path(store.root, "blobs/sha256", HELLO[7:]).read_bytes() == b"hello"


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:../../../etc/passwd", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 65,
     "md5:" + "0" * 32, "sha256:" + "0" * 64 + "\n", "sha512:" + "0" * 64, "sha256:" + "٣" * 64],
)  # fmt: skip
def test_only_a_real_digest_becomes_a_path(store: BlobStore, digest: str) -> None:
    for use in (store.path, store.has, store.open, store.delete, split_digest):
        with pytest.raises(InvalidArgument):
            use(digest)


def test_wrong_digest_or_size_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(InvalidArgument, match="unexpected digest"):
        store.put(b"hello", digest=digest_of(b"other"))
    with pytest.raises(InvalidArgument, match="unexpected size"):
        store.copy_in([b"hel", b"lo"], digest=HELLO, size=6)
    with pytest.raises(InvalidArgument, match="more than the expected 3"):
        store.copy_in([b"hel", b"lo"], digest=HELLO, size=3)
    assert list(store.walk()) == []
    assert in_the_making(store) == []


def test_failing_source_leaves_nothing(store: BlobStore) -> None:
    def source() -> object:
        yield b"hel"
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        store.copy_in(source())  # type: ignore[arg-type]
    assert in_the_making(store) == []


def test_partial_download_is_resumed_and_verified(store: BlobStore) -> None:
    with store.resume(HELLO) as first:
        first.write(b"hel")
    with store.resume(HELLO) as second:
        assert second.offset == 3
        second.write(b"lo")
        assert second.commit(HELLO, 5).digest == HELLO
    assert store.read(HELLO) == b"hello"
    assert in_the_making(store) == []


def test_partial_with_wrong_bytes_does_not_stay(store: BlobStore) -> None:
    with store.resume(HELLO) as first:
        first.write(b"hax")
    with store.resume(HELLO) as second:
        second.write(b"lo")
        with pytest.raises(InvalidArgument):
            second.commit(HELLO)
    with store.resume(HELLO) as third:
        assert third.offset == 0


def test_two_that_resume_one_blob_do_not_disturb_each_other(store: BlobStore) -> None:
    with store.resume(HELLO) as first, store.resume(HELLO) as second:
        first.write(b"hel")
        second.write(b"hello")
        second.commit(HELLO)
        first.write(b"lo")
        first.commit(HELLO)
    assert store.read(HELLO) == b"hello"
    assert in_the_making(store) == []


def test_one_blob_from_many_threads(store: BlobStore) -> None:
    data = os.urandom(100_000)
    barrier = threading.Barrier(8)

    def work() -> str:
        barrier.wait()
        return store.copy_in([data]).digest

    with ThreadPoolExecutor(8) as pool:
        assert {job.result() for job in [pool.submit(work) for _ in range(8)]} == {digest_of(data)}
    assert len(list(store.walk())) == 1
    assert in_the_making(store) == []


def test_reading_checks_limit_and_content(store: BlobStore) -> None:
    store.put(b"hello")
    with pytest.raises(InvalidArgument, match="larger than 4 bytes"):
        store.read(HELLO, limit=4)
    path = Path(store.path(HELLO))
    path.chmod(0o644)
    path.write_bytes(b"jello")
    with pytest.raises(Internal, match="damaged"):
        store.read(HELLO)
    with pytest.raises(NotFound):
        store.read(digest_of(b"nobody"))


def test_verify_finds_what_is_damaged_and_quarantine_makes_room(store: BlobStore) -> None:
    store.put(b"hello")
    store.put(b"fine")
    path = Path(store.path(HELLO))
    path.chmod(0o644)
    path.write_bytes(b"jello")
    [damage] = store.verify()
    assert (damage.digest, damage.found) == (HELLO, digest_of(b"jello"))
    store.quarantine(HELLO)
    assert not store.has(HELLO)
    store.put(b"hello")
    assert list(store.verify()) == []


def test_collection_keeps_roots_and_what_is_held(store: BlobStore) -> None:
    root, held, gone = (store.put(data).digest for data in (b"root", b"held", b"gone"))
    with store.lease() as lease:
        lease.hold(held)
        assert store.collect([root], dry_run=True).digests == [gone]
        assert store.has(gone)
        assert store.collect([root]) == ([gone], 4)
    assert store.collect([root]).digests == [held]
    assert store.has(root)


def test_lease_is_counted(store: BlobStore) -> None:
    digest = store.put(b"x").digest
    with store.lease() as one:
        one.hold(digest, digest)
        with store.lease() as two:
            two.hold(digest)
        assert store.collect([]).digests == []
    assert store.collect([]).digests == [digest]


def test_start_sweeps_temporary_files_and_keeps_partials(store: BlobStore) -> None:
    with store.resume(HELLO) as partial:
        partial.write(b"hel")
    crashed = store.ingest()
    crashed.write(b"lost")
    again = BlobStore(store.root)
    assert again.sweep() == 1
    assert [name for name in in_the_making(again) if name.endswith(".part")]
    assert again.sweep(partials_older_than_s=-1) == 1
    assert in_the_making(again) == []


def test_existing_blob_keeps_its_inode(store: BlobStore) -> None:
    """Snapshots share blobs by hard links: a second arrival must not replace the file."""
    store.put(b"hello")
    before = os.stat(store.path(HELLO)).st_ino
    store.put(b"hello")
    assert os.stat(store.path(HELLO)).st_ino == before


def test_sha512_has_its_own_directory(store: BlobStore) -> None:
    with store.ingest("sha512") as ingest:
        ingest.write(b"hello")
        blob = ingest.commit()
    assert blob.digest == "sha512:" + hashlib.sha512(b"hello").hexdigest()
    assert store.read(blob.digest) == b"hello"
