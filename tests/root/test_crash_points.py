"""Reliability R2: the engine is killed at every step of every verb; the next one repairs, and nothing is lost or left.

For each scenario the steps are counted once, untouched. Then an engine is killed at the first, the second, ... of them;
after each kill another starts, and must find the container that ran before, hold nothing half made that cannot be
removed, and carry the whole scenario through. A run of the suite takes some of the points, spread evenly;
`pytest tests/root/test_crash_points.py --every-crash-point` takes all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.census import Census
from tests.support.client import Client, EngineGone
from tests.support.crashing import Countdown
from tests.support.engine import EngineProcess
from tests.support.images import PATH
from tests.support.oci import TestImage, docker_archive, tar_bytes
from tests.support.registry import FakeRegistry

POINTS = 4  # of each scenario, unless all are asked for
STEADY = "steady"


class CrashingEngine(EngineProcess):
    """An engine with a countdown, and one container that must never notice."""

    def __init__(self, base: Path, *flags: str) -> None:
        super().__init__(base, *flags)
        base.mkdir(parents=True, exist_ok=True)
        self.countdown = Countdown(base / "countdown")
        self.program = ("-m", "tests.support.crashing", str(base / "countdown"))
        self.client = Client(self.socket)
        self.registry = ""
        self.steady_pid = 0

    def prepare(self, busybox: bytes) -> None:
        self.start()
        self.client.do("POST", "/images/load", busybox, content_type="application/x-tar")
        self.client.do("POST", "/containers/create", container("busybox"), name=STEADY)
        self.client.do("POST", f"/containers/{STEADY}/start")
        self.steady_pid = self.client.do("GET", f"/containers/{STEADY}/json")["State"]["Pid"]

    def revive(self) -> None:
        """After a kill: another engine."""
        assert self.process is not None
        self.process.wait()
        self.countdown.left = 0
        self.start()


def container(image: str, **host: object) -> dict[str, object]:
    return {"Image": image, "Cmd": ["sleep", "1000"], "StopSignal": "KILL", "HostConfig": host}


Scenario = Callable[[CrashingEngine], None]


def lifecycle(engine: CrashingEngine) -> None:
    do = engine.client.do
    wish = container("busybox", PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]})
    do("POST", "/containers/create", wish | {"Volumes": {"/data": {}}}, name="victim")
    do("POST", "/containers/victim/start")
    do("POST", "/containers/victim/stop", t=0)
    do("DELETE", "/containers/victim", v=1)


def changes(engine: CrashingEngine) -> None:
    do = engine.client.do
    do("POST", "/containers/create", container("busybox"), name="victim")
    do("POST", "/containers/victim/start")
    do("POST", "/containers/victim/pause")
    do("POST", "/containers/victim/unpause")
    do("POST", "/containers/victim/update", {"Memory": 64 << 20, "MemorySwap": 64 << 20})
    do("POST", "/containers/victim/rename", name="victim-2")
    do("POST", "/containers/victim-2/restart", t=0)
    session = do("POST", "/containers/victim-2/exec", {"Cmd": ["true"]})["Id"]
    do("POST", f"/exec/{session}/start", {"Detach": True})
    do(
        "PUT",
        "/containers/victim-2/archive",
        tar_bytes({"f": b"x"}),
        content_type="application/x-tar",
        path="/",
    )
    do("DELETE", "/containers/victim-2", force=1)


def auto_remove(engine: CrashingEngine) -> None:
    do = engine.client.do
    wish = container("busybox", AutoRemove=True) | {"Cmd": ["true"]}
    do("POST", "/containers/create", wish, name="victim")
    do("POST", "/containers/victim/start")
    engine.client.ask("POST", "/containers/victim/wait", condition="removed")


def networks(engine: CrashingEngine) -> None:
    do = engine.client.do
    do("POST", "/networks/create", {"Name": "victim"})
    do("POST", "/containers/create", container("busybox", NetworkMode="victim"), name="victim")
    do("POST", "/containers/victim/start")
    do("POST", "/networks/bridge/connect", {"Container": "victim"})
    do("POST", "/networks/victim/disconnect", {"Container": "victim"})
    do("DELETE", "/containers/victim", force=1)
    do("DELETE", "/networks/victim")


def volumes(engine: CrashingEngine) -> None:
    do = engine.client.do
    do("POST", "/volumes/create", {"Name": "victim"})
    do("POST", "/containers/create", container("busybox", Binds=["victim:/etc"]), name="victim")
    do("POST", "/containers/victim/start")
    do("DELETE", "/containers/victim", force=1)
    do("DELETE", "/volumes/victim")
    do("POST", "/volumes/create", {"Name": "victim"})
    do("POST", "/volumes/prune", filters={"all": ["true"]})


LAYERS = TestImage([tar_bytes({"etc/": b"", "etc/one": b"1"}), tar_bytes({"two": b"2" * 70_000})])


def load_and_remove(engine: CrashingEngine) -> None:
    do = engine.client.do
    archive = docker_archive((LAYERS, ["victim:1"]))
    do("POST", "/images/load", archive, content_type="application/x-tar")
    do("POST", "/images/victim:1/tag", repo="victim", tag="2")
    do("DELETE", "/images/victim:1")
    do("DELETE", "/images/victim:2")


def pull(engine: CrashingEngine) -> None:
    engine.client.do("POST", "/images/create", fromImage=f"{engine.registry}/victim", tag="1")
    engine.client.do("DELETE", f"/images/{engine.registry}/victim:1")


def commit(engine: CrashingEngine) -> None:
    do = engine.client.do
    do("POST", "/containers/create", container("busybox"), name="victim")
    do(
        "PUT",
        "/containers/victim/archive",
        tar_bytes({"f": b"x" * 9999}),
        content_type="application/x-tar",
        path="/",
    )
    do("POST", "/commit", {}, container="victim", repo="victim", tag="1")
    do("DELETE", "/containers/victim")
    do("DELETE", "/images/victim:1")


def build(engine: CrashingEngine) -> None:
    do = engine.client.do
    steps = b'FROM busybox\nCOPY f /f\nRUN echo hi > /g\nENV A=b\nCMD ["sh"]\n'
    context = tar_bytes({"Dockerfile": steps, "f": b"1"})
    do("POST", "/build", context, content_type="application/x-tar", t="victim:1", version="1")
    do("DELETE", "/images/victim:1")
    do("POST", "/build/prune", all="true")


def prune(engine: CrashingEngine) -> None:
    do = engine.client.do
    do(
        "POST",
        "/images/load",
        docker_archive((LAYERS, ["victim:1"])),
        content_type="application/x-tar",
    )
    do("POST", "/containers/create", container("victim:1"), name="victim")
    do("POST", "/networks/create", {"Name": "victim"})
    do("POST", "/containers/prune")
    do("POST", "/networks/prune")
    do("POST", "/images/prune", filters={"dangling": ["false"]})


SCENARIOS = (
    lifecycle, changes, auto_remove, networks, volumes, load_and_remove, pull, commit, build, prune,
)  # fmt: skip


# -- what must hold ---------------------------------------------------------------------------------


def clean(engine: CrashingEngine) -> None:
    """Whatever a crash left is there to be seen and removed, by the usual verbs."""
    ask, do = engine.client.ask, engine.client.do
    for found in do("GET", "/containers/json", all=1):
        if f"/{STEADY}" not in found["Names"]:
            answer = ask("DELETE", f"/containers/{found['Id']}", force=1, v=1)
            assert answer.status in (204, 404), answer.body
    for image in do("GET", "/images/json"):
        for name in [tag for tag in image["RepoTags"] or () if "victim" in tag]:
            do("DELETE", f"/images/{name}")
    for kind in ("networks", "volumes"):
        answer = ask("DELETE", f"/{kind}/victim")
        assert answer.status in (204, 404), answer.body
    do("POST", "/volumes/prune", filters={"all": ["true"]})
    do("POST", "/build/prune", all="true")
    do("POST", "/images/prune", filters={"dangling": ["true"]})


def holdings(engine: CrashingEngine) -> set[str]:
    """Every object on disk, by name; contents of layers and databases are not looked into."""
    found = set()
    roots = ("containers", "volumes", "snapshots", "images")
    for top in [engine.root / name for name in roots] + [engine.run / "containers"]:
        for folder, folders, files in os.walk(top):
            depth = len(Path(folder).relative_to(top).parts)
            found |= {os.path.join(folder, name) for name in (*files, *folders) if depth < 3}
            if depth >= 2:
                folders.clear()
    return {path for path in found if not path.endswith(("-wal", "-shm", "-json.log"))}


def helpers(engine: CrashingEngine) -> int:
    """Launchers, shims and keepers; spare shims are made anew after every start, so only their number tells."""
    mark, found = str(engine.run).encode(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            found += mark in command and b"tests.support.crashing" not in command
    return found


def settles(holds: Callable[[], bool], patience_s: float = 20) -> bool:
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def complaints(engine: CrashingEngine, since: int) -> str:
    """Tracebacks and errors that an engine logged."""
    text = (engine.base / "log").read_bytes()[since:].decode(errors="replace")
    lines = [line for line in text.splitlines() if "Traceback" in line or " ERROR " in line]
    return text if lines else ""


@pytest.fixture
def crashing(tmp_path: Path, busybox_tar: Path) -> Iterator[CrashingEngine]:
    with FakeRegistry() as registry:
        registry.add("victim", "1", LAYERS)
        engine = CrashingEngine(tmp_path, "--insecure-registry", registry.host)
        engine.registry = registry.host
        busybox = TestImage([busybox_tar.read_bytes()], config={"Env": [PATH]})
        engine.prepare(docker_archive((busybox, ["busybox:latest"])))
        yield engine
        engine.countdown.left = 0
        if engine.process is not None and engine.process.poll() is not None:
            engine.start()
        engine.stop()


def count(engine: CrashingEngine, scenario: Scenario) -> int:
    """How many steps the scenario takes when nothing happens to it."""
    engine.countdown.left = start = 1_000_000
    scenario(engine)
    steps = start - engine.countdown.left
    engine.countdown.left = 0
    return steps


def crash_at(engine: CrashingEngine, scenario: Scenario, point: int) -> bool:
    """Whether the engine died on the way."""
    engine.countdown.left = point
    try:
        scenario(engine)
        # What goes on behind the last answer counts too; a step that was being counted may undo one of these.
        while engine.countdown.left:
            engine.countdown.left = 0
            engine.client.ask("GET", "/_ping")
    except EngineGone:
        engine.revive()
        return True
    return False


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_crash_at_any_step_is_repaired(
    crashing: CrashingEngine, scenario: Scenario, request: pytest.FixtureRequest
) -> None:
    engine = crashing
    scenario(engine)  # what is made once for an engine is made
    clean(engine)
    census = Census(
        str(engine.base / "run"), cgroup_prefix=engine.cgroup_parent, bridge=engine.bridge
    )
    steps = count(engine, scenario)
    clean(engine)
    assert settles(lambda: len(os.listdir(engine.root / "containers")) == 1)
    before, standing = holdings(engine), helpers(engine)
    every = request.config.getoption("--every-crash-point")
    stride = 1 if every else max(1, steps // POINTS)
    crashes = 0
    for point in range(1 + (0 if every else stride // 2), steps + 1, stride):
        said = (engine.base / "log").stat().st_size
        where = f"{scenario.__name__}, step {point} of {steps}"
        crashes += crash_at(engine, scenario, point)
        steady = engine.client.do("GET", f"/containers/{STEADY}/json")["State"]
        assert (steady["Pid"], steady["Running"]) == (engine.steady_pid, True), where
        clean(engine)
        scenario(engine)
        clean(engine)
        assert not complaints(engine, said), f"{where}\n{complaints(engine, said)}"
        left = [line for line in census.left_behind() if not line.startswith("process")]
        assert not left, f"{where}\n" + "\n".join(left)
        assert settles(lambda: helpers(engine) <= standing), where
        settled = settles(
            lambda: holdings(engine) == before
        )  # the last removals are not waited for
        assert settled, f"{where}\n" + "\n".join(sorted(holdings(engine) ^ before))
    assert crashes
    print(json.dumps({"scenario": scenario.__name__, "steps": steps, "crashes": crashes}))


def leave_in_disorder(engine: CrashingEngine) -> None:
    """Containers to restart, to remove and to finish, and then the engine dies."""
    do = engine.client.do
    do("POST", "/containers/create", container("busybox", AutoRemove=True), name="victim-1")
    do("POST", "/containers/victim-1/start")
    again = container("busybox", RestartPolicy={"Name": "always", "MaximumRetryCount": 0})
    do("POST", "/containers/create", again, name="victim-2")
    do("POST", "/containers/victim-2/start")
    do("POST", "/containers/create", container("busybox"), name="victim-3")
    pids = [
        do("GET", f"/containers/{name}/json")["State"]["Pid"] for name in ("victim-1", "victim-2")
    ]
    crash_at(engine, lambda engine: do("POST", "/containers/victim-3/start"), 25)
    engine.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_crash_at_any_step_of_a_start_is_repaired_by_the_next(
    crashing: CrashingEngine, request: pytest.FixtureRequest
) -> None:
    engine = crashing
    clean(engine)
    census = Census(str(engine.run), cgroup_prefix=engine.cgroup_parent, bridge=engine.bridge)
    before, standing = holdings(engine), helpers(engine)
    leave_in_disorder(engine)
    engine.countdown.left = beginning = 1_000_000
    engine.start()
    engine.client.do("GET", "/_ping")
    steps = beginning - engine.countdown.left
    engine.countdown.left = 0
    clean(engine)
    stride = 1 if request.config.getoption("--every-crash-point") else max(1, steps // POINTS)
    crashes = 0
    for point in range(1 + stride // 2, steps + 1, stride):
        where = f"step {point} of {steps} of a start"
        leave_in_disorder(engine)
        engine.countdown.left = point
        try:
            engine.start()
            engine.client.do("GET", "/_ping")
        except (AssertionError, EngineGone):
            crashes += 1
        engine.countdown.left = 0
        engine.kill()
        engine.start()
        steady = engine.client.do("GET", f"/containers/{STEADY}/json")["State"]
        assert (steady["Pid"], steady["Running"]) == (engine.steady_pid, True), where
        assert settles(lambda: is_running(engine, "victim-2")), where
        clean(engine)
        settled = settles(lambda: holdings(engine) == before)
        assert settled, f"{where}\n" + "\n".join(sorted(holdings(engine) ^ before))
        left = [line for line in census.left_behind() if not line.startswith("process")]
        assert not left, f"{where}\n" + "\n".join(left)
        assert settles(lambda: helpers(engine) <= standing), where
    assert crashes


def is_running(engine: CrashingEngine, name: str) -> bool:
    answer = engine.client.ask("GET", f"/containers/{name}/json")
    return answer.status == 200 and bool(answer.json["State"]["Running"])
