"""This process's memory: how much is resident, and giving back what is free."""

import asyncio
import ctypes
import gc
import os
import re
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
ARENAS = 2  # by default 8 for each core, of which each keeps what its threads have freed
LARGE_BLOCK_BYTES = 4 * 2**20  # larger than activations of most batches, which come and go with each subgraph
KEPT_FREE_BYTES = 32 * 2**20  # at the heap's end: giving it back and asking again would cost each request
TRIM_S, TRIM_GROWTH_BYTES = 15.0, 16 * 2**20
# ONNX Runtime has no type for running out of memory
NO_MEMORY = re.compile(r"allocate memory|bad_alloc|out of memory", re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def resident_bytes() -> int | None:
    """Return the resident memory of this process, None where the system does not say (it does on Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def arrange_allocator() -> None:
    """Have each large block be memory of its own, which grows without a copy and goes back when it is freed.

    All threads share few arenas for the other blocks.

    By default glibc raises that limit to the largest block ever freed, up to 32 MiB. Then bodies that grow and end
    side by side leave gaps: 192 MiB of them took 386 MiB, and with this limit 190 (measured, 24 bodies of 63 MiB).
    """
    with suppress(OSError, AttributeError):  # glibc only
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        libc.mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Collect garbage and hand free memory back to the system; without this, hundreds of MiB stay after reloads."""
    gc.collect()
    trim()


def trim() -> None:
    """Hand the allocator's free memory back to the system. Takes milliseconds, and other threads go on."""
    with suppress(OSError, AttributeError):  # glibc only; elsewhere the allocator decides
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Trimmer:
    """Hands back what a rush of requests has left: looks now and then, and trims where the process has grown.

    Use from one event loop, between `start` and `stop`.
    """

    def __init__(self, every_s: float = TRIM_S, growth_bytes: int = TRIM_GROWTH_BYTES) -> None:
        self._every_s = every_s
        self._growth_bytes = growth_bytes
        self._least: int | None = None  # resident since the last trimming
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._working = asyncio.create_task(self._work())

    def stop(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def _work(self) -> None:
        while (resident := resident_bytes()) is not None:
            self._least = resident if self._least is None else min(self._least, resident)
            if resident - self._least > self._growth_bytes:
                await asyncio.to_thread(trim)
                self._least = resident_bytes()
            await asyncio.sleep(self._every_s)
