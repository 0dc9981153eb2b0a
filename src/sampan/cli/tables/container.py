"""The other container commands."""

from __future__ import annotations

from sampan.cli.args import Command, Flag
from sampan.cli.tables.resources import RESOURCES

FORMAT_HELP = "How to print it: table, table TEMPLATE, json, or a Go template"
FORMAT: Flag = ("format", "", "string", "", FORMAT_HELP)
INSPECT_FORMAT: Flag = ("format", "f", "string", "", "How to print it: json, or a Go template")
FILTER: Flag = ("filter", "f", "filter", None, "Only those for which this holds (key=value)")
PRUNE_FILTER: Flag = (
    "filter",
    "",
    "filter",
    None,
    "Only those for which this holds (until=..., label=...)",
)
FORCE_PRUNE: Flag = ("force", "f", "bool", False, "Do not ask")
NO_TRUNC: Flag = ("no-trunc", "", "bool", False, "Show everything in full")
QUIET: Flag = ("quiet", "q", "bool", False, "Only IDs")
DETACH_KEYS: Flag = ("detach-keys", "", "string", "", "Keys that leave the container running")
SIGNAL: Flag = ("signal", "s", "string", "", "Signal to send")
TIMEOUT: tuple[Flag, Flag] = (
    ("time", "", "int", 0, ""),
    ("timeout", "t", "int", 0, "Seconds to wait before killing it"),
)
_OF_UPDATE_ALONE: tuple[Flag, ...] = (
    ("kernel-memory", "", "bytes", 0, ""),
    (
        "restart",
        "",
        "string",
        "",
        "When to start it again: no, always, unless-stopped, on-failure[:N]",
    ),
)
UPDATE = tuple(sorted((*RESOURCES, *_OF_UPDATE_ALONE), key=lambda flag: flag[0]))
ONE = "CONTAINER"
SOME = "CONTAINER [CONTAINER...]"

_ALL = (
    Command(
        "container attach", f"[OPTIONS] {ONE}", (1, 1), "attach:attach",
        "Connect this terminal to a running container",
        (
            DETACH_KEYS,
            ("no-stdin", "", "bool", False, "Do not attach standard input"),
            ("sig-proxy", "", "bool", True, "Pass signals on to the process"),
        ),
        aliases=("attach",),
    ),
    Command(
        "container commit", f"[OPTIONS] {ONE} [REPOSITORY[:TAG]]", (1, 2), "images:commit",
        "Make an image of a container's changes",
        (
            ("author", "a", "string", "", 'Author ("Ada <ada@example.com>")'),
            ("change", "c", "list", None, "Dockerfile instruction to apply"),
            ("message", "m", "string", "", "Message for the history"),
            ("no-pause", "", "bool", False, ""),
            ("pause", "p", "bool", True, "Pause the container meanwhile"),
        ),
        aliases=("commit",),
    ),
    Command(
        "container cp", "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n[OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", (2, 2),
        "copy:copy", "Copy files between a container and here",
        (
            ("archive", "a", "bool", False, "Keep numeric owners and groups"),
            ("follow-link", "L", "bool", False, "Copy what a symbolic link leads to"),
            ("quiet", "q", "bool", False, "Do not show progress"),
        ),
        aliases=("cp",),
    ),
    Command(
        "container diff", ONE, (1, 1), "containers:diff", "Show which files a container changed", aliases=("diff",)
    ),
    Command(
        "container exec", "[OPTIONS] CONTAINER COMMAND [ARG...]", (2, -1), "exec:exec_",
        "Run another program in a running container",
        (
            ("detach", "d", "bool", False, "Run in the background"),
            DETACH_KEYS,
            ("env", "e", "env", None, "Environment variable (NAME=value, or NAME to pass ours on)"),
            ("env-file", "", "list", None, "File with environment variables, one a line"),
            ("interactive", "i", "bool", False, "Keep standard input open, attached or not"),
            ("privileged", "", "bool", False, "All capabilities for this program"),
            ("tty", "t", "bool", False, "Give it a terminal"),
            ("user", "u", "string", "", "User, and group after a colon (name or number)"),
            ("workdir", "w", "string", "", "Working directory inside the container"),
        ),
        aliases=("exec",), interspersed=False,
    ),
    Command(
        "container export", f"[OPTIONS] {ONE}", (1, 1), "containers:export",
        "Write a container's files as a tar archive",
        (("output", "o", "string", "", "File to write to, instead of standard output"),),
        aliases=("export",),
    ),
    Command(
        "container inspect", f"[OPTIONS] {SOME}", (1, -1), "inspect:container", "Show everything about containers",
        (INSPECT_FORMAT, ("size", "s", "bool", False, "Sizes of the files too")),
    ),
    Command(
        "container kill", f"[OPTIONS] {SOME}", (1, -1), "lifecycle:kill", "Send a signal, SIGKILL if none is named",
        (SIGNAL,), aliases=("kill",),
    ),
    Command(
        "container logs", f"[OPTIONS] {ONE}", (1, 1), "logs:logs", "Show what a container has written",
        (
            ("details", "", "bool", False, "Attributes given to the log too"),
            ("follow", "f", "bool", False, "Go on as more is written"),
            ("since", "", "string", "", "Only what is younger than a time (2013-01-02T13:23:37Z) or an age (42m)"),
            ("tail", "n", "string", "all", "Only this many lines from the end"),
            ("timestamps", "t", "bool", False, "The time before each line"),
            ("until", "", "string", "", "Only what is older than a time (2013-01-02T13:23:37Z) or an age (42m)"),
        ),
        aliases=("logs",),
    ),
    Command(
        "container ls", "[OPTIONS]", (0, 0), "ps:ls", "List containers",
        (
            ("all", "a", "bool", False, "Those that do not run too"),
            FILTER, FORMAT,
            ("last", "n", "int", -1, "The last n made, running or not"),
            ("latest", "l", "bool", False, "The last one made, running or not"),
            NO_TRUNC, QUIET,
            ("size", "s", "bool", False, "Sizes of their files"),
        ),
        aliases=("container list", "container ps", "ps"),
    ),
    Command(
        "container mount add", "[OPTIONS] CONTAINER [SOURCE:TARGET[:OPTIONS]...]", (1, -1), "extras:mount_add",
        "Mount directories, files and volumes into a container, also while it runs",
        (("mount", "", "mount", None, "Mount: type=bind|volume|tmpfs,src=...,dst=...[,ro,...]"),), own=True,
    ),
    Command(
        "container mount ls", "CONTAINER", (1, 1), "extras:mount_ls", "List a container's mounts",
        own=True,
    ),
    Command(
        "container mount rm", "CONTAINER TARGET [TARGET...]", (2, -1), "extras:mount_rm",
        "Take mounts out of a container, also while it runs", own=True,
    ),
    Command(
        "container pause", SOME, (1, -1), "lifecycle:pause", "Freeze all processes of containers", aliases=("pause",)
    ),
    Command(
        "container port", "CONTAINER [PRIVATE_PORT[/PROTO]]", (1, 2), "containers:port",
        "Show where a container's ports are published", aliases=("port",),
    ),
    Command(
        "container prune", "[OPTIONS]", (0, 0), "prune:containers", "Remove all stopped containers",
        (PRUNE_FILTER, FORCE_PRUNE),
    ),
    Command(
        "container rename", "CONTAINER NEW_NAME", (2, 2), "lifecycle:rename", "Give a container another name",
        aliases=("rename",),
    ),
    Command(
        "container restart", f"[OPTIONS] {SOME}", (1, -1), "lifecycle:restart", "Stop containers and start them again",
        (SIGNAL, *TIMEOUT), aliases=("restart",),
    ),
    Command(
        "container rm", f"[OPTIONS] {SOME}", (1, -1), "lifecycle:rm", "Remove containers",
        (
            ("force", "f", "bool", False, "Kill it first if it runs"),
            ("link", "l", "bool", False, "Remove the link of this name"),
            ("volumes", "v", "bool", False, "Its anonymous volumes too"),
        ),
        aliases=("container remove", "rm"),
    ),
    Command(
        "container start", f"[OPTIONS] {SOME}", (1, -1), "lifecycle:start", "Start stopped containers",
        (
            ("attach", "a", "bool", False, "Attach its output and pass signals on"),
            ("checkpoint", "", "string", "", ""),
            ("checkpoint-dir", "", "string", "", ""),
            DETACH_KEYS,
            ("interactive", "i", "bool", False, "Attach its standard input"),
        ),
        aliases=("start",),
    ),
    Command(
        "container stats", "[OPTIONS] [CONTAINER...]", (0, -1), "stats:stats", "Show what containers use, as it changes",
        (
            ("all", "a", "bool", False, "Those that do not run too"),
            FORMAT,
            ("no-stream", "", "bool", False, "Once, and no more"),
            NO_TRUNC,
        ),
        aliases=("stats",),
    ),
    Command(
        "container stop", f"[OPTIONS] {SOME}", (1, -1), "lifecycle:stop", "Ask containers to stop, then kill them",
        (SIGNAL, *TIMEOUT), aliases=("stop",),
    ),
    Command(
        "container top", "CONTAINER [ps OPTIONS]", (1, -1), "containers:top", "Show a container's processes",
        aliases=("top",), interspersed=False,
    ),
    Command(
        "container unpause", SOME, (1, -1), "lifecycle:unpause", "Let frozen containers go on", aliases=("unpause",)
    ),
    Command(
        "container update", f"[OPTIONS] {SOME}", (1, -1), "containers:update", "Change the limits of containers",
        UPDATE, aliases=("update",),
    ),
    Command(
        "container wait", SOME, (1, -1), "lifecycle:wait", "Wait until containers end and print their statuses",
        (("condition", "", "string", "", "What to wait for: not-running, next-exit or removed"),),
        aliases=("wait",),
    ),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
