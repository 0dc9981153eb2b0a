"""Commands that docker has and this engine answers with a refusal: Swarm, plugins, checkpoints.

Their flags are swallowed unread: whatever they say, the answer is the same.
"""

from __future__ import annotations

from sampan.cli.args import Command

CLUSTER = "Cluster mode is not part of Sampan"
PLUGINS = "Engine plugins are not part of Sampan"
CHECKPOINTS = "Checkpoints are not part of Sampan"

VERBS = {
    "config": "create inspect ls rm",
    "node": "demote inspect ls promote ps rm update",
    "secret": "create inspect ls rm",
    "service": "create inspect logs ls ps rm rollback scale update",
    "stack": "config deploy ls ps rm services",
    "swarm": "ca join-token unlock unlock-key update",
}
POSTED = ("init", "join", "leave")
PLUGIN_VERBS = "disable enable install push rm set upgrade"
CHECKPOINT_VERBS = "create ls rm"


def _command(path: str, run: str, help: str, least: int = 0) -> Command:
    usage = "[OPTIONS] [NAME...]"
    return Command(path, usage, (least, -1), f"cluster:{run}", help, raw=True)


_ALL = (
    *(_command(f"{group} {verb}", "refused", CLUSTER) for group, verbs in VERBS.items() for verb in verbs.split()),
    *(_command(f"swarm {verb}", "swarm", CLUSTER) for verb in POSTED),
    *(_command(f"plugin {verb}", "plugin", PLUGINS, 1) for verb in PLUGIN_VERBS.split()),
    *(_command(f"checkpoint {verb}", "checkpoint", CHECKPOINTS) for verb in CHECKPOINT_VERBS.split()),
)  # fmt: skip
COMMANDS = {command.path: command for command in _ALL}
