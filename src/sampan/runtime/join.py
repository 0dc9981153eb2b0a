"""Running one more process in a container that runs: exec.

    plan = make_join_plan(process, pid=pid, start_time=start, spec=spec, cgroup=manager)
    child = join(plan, stdio=(0, 1, 2))      # returns when the program runs; raises LaunchError when it cannot
    ... wait on child.pidfd; child.console_fd with process.terminal ...

One fork: we enter the container's pid namespace for our children only (setns(pidfd, CLONE_NEWPID)), clone,
and go back; the child is born there as our own child and then joins everything else in one setns.
"""

from __future__ import annotations
