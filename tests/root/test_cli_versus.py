"""The two clients side by side on one engine: what `docker` says and how it ends, `sampan` says too, byte for byte.

Only the program's name differs. Commands that change something are undone between the two.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.conftest import require
from tests.support.engine import REPOSITORY, EngineProcess

pytestmark = [pytest.mark.root, pytest.mark.peer]
SAMPAN = str(REPOSITORY / "sampan")

READING = """
ps -a --no-trunc --format {{.Names}};{{.Image}};{{.Command}};{{.Ports}};{{.Labels}};{{.Mounts}};{{.LocalVolumes}};{{.Networks}}
ps --format json
ps -s --format table {{.ID}}\\t{{.Size}}
ps --filter label=a=b -q
ps --filter nosuch=x
ps --filter foo
ps --format {{.Foo}}
ps --format {{.ID
images
images --digests
images --no-trunc -q
images busybox
images ls
images --format {{.Repository}}:{{.Tag}}|{{.Size}}|{{.CreatedAt}}
history busybox
history --no-trunc -H=false busybox
network ls
network ls --no-trunc --format {{json .}}
network inspect bridge
network inspect -f {{range\\ .IPAM.Config}}{{.Subnet}}{{end}} bridge
volume ls
volume inspect nosuch
inspect shown
inspect -s shown
inspect -f json shown
inspect shown bridge busybox
inspect -f {{.Id}}|{{.ID}}|{{.State.Status}}|{{.HostConfig.Memory}}|{{json\\ .Config.Labels}} shown
inspect -f {{.HostConfig.PortBindings}}{{.Mounts}}{{.Config.Env}} shown
inspect -f {{range\\ $k,\\ $v\\ :=\\ .NetworkSettings.Ports}}{{$k}}{{end}} shown
inspect -f {{.Nope}} shown
inspect -f {{json\\ .}} shown
inspect -f {{json.}} shown
inspect -f {{range$k}} shown
inspect --type image busybox
inspect --type foo busybox
inspect nosuch
container inspect nosuch
port shown
port shown 80
port shown 99
port shown x
top shown
top shown -o pid,args
logs shown
logs --tail 1 shown
logs --since foo shown
logs nosuch
diff shown
events --since 1 --until 2
events --since foo
events --format {{.Foo}}
version -f {{.Server.Version}}
info -f {{.Driver}}|{{.NCPU}}|{{json\\ .SecurityOptions}}|{{.Plugins.Network}}|{{json.X}}
search x --limit nope
context show
plugin ls
cp shown:/nosuch .
cp shown:/x shown:/y
cp a b
cp shown:/etc/hostname -
export nosuch
save nosuch
load -i /nosuch
import /nosuch
tag nosuch x
tag busybox UPPER
commit nosuch x
attach nosuch
wait nosuch
start nosuch
stop nosuch
kill nosuch
kill -s NOSUCH shown
pause nosuch
unpause shown
rename nosuch x
rename shown
restart nosuch
rm nosuch
rm -f nosuch
rm shown
rmi nosuch
rmi -f nosuch
rmi busybox
exec nosuch true
exec shown nosuch
exec shown sh -c exit\\ 7
exec shown echo hi
exec -it shown true
update shown
update --memory 1 shown
network rm bridge
network create --subnet foo x1
network create --subnet 10.1.0.0/24 --gateway 10.2.0.1 x1
network connect nosuch shown
network disconnect nosuch shown
volume rm nosuch
pull UPPER
pull a b
pull -a busybox:x
run
run --nosuch busybox
run -m abc busybox
run -m 1 busybox
run --cpus 1.0000000001 busybox
run --rm --restart always busybox
run --pull foo busybox
run --pull never nosuch:x
run -p x busybox
run -v a:b:c:d busybox
run --mount foo busybox
run --mount type=bind,src=/nosuch,dst=/x busybox true
run --network nosuch busybox true
run --user nosuch busybox true
run -w relative busybox true
run --env-file /nosuch busybox
run --ulimit x=1 busybox
run --security-opt x busybox
run -a foo busybox
run -it busybox true
run --rm busybox nosuch
run --rm busybox sh -c echo\\ out;echo\\ err>&2;exit\\ 9
run --name shown busybox
run --name !! busybox
create --foo busybox
build nosuch
run -v :/b busybox
run -v /a:/b:ro:x busybox
run -v a:b:c:d:e busybox
run BUSYBOX true
run --cidfile /nosuch/x busybox true
save -o /nosuch/x busybox
export -o /nosuch/x shown
logout nosuch.example
swarm init
swarm join-token worker
swarm unlock-key
node ls
service ls
stack ls
secret ls
config ls
plugin rm nosuch
plugin enable nosuch
version --format {{.Nosuch}}
nosuch
container nosuch
network nosuch
"""
COMMANDS = [line.replace("\\ ", "\0") for line in READING.strip().split("\n")]


def said(program: str, words: list[str], engine: EngineProcess) -> tuple[int, str, str]:
    done = subprocess.run(
        [program, *words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=engine.environment,
        timeout=60,
        check=False,
    )
    texts = [
        text.decode(errors="replace").replace("Docker", "Sampan").replace("docker", "sampan")
        for text in (done.stdout, done.stderr)
    ]
    if words[0] == "build":  # docker's advertisement for its other builder
        texts[1] = texts[1][texts[1].index("unable") :]
    return done.returncode, texts[0], texts[1]


def words_of(line: str) -> list[str]:
    return [word.replace("\0", " ") for word in line.split(" ")]


def test_both_clients_say_the_same(engine: EngineProcess) -> None:
    require(shutil.which("docker") is not None, "needs the docker CLI")
    engine.docker(
        "run", "-d", "--name", "shown", "-m", "64m", "-l", "a=b", "-l", "c=d e", "-p", "127.0.0.1:18080:80", "-v", "/tmp:/x:ro",
        "-e", "A=1", "busybox", "sh", "-c", "echo one; echo two >&2; exec sleep 1000",
    )  # fmt: skip
    differences = []
    for line in COMMANDS:
        words = words_of(line)
        if words[0] == "ps" and "table" in words:
            at = words.index("table")
            words[at : at + 2] = [" ".join(words[at : at + 2])]
        theirs, ours = said("docker", words, engine), said(SAMPAN, words, engine)
        if ours != theirs:  # perhaps a second passed in between
            theirs, ours = said("docker", words, engine), said(SAMPAN, words, engine)
        if ours != theirs:
            differences.append(f"{' '.join(words)}\n  docker {theirs}\n  sampan {ours}")
    assert not differences, "\n".join(differences)
