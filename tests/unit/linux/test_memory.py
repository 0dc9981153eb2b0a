"""Private pages made a fork's own before it needs them."""

from __future__ import annotations

import mmap
import os
import resource

from sampan.linux.memory import populate

PAGES = 256


def faults_of_writing(first: bool) -> int:
    """In a fork: page faults of writing to memory that the parent filled, with or without `populate` before."""
    shared = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(PAGES):
        shared[page * mmap.PAGESIZE] = 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if first:
            populate()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for page in range(PAGES):
            shared[page * mmap.PAGESIZE] = 2
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        os.write(writer, str(after - before).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as answer:
        return int(answer.read())


def test_a_populated_fork_faults_no_more() -> None:
    assert faults_of_writing(first=False) >= PAGES
    assert faults_of_writing(first=True) < PAGES // 4
