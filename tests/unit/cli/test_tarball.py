"""Tar streams on the client's side: nothing is lost between pieces, whatever their size."""

from __future__ import annotations

import io
import tarfile

import pytest

from sampan.cli import tarball


@pytest.mark.parametrize("size", [1, 100, 512, 513, 1000, 1 << 16])
def test_members_come_whole_from_pieces_of_any_size(size: int) -> None:
    contents = {f"f{n}": bytes([n]) * (n * 511) for n in range(8)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    raw = packed.getvalue()
    reader = tarball.Reader(raw[at : at + size] for at in range(0, len(raw), size))
    assert {entry.name: b"".join(reader.data()) for entry in reader} == contents
