"""What processes have in common that work apart from the one which started them: the command, and their limits."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from models.turn_length import LONG_S, ask_for_turns

FOLDER = Path(__file__).parents[1]  # where the packages lie, wherever the first process was started


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` as a program."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment with what such a process needs to find the packages."""
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def without_threads() -> dict[str, str]:
    """Return `environment` for a process that computes no matrices: each thread of OpenBLAS would take memory."""
    return environment() | {"OPENBLAS_NUM_THREADS": "1"}


def step_back(niceness: int) -> None:
    """Let the process that started this one go first where cores are short."""
    with suppress(OSError):
        os.nice(niceness)
    ask_for_turns(LONG_S)


def limit_memory(max_bytes: int) -> None:
    """Bound this process's memory, where the system can; beyond that it gets a MemoryError."""
    if sys.platform != "win32":
        import resource

        _limit(resource.RLIMIT_DATA, max_bytes)


def limit_processor_time(seconds: int) -> None:
    """End this process once its threads together have computed for so long, where the system can."""
    if sys.platform != "win32":
        import resource

        _limit(resource.RLIMIT_CPU, seconds)


def _limit(kind: int, limit: int) -> None:
    import resource

    _, most = resource.getrlimit(kind)
    least = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (least, least))
