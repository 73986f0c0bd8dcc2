"""How long a thread may hold a processor before others get it: short turns come soon, long ones seldom.

Linux gives a thread that wakes up its processor at once only if that thread asks for shorter turns than the one which
runs (EEVDF, since Linux 6.12; `man 2 sched_setattr`). Otherwise it waits some milliseconds, and a request wakes up a
dozen times. Shares of the processor stay as they are; that is what niceness is for.
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress

SHORT_S, LONG_S = 0.0001, 0.02  # of what Linux allows, 0.1 to 100 ms
SYSCALLS = {"x86_64": 314, "aarch64": 274}  # sched_setattr


class Attributes(ctypes.Structure):
    """`struct sched_attr` of Linux, in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),  # nanoseconds; for ordinary threads the length of a turn
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask_for_turns(seconds: float, thread: int = 0) -> None:
    """Set the turns of a thread, 0 for the calling one, and of those that it starts; does nothing where it cannot."""
    number = SYSCALLS.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return
    with suppress(OSError, AttributeError):
        if os.sched_getscheduler(thread) != os.SCHED_OTHER:  # one with only idle time keeps that
            return
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        found = Attributes(size=ctypes.sizeof(Attributes), nice=nice, runtime=round(seconds * 1e9))
        ctypes.CDLL(None).syscall(number, thread, ctypes.byref(found), 0)
