"""Image commands."""

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

PLATFORM: Flag = ("platform", "", "string", "", "Platform of the image (os/arch[/variant])")
NO_TRUST: Flag = ("disable-content-trust", "", "bool", True, "")

BUILD: tuple[Flag, ...] = (
    ("add-host", "", "host", None, "Another line for /etc/hosts of steps (host:ip)"),
    ("allow", "", "strings", None, "What RUN may do beyond the usual (network.host, security.insecure)"),
    ("annotation", "", "list", None, "Annotation for the image's manifest (key=value)"),
    ("attest", "", "list", None, ""),
    ("build-arg", "", "list", None, "Value of a build argument (NAME=value)"),
    ("build-context", "", "list", None, "Another context (NAME=directory, URL or docker-image://NAME)"),
    ("builder", "", "string", "", ""),
    ("cache-from", "", "list", None, "Where cache comes from (an image, or type=local,src=DIR)"),
    ("cache-to", "", "list", None, "Where cache goes (type=inline, registry or local)"),
    ("call", "", "string", "build", 'What to do ("build", "check", "outline", "targets")'),
    ("cgroup-parent", "", "string", "", "Control group to put steps under"),
    ("check", "", "bool", False, "Only check the Dockerfile"),
    ("compress", "", "bool", False, "Send the context compressed"),
    ("cpu-period", "", "int", 0, "Length of a scheduling period of steps, in microseconds"),
    ("cpu-quota", "", "int", 0, "Processor time of steps in a period, in microseconds"),
    ("cpu-shares", "c", "int", 0, "Weight of steps when processors are short"),
    ("cpuset-cpus", "", "string", "", "Processors that steps may run on (0-3, 0,1)"),
    ("cpuset-mems", "", "string", "", "Memory nodes that steps may use (0-3, 0,1)"),
    NO_TRUST,
    ("file", "f", "string", "", "Dockerfile to use, instead of PATH/Dockerfile"),
    ("force-rm", "", "bool", False, "Remove intermediate containers, also after a failure"),
    ("iidfile", "", "string", "", "File to write the image's ID to"),
    ("isolation", "", "string", "", "Isolation technology (Windows)"),
    ("label", "", "list", None, "Label for the image (key=value)"),
    ("load", "", "bool", False, "Keep the image in the store, beside other outputs"),
    ("memory", "m", "bytes", 0, "Most memory that a step may use"),
    ("memory-swap", "", "swap", 0, "Memory and swap of a step together; -1: as much swap as there is"),
    ("metadata-file", "", "string", "", "File to write facts about the result to"),
    ("network", "", "string", "default", "Network of RUN steps"),
    ("no-cache", "", "bool", False, "Do every step anew"),
    ("no-cache-filter", "", "strings", None, "Stage whose steps to do anew"),
    ("on-error", "", "string", "", '"shell": open a shell in what a failed step left behind'),
    ("output", "o", "list", None, "Where the result goes (DIR, -, or type=TYPE,dest=PATH)"),
    ("platform", "", "strings", None, "Platform of the image (os/arch[/variant]), several with commas"),
    ("progress", "", "string", "auto", 'How to show progress ("auto", "plain", "tty", "rawjson", "quiet")'),
    ("provenance", "", "string", "", ""),
    ("pull", "", "bool", False, "Look for newer base images"),
    ("push", "", "bool", False, "Push the image to its registry"),
    ("quiet", "q", "bool", False, "Print only the ID of the image"),
    ("rm", "", "bool", True, "Remove intermediate containers after success"),
    ("sbom", "", "string", "", ""),
    ("secret", "", "list", None, "Secret for RUN --mount=type=secret (id=NAME[,src=FILE|,env=VARIABLE])"),
    ("security-opt", "", "strings", None, "Security option"),
    ("shm-size", "", "bytes", 0, "Size of /dev/shm in steps"),
    ("squash", "", "bool", False, ""),
    ("ssh", "", "list", None, "Agent for RUN --mount=type=ssh (default, or NAME=SOCKET)"),
    ("tag", "t", "tag", None, "Name, and tag after a colon"),
    ("target", "", "string", "", "Stage to build"),
    ("ulimit", "", "ulimit", None, "Resource limit of steps (name=soft[:hard])"),
)  # fmt: skip

_ALL = (
    Command(
        "image build", "[OPTIONS] PATH | URL | -", (1, 1), "build:build", "Build an image from a Dockerfile", BUILD,
        aliases=("build", "builder build"),
    ),
    Command(
        "image history", "[OPTIONS] IMAGE", (1, 1), "images:history", "Show how an image was made",
        (FORMAT, ("human", "H", "bool", True, "Sizes and times for people"), NO_TRUNC, PLATFORM, QUIET),
        aliases=("history",),
    ),
    Command(
        "image import", "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", (1, -1), "images:import_",
        "Make an image of a tar archive of files",
        (
            ("change", "c", "list", None, "Dockerfile instruction to apply"),
            ("message", "m", "string", "", "Message for the history"),
            PLATFORM,
        ),
        aliases=("import",),
    ),
    Command(
        "image inspect", "[OPTIONS] IMAGE [IMAGE...]", (1, -1), "inspect:image", "Show everything about images",
        (INSPECT_FORMAT, PLATFORM),
    ),
    Command(
        "image load", "[OPTIONS]", (0, 0), "images:load", "Take images from a tar archive",
        (
            ("input", "i", "string", "", "File to read, instead of standard input"),
            PLATFORM,
            ("quiet", "q", "bool", False, "Do not show progress"),
        ),
        aliases=("load",),
    ),
    Command(
        "image ls", "[OPTIONS] [REPOSITORY[:TAG]]", (0, 1), "images:ls", "List images",
        (
            ("all", "a", "bool", False, "Intermediate images too"),
            ("digests", "", "bool", False, "Digests too"),
            FILTER, FORMAT, NO_TRUNC, QUIET,
            ("tree", "", "bool", False, ""),
        ),
        aliases=("image list", "images"),
    ),
    Command(
        "image prune", "[OPTIONS]", (0, 0), "prune:images", "Remove images that nothing uses",
        (("all", "a", "bool", False, "Named ones too, if no container uses them"), PRUNE_FILTER, FORCE_PRUNE),
    ),
    Command(
        "image pull", "[OPTIONS] NAME[:TAG|@DIGEST]", (1, 1), "registry:pull", "Get an image from a registry",
        (
            ("all-tags", "a", "bool", False, "Every tag of the repository"),
            NO_TRUST, PLATFORM,
            ("quiet", "q", "bool", False, "Do not show progress"),
        ),
        aliases=("pull",),
    ),
    Command(
        "image push", "[OPTIONS] NAME[:TAG]", (1, 1), "registry:push", "Put an image into a registry",
        (
            ("all-tags", "a", "bool", False, "Every tag of the repository"),
            NO_TRUST, PLATFORM,
            ("quiet", "q", "bool", False, "Do not show progress"),
        ),
        aliases=("push",),
    ),
    Command(
        "image rm", "[OPTIONS] IMAGE [IMAGE...]", (1, -1), "images:rm", "Remove images",
        (
            ("force", "f", "bool", False, "Also if a stopped container uses it"),
            ("no-prune", "", "bool", False, "Keep unnamed parents"),
            ("platform", "", "list", None, "Only this platform of it"),
        ),
        aliases=("image remove", "rmi"),
    ),
    Command(
        "image save", "[OPTIONS] IMAGE [IMAGE...]", (1, -1), "images:save", "Write images as a tar archive",
        (("output", "o", "string", "", "File to write to, instead of standard output"), PLATFORM),
        aliases=("save",),
    ),
    Command(
        "image tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", (2, 2), "images:tag", "Give an image another name",
        aliases=("tag",),
    ),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
