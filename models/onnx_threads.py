"""What all ONNX Runtime sessions of a process share, in training and serving alike: one pool of threads, one arena.

A pool of threads for each session costs hundreds of threads and half the speed with many small sessions.
An arena for each keeps the intermediate values of each: with two own blocks of ViT-Ti at 224 pixels a task
took 9.2 MiB, of which 3.4 are its weights, and takes 3.8 with one arena for all.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from models.turn_length import LONG_S, ask_for_turns

# The arena grows by what is asked of it. Growing by doubling, the default, also doubles up to a request that
# fails: after a huge one the next small one took nearly all of the machine's memory.
AS_REQUESTED = {"arena_extend_strategy": 1}
WORKERS_NICENESS = 10


@cache  # it can be set once in a process, before the first session
def share_threads(threads: int) -> None:
    """Make the pool and the arena. The pool's size is that of the first call in a process.

    The pool's threads turn in circles for tens of milliseconds after each run, and Python has no setting for it. So
    their priority is lower: beside a busy event loop they would take half a core for nothing. An idle machine is as
    fast as before, and a busy one 5 % faster (measured, 2 cores).
    """
    before = _threads()
    with suppress(Fail):  # the pool exists already, with another size
        ort.set_global_thread_pool_sizes(threads, 1)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(AS_REQUESTED))
    for thread in _threads() - before:
        if os.getpriority(os.PRIO_PROCESS, thread) < WORKERS_NICENESS:  # only root may go back before it, as a worker's
            os.setpriority(os.PRIO_PROCESS, thread, WORKERS_NICENESS)
        ask_for_turns(LONG_S, thread)


def _threads() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(task.name) for task in tasks.iterdir()} if tasks.is_dir() else set()


def shared_threads_options() -> ort.SessionOptions:
    """Return options of a session that uses the pool and the arena; call `share_threads` beforehand."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights outside of the arena, so that those of a retired release go back to the system.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options
