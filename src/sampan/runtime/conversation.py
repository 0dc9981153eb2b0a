"""Steps in which init stops and lets its parent do something: hooks of the host, network devices."""

from __future__ import annotations

from . import channel, hooks, identity
from .steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime import Spec

    from .plan import LaunchPlan
    from .steps import Stage


def before_pivot(plan: LaunchPlan, spec: Spec) -> list[Step]:
    """While both trees are visible: prestart and createRuntime hooks (the parent's), then createContainer (ours)."""
    steps = []
    wanted = (
        plan.hooks.get("prestart")
        or plan.hooks.get("createRuntime")
        or spec.get("linux", {}).get("netDevices")
    )
    if wanted:
        steps.append(Step("wait for the hooks of the runtime", wait_for_parent))
    for number, hook in enumerate(plan.hooks.get("createContainer") or ()):
        steps.append(
            Step(
                f"run createContainer hook {hook['path']}", hooks.run_in_container, plan, number, hook,
                "createContainer", "creating",
            )
        )  # fmt: skip
    return steps


def at_start(plan: LaunchPlan) -> list[Step]:
    """startContainer hooks: after start, inside the container, before its program."""
    return [
        Step(
            f"run startContainer hook {hook['path']}", hooks.run_in_container, plan, number, hook,
            "startContainer", "created",
        )
        for number, hook in enumerate(plan.hooks.get("startContainer") or ())
    ]  # fmt: skip


def wait_for_parent(stage: Stage) -> None:
    channel.send(stage.channel, channel.RUN_HOOKS)
    identity.expect_go(stage)


def wait_for_cgroup(stage: Stage) -> None:
    """A systemd scope cannot be empty: the parent makes it with us in it."""
    if stage.manager is not None and stage.manager.needs_pid:
        channel.send(stage.channel, channel.NEED_CGROUP)
        identity.expect_go(stage)
