"""The parent's side of making a container: cgroup, clone, id maps, hooks, and waiting for init.

    launch = Launch(plan, stdio=(0, 1, 2))
    child = launch.create()            # init is ready and waits: state `created`
    child.console_fd                   # the pty master, with plan.terminal and no console socket
    fd = child.hold_mounts()           # see performance: the exit of process 1 then does not unmount anything
    launch.start()                     # returns when the program runs; raises LaunchError when it cannot
    ... wait on child.pidfd ...
    launch.cgroup.destroy()            # the cgroup stays the caller's to remove; a failed create removes it

`create` and `start` raise LaunchError (message in runc's words, .step, .errno); after a failure nothing is
left: the child is reaped, the cgroup removed. Only for single-threaded processes. Both the shim and sampan-oci use this.
"""

from __future__ import annotations
