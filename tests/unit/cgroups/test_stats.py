"""Parsers of cgroup files, and Stats read from whole directories."""

from __future__ import annotations

from pathlib import Path

from sampan.cgroups import stats as s
from sampan.cgroups import v1_stats, v2_stats


def fill(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_numbers() -> None:
    assert s.parse_int("42\n") == 42
    assert s.parse_int("max\n") == s.UNLIMITED
    assert s.parse_int("9223372036854771712\n") == s.UNLIMITED
    assert s.parse_int("-1\n") == s.UNLIMITED
    assert s.parse_int("") == s.parse_int("²") == s.parse_int("x") == 0


def test_flat_lines_skip_what_is_no_number() -> None:
    assert s.parse_flat("a 1\nb 2\nc max\n\nd\n") == {"a": 1, "b": 2}


def test_blkio_tables_leave_the_total_out() -> None:
    entries = s.parse_blkio_v1("8:0 Read 100\n8:0 Write 5\n8:0 Total 105\nTotal 105\n254:1 7\n")
    assert [entry.as_dict() for entry in entries] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 100},
        {"major": 8, "minor": 0, "op": "Write", "value": 5},
        {"major": 8, "minor": 0, "op": "Total", "value": 105},
        {"major": 254, "minor": 1, "op": "", "value": 7},
    ]


def test_io_stat_becomes_v1s_tables() -> None:
    tables = s.parse_io_stat(
        "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \nbad line\n"
    )
    found = {name: [(row.op, row.value) for row in rows] for name, rows in tables.items()}
    assert found == {
        "io_service_bytes_recursive": [("read", 1), ("write", 2), ("discard", 0)],
        "io_serviced_recursive": [("read", 3), ("write", 4), ("discard", 0)],
    }


def test_pressure() -> None:
    text = "some avg10=1.50 avg60=0.30 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    pressure = s.parse_pressure(text)
    assert pressure is not None
    assert (pressure.some["avg10"], pressure.full["total"]) == (1.5, 7)
    assert s.parse_pressure("") is None


def test_rdma() -> None:
    assert s.parse_rdma("mlx5_0 hca_handle=2 hca_object=max\n") == {
        "mlx5_0": {"hca_handle": 2, "hca_object": s.UNLIMITED}
    }


def test_v1_directories(tmp_path: Path) -> None:
    fill(tmp_path / "cpu", {"cpu.stat": "nr_periods 4\nnr_throttled 2\nthrottled_time 99\n"})
    fill(
        tmp_path / "cpuacct",
        {
            "cpuacct.usage": "1000\n",
            "cpuacct.usage_percpu": "600 400 \n",
            "cpuacct.stat": "user 3\nsystem 1\n",
            "cpuacct.usage_all": "cpu user system\n0 500 100\n1 300 100\n",
        },
    )
    fill(
        tmp_path / "memory",
        {
            "memory.usage_in_bytes": "4096\n",
            "memory.max_usage_in_bytes": "8192\n",
            "memory.failcnt": "1\n",
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.stat": "cache 100\nrss 5\ntotal_inactive_file 40\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        },
    )
    fill(tmp_path / "pids", {"pids.current": "7\n", "pids.max": "max\n"})
    fill(tmp_path / "blkio", {"blkio.throttle.io_serviced_recursive": "8:0 Read 1\nTotal 1\n"})
    fill(
        tmp_path / "hugetlb",
        {"hugetlb.2MB.usage_in_bytes": "2097152", "hugetlb.2MB.rsvd.usage_in_bytes": "0"},
    )

    def directory(controller: str) -> str:
        path = tmp_path / controller
        return str(path) if path.exists() else ""

    found = v1_stats.read_stats(directory, "")
    assert (found.cpu_total, found.cpu_percpu) == (1000, [600, 400])
    assert (found.cpu_percpu_user, found.cpu_percpu_kernel) == ([500, 300], [100, 100])
    assert found.cpu_user == 3 * v1_stats.TICK
    assert (found.periods, found.throttled, found.throttled_time) == (4, 2, 99)
    assert found.memory.as_dict() == {
        "limit": s.UNLIMITED,
        "usage": 4096,
        "max": 8192,
        "failcnt": 1,
    }
    assert (found.cache, found.inactive_file) == (100, 40)
    assert found.memory_events["oom_kill"] == 3
    assert (found.pids, found.pids_limit) == (7, s.UNLIMITED)
    assert found.blkio["io_serviced_recursive"][0].value == 1
    assert list(found.hugetlb) == ["2MB"]


def test_v2_directory(tmp_path: Path) -> None:
    directory = fill(
        tmp_path / "c",
        {
            "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 1\nthrottled_usec 2\n",
            "memory.current": "4096\n",
            "memory.peak": "8192\n",
            "memory.max": "1048576\n",
            "memory.swap.current": "100\n",
            "memory.swap.max": "1000\n",
            "memory.stat": "anon 5\nfile 77\ninactive_file 11\n",
            "memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n",
            "pids.current": "2\n",
            "pids.max": "max\n",
            "io.stat": "8:0 rbytes=5\n",
            "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
            "hugetlb.2MB.current": "0\n",
            "hugetlb.2MB.max": "max\n",
            "hugetlb.2MB.events": "max 4\n",
        },
    )
    found = v2_stats.read_stats(str(directory))
    assert (found.cpu_total, found.cpu_user, found.cpu_kernel, found.throttled_time) == (
        10000,
        6000,
        4000,
        2000,
    )
    assert found.memory.as_dict() == {"limit": 1048576, "usage": 4096, "max": 8192, "failcnt": 9}
    assert (found.memory_swap.usage, found.memory_swap.limit) == (4196, 1049576)
    assert (found.cache, found.inactive_file) == (77, 11)
    assert found.hugetlb["2MB"].failcnt == 4
    assert "memory" in found.pressure


def test_a_cgroup_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    assert v2_stats.read_stats(str(tmp_path / "gone")).memory.usage == 0
    assert v1_stats.read_stats(lambda controller: "", "").cpu_total == 0
