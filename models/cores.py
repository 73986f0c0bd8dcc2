"""How many cores this process may use: what threads of arithmetic and of decoding are counted by."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time, and in how many


def usable_cores(quota: Path = QUOTA) -> int:
    """Return the cores that this process may run on, no more than its container has the time of.

    A container that is given 2 of 64 cores sees all 64: a thread for each would have it paused most of the time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
    except (OSError, ValueError):  # no container, or none that says so
        return cores
    return cores if allowed == "max" else max(1, min(cores, math.ceil(int(allowed) / int(period))))
