"""Make an environment and put the package's dependencies into it: bootstrap.py CLONE CLONE/.venv [EXTRA...].

The environment of somebody else's clone is made in the user's cache (scripts/bootstrap.sh).

Run by any Python >= 3.11 through scripts/bootstrap.sh. Quiet when it works. A lock beside the environment makes a
second first start wait for the first instead of spoiling its work; the kernel drops the lock with its process.

    .venv/                  the environment
    .venv/.sampan-base      stamp: the package's own dependencies are in
    .venv/.sampan-EXTRA     stamp: the extra's too
    .venv.lock              held while somebody installs
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

NO_VENV_HINT = (
    "(install what Python needs to make an environment, for instance: apt-get install python3-venv)"
)
OWNER_HINT = "(start it once as the owner of the clone, or make a clone of your own)"


class Failed(Exception):
    """A step went wrong; the message holds what the tool said."""


def requirements(clone: Path, extras: list[str]) -> list[str]:
    project = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return wanted


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words[:6])} ...\n{(done.stdout + done.stderr).strip()}")


def works(python: Path) -> bool:
    """The interpreter starts, is new enough, and its site-packages are those of its version."""
    if not os.access(python, os.X_OK):
        return False
    probe = "import os,sys,sysconfig as s; sys.exit(sys.version_info<(3,11) or not os.path.isdir(s.get_path('purelib')))"
    return (
        subprocess.run([python, "-I", "-c", probe], capture_output=True, check=False).returncode
        == 0
    )


def make_environment(directory: Path) -> None:
    """With the venv module; without its pip where Debian took ensurepip out; else with uv or virtualenv."""
    attempts: list[list[str]] = [
        [sys.executable, "-m", "venv", "--clear", str(directory)],
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)],
        ["uv", "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(directory)],
        ["virtualenv", "--quiet", "--python", sys.executable, str(directory)],
    ]
    said = ""
    for command in attempts:
        if shutil.which(command[0]) is None:
            continue
        try:
            run(*command)
        except Failed as failure:
            said = said or str(failure)
            continue
        if works(directory / "bin" / "python"):
            return
    raise Failed(f"could not make {directory}: {said}\n{NO_VENV_HINT}")


def install(directory: Path, wanted: list[str]) -> None:
    """With the environment's own pip, else with another one that can install across (pip --python, uv)."""
    python = directory / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-warn-script-location"]
    attempts = [
        [str(python), "-m", "pip", "install", *quiet, *wanted],
        [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, *wanted],
        ["uv", "pip", "install", "--quiet", "--python", str(python), *wanted],
    ]
    said = ""
    for command in attempts:
        if shutil.which(command[0]) is None:
            continue
        has_pip = "-m" not in command or not subprocess.call(
            [command[0], "-m", "pip", "--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if not has_pip:
            continue
        try:
            run(*command)
            return
        except Failed as failure:
            said = str(failure)
    raise Failed(f"could not install {', '.join(wanted)}: {said or 'no pip found'}\n{NO_VENV_HINT}")


def main(clone: Path, directory: Path, extras: list[str]) -> None:
    pyproject = (clone / "pyproject.toml").stat().st_mtime
    stamps = [directory / f".sampan-{name}" for name in ("base", *extras)]
    try:
        if directory.parent.resolve() != clone.resolve():
            if not directory.exists():
                print(
                    f"sampan: {clone} is not yours to change: making {directory}, once",
                    file=sys.stderr,
                )
            directory.parent.mkdir(parents=True, exist_ok=True)
        lock = directory.with_name(".venv.lock").open("w")
    except OSError as error:
        if all(stamp.exists() for stamp in stamps) and works(directory / "bin" / "python"):
            return  # another user's clone: what its owner installed will do
        raise Failed(f"cannot make {directory}: {error.strerror}\n{OWNER_HINT}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        usable = works(directory / "bin" / "python")
        if usable and all(s.exists() and s.stat().st_mtime >= pyproject for s in stamps):
            return  # the one who held the lock before us did it
        if not usable:
            make_environment(directory)
        install(directory, requirements(clone, extras))
        for stamp in stamps:
            stamp.touch()
            if (
                pyproject > stamp.stat().st_mtime
            ):  # a clock that was wrong must not make every start install
                os.utime(stamp, (pyproject, pyproject))


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every start compiles the packages anew
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except (Failed, OSError) as failure:
        sys.exit(f"sampan: {failure}")
