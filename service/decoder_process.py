"""The server's side of one decoding process, see `models/decoder.py`: started when needed, ended from any thread."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from models import apart
from models.decoder import READY, Decoded, answered, ask
from models.errors import ImageTooLarge, InvalidImage
from models.preprocess import ImageLimits

MEMORY_BYTES = 2**30  # of one process; transparent images of 50 megapixels take 0.65 GiB, HEIF ones the most (measured)
FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**22), "MALLOC_TRIM_THRESHOLD_": str(2**22), "MALLOC_ARENA_MAX": "1"}


class DecoderProcess:
    """Decodes one image at a time. `decode` blocks: call it from a thread, and `end` from any other."""

    def __init__(self, limits: ImageLimits, *, seconds: float, memory_bytes: int = MEMORY_BYTES) -> None:
        """
        Args:
            limits: of one image.
            seconds: of processor time that it may take.
            memory_bytes: that the process may hold.
        """
        self._limits = limits
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ended = False
        self._lock = threading.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether it can decode another image."""
        return not self._is_ended and self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def decode(self, data: bytes, sizes: Sequence[int]) -> Decoded:
        """Return the image in each of the sizes.

        Raises:
            InvalidImage: as `load_pixels`; also if the image ends the process.
            ImageTooLarge: as `load_pixels`; also if it takes too much time or memory.
        """
        process = self._started()
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        try:
            ask(process.stdin, data, sizes, self._limits)
            return answered(process.stdout)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise self._why_ended(process.returncode) from error

    def close(self) -> None:
        """End the process and wait for that; not while another thread is in `decode`."""
        self.end()
        process = self._process
        if process is not None:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not written is nobody's
                    assert pipe is not None, "it is a pipe"
                    pipe.close()

    def end(self) -> None:
        """End the process, whatever it does; a `decode` that waits for it fails and cleans up."""
        with self._lock:
            self._is_ended = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_ended:
                raise InvalidImage("the image was given up before it was decoded: send it again")
            if self._process is not None:
                return self._process
            arguments = (str(os.getpid()), repr(self._seconds), str(self._memory_bytes))
            self._process = process = subprocess.Popen(
                apart.command_of("models.decoder", *arguments),
                env=apart.without_threads() | FREE_AT_ONCE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert process.stdout is not None, "it is a pipe"
        if process.stdout.read(len(READY)) != READY and not self._is_ended:
            self.close()
            raise RuntimeError(f"a decoding process ended with status {process.returncode} before its first image")
        return process

    def _why_ended(self, status: int) -> ImageTooLarge | InvalidImage:
        if status in {-signal.SIGPROF, -signal.SIGXCPU}:
            return ImageTooLarge(
                f"decoding the image takes more than {self._seconds:g} s of processor time, the limit that "
                "MU2NET_DECODE_TIMEOUT_S sets: scale it down, or save it as a baseline JPEG or a PNG"
            )
        return InvalidImage(f"the image ended its decoder (status {status}): send a whole, readable file")
