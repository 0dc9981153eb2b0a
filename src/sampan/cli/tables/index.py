"""Which words name which command, and which table module holds it. Read by every start, so names only."""

from __future__ import annotations

# First words that stand alone -> full path of the command.
TOP = {
    "__complete": "complete-words",
    "attach": "container attach", "build": "image build", "commit": "container commit", "completion": "completion",
    "cp": "container cp", "create": "container create", "daemon": "daemon", "diff": "container diff",
    "doctor": "doctor", "events": "system events", "exec": "container exec", "explain": "explain",
    "export": "container export", "help": "help", "history": "image history", "images": "image ls",
    "import": "image import", "info": "system info", "inspect": "inspect", "kill": "container kill",
    "load": "image load", "login": "login", "logout": "logout", "logs": "container logs", "man": "man",
    "pause": "container pause", "port": "container port", "ps": "container ls", "pull": "image pull",
    "push": "image push", "rename": "container rename", "restart": "container restart", "rm": "container rm",
    "rmi": "image rm", "run": "container run", "save": "image save", "search": "search",
    "start": "container start", "stats": "container stats", "stop": "container stop", "tag": "image tag",
    "top": "container top", "unpause": "container unpause", "update": "container update", "version": "version",
    "wait": "container wait",
}  # fmt: skip


def _group(name: str, plain: str, **aliases: str) -> dict[str, str]:
    made = {word: f"{name} {word}" for word in plain.split()}
    made.update({alias: f"{name} {word}" for alias, word in aliases.items()})
    return made


# Groups: second word -> full path; a path that is a group itself takes a third word.
GROUPS = {
    "builder": {"build": "image build", "cache": "builder cache", "prune": "builder prune"},
    "builder cache": _group("builder cache", "export import ls rm", list="ls"),
    "checkpoint": _group("checkpoint", "create ls rm", list="ls", remove="rm"),
    "config": _group("config", "create inspect ls rm", list="ls", remove="rm"),
    "container": _group(
        "container",
        "attach commit cp create diff exec export inspect kill logs ls mount pause port prune rename restart rm run "
        "start stats stop top unpause update wait",
        list="ls", ps="ls", remove="rm",
    ),
    "container mount": _group("container mount", "add ls rm", list="ls", remove="rm"),
    "context": _group(
        "context", "create export import inspect ls rm show update use", list="ls", remove="rm"
    ),
    "image": _group(
        "image", "build history import inspect load ls prune pull push rm save tag", list="ls", remove="rm"
    ),
    "manifest": _group("manifest", "annotate create inspect push rm"),
    "network": _group(
        "network", "connect create disconnect egress inspect ls port prune rm", list="ls", remove="rm"
    ),
    "network port": _group("network port", "add rm", remove="rm"),
    "node": _group("node", "demote inspect ls promote ps rm update", list="ls", remove="rm"),
    "plugin": _group(
        "plugin", "disable enable inspect install ls push rm set upgrade", list="ls", remove="rm"
    ),
    "secret": _group("secret", "create inspect ls rm", list="ls", remove="rm"),
    "service": _group(
        "service", "create inspect logs ls ps rm rollback scale update", list="ls", remove="rm"
    ),
    "stack": _group("stack", "config deploy ls ps rm services", up="deploy", list="ls", remove="rm"),
    "swarm": _group("swarm", "ca init join join-token leave unlock unlock-key update"),
    "system": _group("system", "df dial-stdio events info prune verify"),
    "volume": _group("volume", "create export import inspect ls prune rm update", list="ls", remove="rm"),
}  # fmt: skip

GROUP_HELP = {
    "builder": "Look after builds and their cache",
    "builder cache": "The directories of RUN --mount=type=cache",
    "checkpoint": "Checkpoints of containers (not part of Sampan)",
    "config": "Configurations of a cluster (not part of Sampan)",
    "container": "Run, change and remove containers",
    "container mount": "Change the mounts of a container, also while it runs",
    "context": "Keep the addresses of engines under names",
    "image": "Get, make and remove images",
    "manifest": "Look at and put together manifest lists",
    "network": "Connect containers",
    "network port": "Publish and unpublish ports of a running container",
    "node": "Nodes of a cluster (not part of Sampan)",
    "plugin": "Engine plugins (there are none)",
    "secret": "Secrets of a cluster (not part of Sampan)",
    "service": "Services of a cluster (not part of Sampan)",
    "stack": "Stacks of a cluster (not part of Sampan)",
    "swarm": "Cluster mode (not part of Sampan)",
    "system": "The engine itself: disk use, events, clean-up",
    "volume": "Keep data beyond a container's life",
}
CLUSTER_GROUPS = (
    "checkpoint", "config", "node", "plugin", "secret", "service", "stack", "swarm",
)  # fmt: skip
COMMON = (
    "run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search", "version", "info",
)  # fmt: skip


def module_of(path: str) -> str:
    """The table module under tables/ that holds the command of this full path."""
    if path in ("container run", "container create"):
        return "run"
    first = path.split(" ", 1)[0]
    if first in ("container", "image", "network", "volume"):
        return first
    if first in CLUSTER_GROUPS and path not in ("plugin ls", "plugin inspect"):
        return "cluster"
    return "system"


def all_paths() -> list[str]:
    """Every command once, by its full path, sorted."""
    paths = set(TOP.values())
    for group in GROUPS.values():
        paths |= {path for path in group.values() if path not in GROUPS}
    return sorted(paths)
