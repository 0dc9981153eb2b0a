"""The flags that say how much of the machine a container may have: of `run`, `create` and `update`."""

from __future__ import annotations

from sampan.cli.args import Flag

RESOURCES: tuple[Flag, ...] = (
    ("blkio-weight", "", "uint16", 0, "Share of block I/O, 10 to 1000, or 0 for none of its own"),
    ("cpu-period", "", "int", 0, "Length of a scheduling period, in microseconds"),
    ("cpu-quota", "", "int", 0, "Processor time in a period, in microseconds"),
    ("cpu-rt-period", "", "int", 0, "Length of a real-time period, in microseconds"),
    ("cpu-rt-runtime", "", "int", 0, "Real-time run time in a period, in microseconds"),
    ("cpu-shares", "c", "int", 0, "Weight against other containers when processors are short"),
    ("cpus", "", "decimal", 0, "How many processors' time it may use"),
    ("cpuset-cpus", "", "string", "", "Processors it may run on (0-3, 0,1)"),
    ("cpuset-mems", "", "string", "", "Memory nodes it may use (0-3, 0,1)"),
    ("memory", "m", "bytes", 0, "Most memory it may use"),
    ("memory-reservation", "", "bytes", 0, "Memory it is pushed back to when the host runs short"),
    ("memory-swap", "", "swap", 0, "Memory and swap together; -1: as much swap as there is"),
    ("pids-limit", "", "int", 0, "Most processes and threads; -1: no limit"),
)
