"""The one pool of threads that all ONNX Runtime sessions of a process share, in training and serving alike.

A pool for each session costs hundreds of threads and half the speed with many small sessions.
"""

import os
from contextlib import suppress
from functools import cache

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail


def usable_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache  # it can be set once in a process, before the first session
def share_threads(threads: int) -> None:
    """Make the pool. Its size is that of the first call in a process."""
    with suppress(Fail):  # the pool exists already, with another size
        ort.set_global_thread_pool_sizes(threads, 1)


def shared_threads_options() -> ort.SessionOptions:
    """Return options of a session that uses the pool; call `share_threads` beforehand."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    return options
