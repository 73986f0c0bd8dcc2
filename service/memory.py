"""This process's memory: how much is resident, and giving back what is free."""

import ctypes
import gc
import os
import re
from contextlib import suppress
from pathlib import Path

# ONNX Runtime has no type for running out of memory
NO_MEMORY = re.compile(r"allocate memory|bad_alloc|out of memory", re.IGNORECASE)


def resident_bytes() -> int | None:
    """Return the resident memory of this process, None where the system does not say (it does on Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Collect garbage and hand free memory back to the system; without this, hundreds of MiB stay after reloads."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only; elsewhere the allocator decides
        ctypes.CDLL("libc.so.6").malloc_trim(0)
