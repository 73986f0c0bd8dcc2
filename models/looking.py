"""One image file looked at: its digest, and whether it can be decoded. Many of them in processes side by side.

Threads do not help with small files: most of the time goes into Python, and threads pass its lock to and fro. As a
program, `python -m models.looking` answers lists of paths on its input, line by line, until that ends: with the
process that started it, however that ended.
"""

import hashlib
import json
import os
import queue
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from types import MappingProxyType
from typing import IO

from models import apart
from models.errors import ImageTooLarge, InvalidData, InvalidImage
from models.image_files import read_bounded
from models.preprocess import ImageLimits, check_image

Look = tuple[str, str | None]  # the sha256 of a file, and what is wrong with it
NOTHING_KNOWN: Mapping[str, str | None] = MappingProxyType({})
CHUNK = 256  # files that a process gets at once


def look_at(data: bytes, limits: ImageLimits, known: Mapping[str, str | None]) -> Look:
    """Return the digest of an image file, and what is wrong with it; the latter from `known` if it is there."""
    digest = hashlib.sha256(data).hexdigest()
    if digest in known:
        return digest, known[digest]
    try:
        check_image(data, limits)
    except (InvalidImage, ImageTooLarge) as error:
        return digest, str(error)
    return digest, None


def look_beside(
    paths: Sequence[str], limits: ImageLimits, known: Mapping[str, str | None], workers: int
) -> Iterator[Look | None]:
    """Yield what `look_at` finds in each file, in order, from other processes; None for a file that cannot be read.

    Raises:
        InvalidData: a process died.
    """
    setting = [asdict(limits), dict(known)]
    idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()

    def ask(chunk: Sequence[str]) -> list[Look | None]:
        process = idle.get()
        try:
            return _asked(process, chunk)
        finally:
            idle.put(process)

    processes: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            processes.append(_started())
            idle.put(processes[-1])
            _send(processes[-1], setting)
        for found in pool.map(ask, [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]):
            yield from found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
            process.communicate()
        pool.shutdown()


def _started() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        apart.command_of("models.looking"),
        env=apart.without_threads(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _send(process: "subprocess.Popen[str]", content: object) -> None:
    assert process.stdin is not None, "it is a pipe"
    with suppress(BrokenPipeError):  # it died: there will be no answer
        process.stdin.write(f"{json.dumps(content)}\n")
        process.stdin.flush()


def _asked(process: "subprocess.Popen[str]", chunk: Sequence[str]) -> list[Look | None]:
    assert process.stdout is not None, "it is a pipe"
    _send(process, list(chunk))
    answer = process.stdout.readline()
    if not answer:
        raise InvalidData(
            f"a process that decodes images ended before its time, at one of {chunk[0]!r} to {chunk[-1]!r}: memory may "
            "be short, or one of them ends the decoder; free some, or look at these images"
        )
    return [None if look is None else (look[0], look[1]) for look in json.loads(answer)]


def main(asked: IO[str], answers: IO[str]) -> None:
    """Answer lists of paths until there are no more; the first line has the limits, and what is known."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that asks
    limits, known = json.loads(asked.readline())
    allowed = ImageLimits(**limits)
    for line in asked:
        print(json.dumps([_look_at_file(path, allowed, known) for path in json.loads(line)]), file=answers, flush=True)


def _look_at_file(path: str, limits: ImageLimits, known: Mapping[str, str | None]) -> Look | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe might never end
            return None
        with open(path, "rb") as file:
            data = read_bounded(file, limits.max_bytes)
    except OSError:
        return None
    return look_at(data, limits, known) if len(data) <= limits.max_bytes else None


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
