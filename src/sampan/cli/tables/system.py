"""The engine, registries' logins, contexts, manifests, and verbs of our own."""

from __future__ import annotations

from sampan.cli.args import Command, Flag
from sampan.cli.tables.container import (
    FILTER,
    FORCE_PRUNE,
    FORMAT,
    INSPECT_FORMAT,
    NO_TRUNC,
    PRUNE_FILTER,
    QUIET,
)

INSECURE: Flag = (
    "insecure",
    "",
    "bool",
    False,
    "Talk to a registry without TLS or with a bad certificate",
)
DESCRIPTION: Flag = ("description", "", "string", "", "Description of the context")
DOCKER: Flag = (
    "docker",
    "",
    "pairs",
    None,
    "The engine: host=ADDRESS[,ca=,cert=,key=,skip-tls-verify=]",
)

_ALL = (
    Command("help", "[COMMAND]", (0, -1), "help:help_", "Show the help of a command", hidden=True),
    Command("complete-words", "", (0, -1), "completion:complete", "", hidden=True, raw=True),
    Command("version-line", "", (0, 0), "system:version_line", "", hidden=True),
    Command(
        "builder cache export", "[OPTIONS] CACHE_MOUNT", (1, 1), "buildcache:export", "Write a cache mount as a tar archive",
        (("output", "o", "string", "", "File to write to, instead of standard output"),), own=True,
    ),
    Command(
        "builder cache import", "CACHE_MOUNT [FILE|-]", (1, 2), "buildcache:import_",
        "Fill a cache mount from a tar archive", own=True,
    ),
    Command(
        "builder cache ls", "[OPTIONS]", (0, 0), "buildcache:ls", "List cache mounts",
        (FORMAT, ("quiet", "q", "bool", False, "Only ids")), own=True,
    ),
    Command("builder cache rm", "CACHE_MOUNT [CACHE_MOUNT...]", (1, -1), "buildcache:rm", "Remove cache mounts", own=True),
    Command(
        "builder prune", "", (0, 0), "prune:builder", "Remove build cache",
        (
            ("all", "a", "bool", False, "All of it, not only what hangs loose"),
            PRUNE_FILTER, FORCE_PRUNE,
            ("keep-storage", "", "bytes", 0, "Amount of it to keep"),
        ),
    ),
    Command(
        "completion", "bash|zsh|fish", (1, 1), "completion:script", "Print the completion script of a shell", own=True
    ),
    Command(
        "context create", "[OPTIONS] CONTEXT", (1, 1), "contexts:create", "Make a context",
        (DESCRIPTION, DOCKER, ("from", "", "string", "", "Context to copy")),
    ),
    Command("context export", "[OPTIONS] CONTEXT [FILE|-]", (1, 2), "contexts:export", "Write a context to a file"),
    Command("context import", "CONTEXT FILE|-", (2, 2), "contexts:import_", "Read a context from a file"),
    Command(
        "context inspect", "[OPTIONS] [CONTEXT] [CONTEXT...]", (0, -1), "contexts:inspect",
        "Show everything about contexts", (INSPECT_FORMAT,),
    ),
    Command(
        "context ls", "[OPTIONS]", (0, 0), "contexts:ls", "List contexts",
        (FORMAT, ("quiet", "q", "bool", False, "Only names")), aliases=("context list",),
    ),
    Command(
        "context rm", "CONTEXT [CONTEXT...]", (1, -1), "contexts:rm", "Remove contexts",
        (("force", "f", "bool", False, "Also the one in use"),), aliases=("context remove",),
    ),
    Command("context show", "", (0, 0), "contexts:show", "Print the name of the context in use"),
    Command(
        "context update", "[OPTIONS] CONTEXT", (1, 1), "contexts:update", "Change a context", (DESCRIPTION, DOCKER)
    ),
    Command("context use", "CONTEXT", (1, 1), "contexts:use", "Make a context the one in use"),
    Command(
        "daemon", "[OPTIONS]", (0, -1), "daemon:daemon", "Run the engine in the foreground", own=True,
        raw=True,
    ),
    Command("doctor", "[OPTIONS]", (0, 0), "doctor:doctor", "Check what this host can do for containers", own=True),
    Command(
        "explain", "[OPTIONS] CONTAINER", (1, 1), "explain:explain",
        "Show what the kernel was given for a container: namespaces, control groups, mounts", own=True,
    ),
    Command(
        "inspect", "[OPTIONS] NAME|ID [NAME|ID...]", (1, -1), "inspect:any_", "Show everything about objects",
        (
            INSPECT_FORMAT,
            ("size", "s", "bool", False, "Sizes of a container's files too"),
            ("type", "", "string", "", "Only objects of this kind"),
        ),
    ),
    Command(
        "login", "[OPTIONS] [SERVER]", (0, 1), "registry:login", "Keep a registry's password",
        (
            ("password", "p", "string", "", "Password or token"),
            ("password-stdin", "", "bool", False, "Read the password from standard input"),
            ("username", "u", "string", "", "User"),
        ),
    ),
    Command("logout", "[SERVER]", (0, 1), "registry:logout", "Forget a registry's password"),
    Command("man", "[DIRECTORY]", (0, 1), "completion:man", "Write the man pages into a directory", own=True),
    Command(
        "manifest annotate", "[OPTIONS] MANIFEST_LIST MANIFEST", (2, 2), "manifest:annotate",
        "Add facts to an image of a local manifest list",
        (
            ("arch", "", "string", "", "Processor architecture"),
            ("os", "", "string", "", "Operating system"),
            ("os-features", "", "strings", None, "Feature of the operating system"),
            ("os-version", "", "string", "", "Version of the operating system"),
            ("variant", "", "string", "", "Variant of the architecture"),
        ),
    ),
    Command(
        "manifest create", "MANIFEST_LIST MANIFEST [MANIFEST...]", (2, -1), "manifest:create",
        "Make a local manifest list, to annotate and push",
        (("amend", "a", "bool", False, "Change one that exists"), INSECURE),
    ),
    Command(
        "manifest inspect", "[OPTIONS] [MANIFEST_LIST] MANIFEST", (1, 2), "manifest:inspect",
        "Show an image's manifest or a manifest list",
        (INSECURE, ("verbose", "v", "bool", False, "Descriptor and platform too")),
    ),
    Command(
        "manifest push", "[OPTIONS] MANIFEST_LIST", (1, 1), "manifest:push", "Put a manifest list into a registry",
        (INSECURE, ("purge", "p", "bool", False, "Remove the local list afterwards")),
    ),
    Command("manifest rm", "MANIFEST_LIST [MANIFEST_LIST...]", (1, -1), "manifest:rm", "Remove local manifest lists"),
    Command(
        "plugin inspect", "[OPTIONS] PLUGIN [PLUGIN...]", (1, -1), "inspect:plugin", "Show everything about plugins",
        (INSPECT_FORMAT,),
    ),
    Command(
        "plugin ls", "[OPTIONS]", (0, 0), "system:plugins", "List plugins", (FILTER, FORMAT, NO_TRUNC, QUIET),
        aliases=("plugin list",),
    ),
    Command(
        "search", "[OPTIONS] TERM", (1, 1), "registry:search", "Look for images on Docker Hub",
        (FILTER, FORMAT, ("limit", "", "int", 0, "At most this many"), NO_TRUNC),
    ),
    Command(
        "system df", "[OPTIONS]", (0, 0), "df:df", "Show what takes up disk space",
        (FORMAT, ("verbose", "v", "bool", False, "Every object by itself")),
    ),
    Command(
        "system dial-stdio", "", (0, 0), "system:dial_stdio",
        "Connect standard input and output to the engine's socket", hidden=True,
    ),
    Command(
        "system events", "[OPTIONS]", (0, 0), "events:events", "Show what happens, as it happens",
        (
            FILTER, FORMAT,
            ("since", "", "string", "", "From this time on, past ones too"),
            ("until", "", "string", "", "Up to this time"),
        ),
        aliases=("events",),
    ),
    Command(
        "system info", "[OPTIONS]", (0, 0), "system:info", "Show what the engine says of itself and its host",
        (INSPECT_FORMAT,), aliases=("info",),
    ),
    Command(
        "system prune", "[OPTIONS]", (0, 0), "prune:system", "Remove everything that is not in use",
        (
            ("all", "a", "bool", False, "Every image without a container, not only unnamed ones"),
            PRUNE_FILTER, FORCE_PRUNE,
            ("volumes", "", "bool", False, "Unnamed volumes too"),
        ),
    ),
    Command(
        "system verify", "", (0, 0), "extras:verify", "Hash everything in the image store again", own=True
    ),
    Command(
        "version", "[OPTIONS]", (0, 0), "system:version", "Show the versions of client and engine", (INSPECT_FORMAT,)
    ),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
