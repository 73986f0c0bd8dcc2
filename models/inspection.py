"""Labelled images looked at as a whole: all that can refuse them, before anything is kept or trained.

As a program, `python -m models.inspection FILE ...`, it does so in a process of its own, niced: a server has
uploads looked at beside its requests, and what an upload does to a decoder happens there. The process has a limit of
memory and of processor time, and it ends with the server that started it.
"""

import asyncio
import hashlib
import json
import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from models import apart
from models.errors import ImageTooLarge, InvalidData, InvalidImage, Overloaded
from models.image_folder import (
    DataLimits,
    ImageEntry,
    ImageFolder,
    digest_of_problem,
    look_at_images,
    open_image_folder,
    unreadable,
)

NICENESS = 15
TIME_LIMIT_S = 900.0
CPU_LIMIT_S = 3600  # of all threads of one inspection together
MEMORY_LIMIT = 4 * 2**30  # bytes; an image of 50 megapixels may take 0.6 GiB while it is decoded
MAX_THREADS = 4
MAX_OF_A_CLIENT = 4  # inspections of one client, waiting ones included


@dataclass(frozen=True, slots=True)
class Inspected:
    """Labelled images that can make a task."""

    images: int
    classes: int


def inspect_images(path: Path, *, shown_as: str, limits: DataLimits = DataLimits()) -> Inspected:
    """Look at every image of a folder or zip.

    Raises:
        InvalidData: they cannot make a task; the message says what to mend.
    """
    with open_image_folder(path, limits, shown_as=shown_as) as folder:
        digests, problems = look_at_images(folder)
        if problems:
            raise unreadable(problems, len(folder.entries), shown_as)
        require_choice(digests, shown_as)
        return Inspected(len(folder.entries), len(folder.labels))


def image_digests(folder: ImageFolder) -> dict[ImageEntry, str]:
    """Return the sha256 of each image file, or of why it cannot be read."""

    def digest(entry: ImageEntry) -> str:
        try:
            return hashlib.sha256(folder.read(entry)).hexdigest()
        except (InvalidImage, ImageTooLarge) as error:  # counted as unreadable elsewhere
            return digest_of_problem(error)

    return dict(zip(folder.entries, folder.map(digest, folder.entries), strict=True))


def require_choice(digests: Mapping[ImageEntry, str], shown_as: str) -> None:
    """Raise InvalidData if there is nothing to select on: no val, and no class with two different images."""
    if any(entry.split == "val" for entry in digests):
        return
    different: dict[int, set[str]] = defaultdict(set)
    for entry, digest in digests.items():
        if entry.split != "test":
            different[entry.label].add(digest)
    if all(len(found) < 2 for found in different.values()):
        raise InvalidData(f"{shown_as} has one image per class, none is left for validation: add more of each")


class Inspections:
    """The inspections of a server: some at once, one of each client, the others wait in the order of arrival."""

    def __init__(self, *, at_once: int, max_bytes: int) -> None:
        """
        Args:
            at_once: processes at the same time.
            max_bytes: of memory that each may use.
        """
        self._turns = asyncio.Semaphore(at_once)
        self._max_bytes = max_bytes
        self._of_client: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    async def inspect(self, path: Path, *, shown_as: str, client: str) -> Inspected:
        """Inspect in a process of its own, when it is this client's turn. Cancelled, it ends the process.

        Raises:
            InvalidData: as `inspect_apart`.
            Overloaded: the client has as many inspections as it may.
        """
        if self._of_client[client] >= MAX_OF_A_CLIENT:
            raise Overloaded(
                f"{self._of_client[client]} zips of this client are being looked at or wait for it, and at most "
                f"{MAX_OF_A_CLIENT} may; try again after the time in Retry-After",
                retry_after_s=10.0,
            )
        self._of_client[client] += 1
        try:
            async with self._locks.setdefault(client, asyncio.Lock()), self._turns:
                return await inspect_apart(path, shown_as=shown_as, max_bytes=self._max_bytes)
        finally:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client], self._locks[client]


async def inspect_apart(path: Path, *, shown_as: str, max_bytes: int = MEMORY_LIMIT) -> Inspected:
    """Do what `inspect_images` does, in a process of its own with at most `max_bytes` of memory.

    Raises:
        InvalidData: as there; also if the process dies, or needs too much time or memory.
    """
    process = await asyncio.create_subprocess_exec(
        *apart.command_of("models.inspection", str(path), shown_as, str(max_bytes)),
        env=apart.without_threads(),
        stdin=asyncio.subprocess.PIPE,  # never written to: its end tells the process that this one has gone
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    try:
        told = json.loads(await asyncio.wait_for(process.stdout.read(), TIME_LIMIT_S))
    except (TimeoutError, ValueError) as error:
        raise InvalidData(
            f"{shown_as} cannot be looked at: decoding it took over {TIME_LIMIT_S:g} s or ended the decoder; send "
            "fewer or smaller images"
        ) from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        process.stdin.close()
        await asyncio.shield(process.wait())
    if "problem" in told:
        raise InvalidData(told["problem"])
    return Inspected(**told)


def main() -> None:
    """Print what was found, or `{"problem": ...}`, as JSON."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    apart.step_back(NICENESS)
    path, shown_as, max_bytes = sys.argv[1:]
    apart.limit_memory(int(max_bytes))
    apart.limit_processor_time(CPU_LIMIT_S)
    try:
        told: dict[str, object] = asdict(
            inspect_images(Path(path), shown_as=shown_as, limits=DataLimits(max_threads=MAX_THREADS))
        )
    except InvalidData as error:
        told = {"problem": str(error)}
    except MemoryError:
        told = {
            "problem": f"{shown_as} cannot be looked at within {int(max_bytes):,} bytes of memory: send fewer or "
            "smaller images"
        }
    print(json.dumps(told), flush=True)


def _end_with_parent() -> None:
    """End this process when the one that started it has gone, however that ended."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
