"""A process that decodes images which may take long, so that what takes too long can be ended with it.

As a program, `python -m models.decoder PARENT SECONDS BYTES`, it reads requests on stdin and writes answers on stdout
until stdin ends or the process PARENT does. It is niced, and each image may take SECONDS of processor time: then the
system ends the process. Wall time would refuse good images on a busy machine. It may hold BYTES of memory.
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from models import apart, errors
from models.family import end_with_parent
from models.preprocess import ImageLimits, load_pixels

NICENESS = 5  # beside busy threads of normal priority it gets a quarter of a core (the weights of Linux: 335 to 1024)
LENGTH = struct.Struct("<II")  # of a message: the JSON, and the bytes behind it
READY = b"\n"  # written once, before the first answer

Decoded = dict[int, UInt8[np.ndarray, "size size 3"]]


def write_message(file: IO[bytes], told: Mapping[str, Any], data: bytes = b"") -> None:
    text = json.dumps(told).encode()
    file.write(LENGTH.pack(len(text), len(data)) + text)
    file.write(data)
    file.flush()


def read_message(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the next message; EOFError if there is none, or no whole one."""
    text, data = LENGTH.unpack(_exactly(file, LENGTH.size))
    return json.loads(_exactly(file, text)), _exactly(file, data)


def _exactly(file: IO[bytes], size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise EOFError(f"{len(found)} of {size} bytes")
    return found


def ask(file: IO[bytes], data: bytes, sizes: Sequence[int], limits: ImageLimits) -> None:
    """Write what `answer` reads."""
    told = {"sizes": list(sizes), "max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels}
    write_message(file, told, data)


def answered(file: IO[bytes]) -> Decoded:
    """Read what `answer` wrote: the image in each of the sizes.

    Raises:
        InvalidImage: as `load_pixels`.
        ImageTooLarge: as `load_pixels`; also if decoding takes too much memory.
        EOFError: the process has ended.
    """
    told, data = read_message(file)
    if "error" in told:
        raise {"ImageTooLarge": errors.ImageTooLarge}.get(told["error"], errors.InvalidImage)(told["message"])
    found: Decoded = {}
    at = 0
    for size in told["sizes"]:
        found[size] = np.frombuffer(data, np.uint8, 3 * size * size, at).reshape(size, size, 3)
        at += 3 * size * size
    return found


def answer(requests: IO[bytes], answers: IO[bytes], *, seconds: float, max_bytes: int) -> None:
    """Answer one request; EOFError if there is none."""
    asked, data = read_message(requests)
    limits = ImageLimits(max_bytes=asked["max_bytes"], max_pixels=asked["max_pixels"])
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal ends the process
        pixels = b"".join(load_pixels(data, size, limits).tobytes() for size in asked["sizes"])
    except (errors.InvalidImage, errors.ImageTooLarge) as error:
        write_message(answers, {"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        what = f"decoding the image takes more than {max_bytes:,} bytes of memory, which are allowed: scale it down"
        write_message(answers, {"error": "ImageTooLarge", "message": what})
    else:
        write_message(answers, {"sizes": asked["sizes"]}, pixels)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    parent, seconds, max_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    end_with_parent(parent, grace_s=0.0)
    apart.step_back(NICENESS)
    apart.limit_memory(max_bytes)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        answers.write(READY)
        answers.flush()
        while True:
            try:
                answer(sys.stdin.buffer, answers, seconds=seconds, max_bytes=max_bytes)
            except EOFError:
                return


if __name__ == "__main__":
    main()
