"""Subordinate ids and the maps made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sampan import rootless


def test_every_line_of_the_user_counts_and_nobody_else_s(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text(
        "ann:100000:65536\nbob:200000:10\n1000:300000:5\nann:x:1\nann:1:-1\nann:1\nann:²:3\n\n"
    )
    assert rootless.subordinate(file, ("1000", "ann")) == [(100000, 65536), (300000, 5)]


def test_no_file_grants_nothing(tmp_path: Path) -> None:
    assert rootless.subordinate(tmp_path / "none", ("ann",)) == []


@pytest.mark.parametrize("line", ["ann:4294967295:2", "ann:1:0", "ann:99999999999:1"])
def test_what_is_out_of_range_is_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "subuid"
    file.write_text(line + "\n")
    assert rootless.subordinate(file, ("ann",)) == []


def test_the_user_is_root_and_his_ids_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootless, "HELPERS", {"uid_map": ("/",), "gid_map": ("/",)})
    own = str(os.getuid())
    (tmp_path / "subuid").write_text(f"{own}:100000:65536\n{own}:500000:10\n")
    (tmp_path / "subgid").write_text(f"{own}:100000:65536\n")
    assert rootless.id_maps(os.getuid(), 7, str(tmp_path)) == (
        f"0 {own} 1\n1 100000 65536\n65537 500000 10\n".encode(),
        b"0 7 1\n1 100000 65536\n",
    )


@pytest.mark.parametrize("without", ["subuid", "subgid", "helpers"])
def test_without_them_there_is_one_id_and_a_word_about_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    without: str,
) -> None:
    present = ("/",) if without != "helpers" else ("/nonexistent/newuidmap",)
    monkeypatch.setattr(rootless, "HELPERS", {"uid_map": present, "gid_map": present})
    for name in {"subuid", "subgid"} - {without}:
        (tmp_path / name).write_text(f"{os.getuid()}:100000:65536\n")
    maps = rootless.id_maps(os.getuid(), 7, str(tmp_path))
    assert maps == (f"0 {os.getuid()} 1\n".encode(), b"0 7 1\n")
    assert "only one user and group id" in caplog.text


def test_a_thread_of_the_host_hands_back_results_and_errors() -> None:
    host = rootless.HostThread()
    assert host.call(os.getpid) == os.getpid()
    with pytest.raises(ZeroDivisionError):
        host.call(lambda: 1 // 0)
