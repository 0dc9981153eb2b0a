"""sampan-oci without root: a user namespace that maps the caller, no cgroup, and exec into it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.runtime.example import example_spec
from tests.conftest import require

REPOSITORY = Path(__file__).resolve().parents[2]
UID = 1000
PYTHON = "/usr/bin/python3"


@pytest.fixture
def home(busybox_tree: Path) -> Iterator[Path]:
    """A directory of the user's own with the program and a bundle: pytest's are closed to others."""
    require(shutil.which("setpriv") is not None, "needs setpriv (util-linux)")
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    require(
        os.path.exists(PYTHON) and subprocess.run([PYTHON, "-c", new_enough]).returncode == 0,
        "needs a system Python of 3.11 or newer, which another user may run",
    )
    base = Path(tempfile.mkdtemp(prefix="sampan-rootless-"))
    subprocess.run(["cp", "-a", str(busybox_tree), str(base / "rootfs")], check=True)
    shutil.copytree(REPOSITORY / "src", base / "src")
    (base / "scripts").mkdir()
    shutil.copy2(REPOSITORY / "scripts/sampan-oci", base / "scripts")
    subprocess.run(["chown", "-R", f"{UID}:{UID}", str(base)], check=True)
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


def run(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    drop = [
        "setpriv",
        f"--reuid={UID}",
        f"--regid={UID}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    command = [
        *drop,
        PYTHON,
        "-I",
        "-S",
        str(home / "scripts/sampan-oci"),
        "--root",
        str(home / "state"),
        *argv,
    ]
    with (home / "out").open("w+") as out, (home / "err").open("w+") as err:
        done = subprocess.run(
            command, cwd=home, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60
        )
    texts = [(home / name).read_text() for name in ("out", "err")]
    return subprocess.CompletedProcess(command, done.returncode, *texts)


def write_config(home: Path, *args: str) -> None:
    spec = example_spec(rootless=True)
    for which in ("uidMappings", "gidMappings"):
        spec["linux"][which] = [{"containerID": 0, "hostID": UID, "size": 1}]
    spec["process"].update({"terminal": False, "args": list(args)})
    (home / "config.json").write_text(json.dumps(spec))


def test_root_inside_is_the_caller_outside(home: Path) -> None:
    write_config(
        home, "sh", "-c", "id -u; cat /proc/self/uid_map; head -c1 /dev/zero | wc -c; exit 9"
    )
    result = run(home, "run", "c")
    assert (result.stdout.split(), result.returncode) == (["0", "0", str(UID), "1", "1"], 9), (
        result.stderr
    )


def test_exec_enters_the_user_namespace_first(home: Path) -> None:
    write_config(home, "sleep", "1000")
    assert run(home, "run", "-d", "c").returncode == 0, (home / "err").read_text()
    try:
        result = run(
            home,
            "exec",
            "c",
            "sh",
            "-c",
            "hostname; readlink /proc/self/ns/user; readlink /proc/1/ns/user; exit 4",
        )
        assert result.returncode == 4, result.stderr
        name, own, first = result.stdout.split()
        assert name == "sampan"
        assert own == first
    finally:
        assert run(home, "delete", "--force", "c").returncode == 0
