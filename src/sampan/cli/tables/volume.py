"""Volume commands."""

from __future__ import annotations

from sampan.cli.args import Command, Flag
from sampan.cli.tables.container import FILTER, FORCE_PRUNE, FORMAT, INSPECT_FORMAT, PRUNE_FILTER

OUTPUT: Flag = ("output", "o", "string", "", "File to write to, instead of standard output")

_ALL = (
    Command(
        "volume create", "[OPTIONS] [VOLUME]", (0, 1), "volumes:create", "Make a volume",
        (
            ("driver", "d", "string", "local", "Who keeps it"),
            ("label", "", "label", None, "Label (key=value)"),
            ("name", "", "string", "", ""),
            ("opt", "o", "pairs", None, "Option for the driver (key=value)"),
        ),
    ),
    Command(
        "volume export", "[OPTIONS] VOLUME", (1, 1), "volumes:export", "Write a volume's files as a tar archive",
        (OUTPUT,), own=True,
    ),
    Command(
        "volume import", "[OPTIONS] VOLUME [FILE|-]", (1, 2), "volumes:import_",
        "Put the files of a tar archive into a volume, made if it is missing", own=True,
    ),
    Command(
        "volume inspect", "[OPTIONS] VOLUME [VOLUME...]", (1, -1), "inspect:volume", "Show everything about volumes",
        (INSPECT_FORMAT,),
    ),
    Command(
        "volume ls", "[OPTIONS]", (0, 0), "volumes:ls", "List volumes",
        (
            ("cluster", "", "bool", False, ""),
            FILTER, FORMAT,
            ("quiet", "q", "bool", False, "Only names"),
        ),
        aliases=("volume list",),
    ),
    Command(
        "volume prune", "[OPTIONS]", (0, 0), "prune:volumes", "Remove unnamed volumes that no container uses",
        (("all", "a", "bool", False, "Named ones too"), PRUNE_FILTER, FORCE_PRUNE),
    ),
    Command(
        "volume rm", "[OPTIONS] VOLUME [VOLUME...]", (1, -1), "volumes:rm", "Remove volumes",
        (("force", "f", "bool", False, "No error if it does not exist"),), aliases=("volume remove",),
    ),
    Command(
        "volume update", "[OPTIONS] [VOLUME]", (0, 1), "volumes:update", "Change a cluster volume (swarm only)",
        (("availability", "", "string", "active", "Availability in the cluster"),), hidden=True,
    ),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
