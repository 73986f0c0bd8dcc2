"""Decoding beside the event loop: light images on threads, costly ones in processes that can be ended.

What an image costs is known before it is decoded (`models/image_cost.py`). Light images are proven to take some tens
of milliseconds at most. All others are decoded in processes with limits of time and memory. Before both there is one
line for each client, in turns: the 64 images of one request delay another client's image by one of them.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from opentelemetry.trace import Span, Tracer, get_current_span

from models.decoder import Decoded
from models.errors import ImageTooLarge, InvalidImage, RequestTooLarge
from models.image_cost import ImageCost, image_cost
from models.preprocess import fit_pixels, load_pixels
from service import traces
from service.decoder_process import DecoderProcess
from service.engine import Pixels
from service.places import Room
from service.settings import Settings
from service.turns import Turns

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
EncodedOrPixels = bytes | Pixels  # a file's bytes, or uint8 RGB of any size [height, width, 3]

LIGHT_WORK = 4_000_000  # pixels times passes; a PNG of so many takes 40 ms, a lossless WebP 80 (measured)
AHEAD = 2  # times LIGHT_WORK handed to each thread, so that none waits for the event loop between two
LEAST_WORK = 50_000  # that an image counts as: of small ones many are handed over at once, or batches would be small
GLANCE_BYTES = 2**16  # of an image whose cost is looked at on the event loop: 40 µs, where a thread would take longer
IDLE_S = 30.0  # after which a process without work is ended


class Decoders:
    """The server's decoders. Use from one event loop; `stop` ends what runs."""

    def __init__(self, settings: Settings, tracer: Tracer) -> None:
        self._settings = settings
        self._limits = settings.image_limits
        self._tracer = tracer
        self._threads = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        ahead = AHEAD * settings.decode_threads * LIGHT_WORK
        self._light = Turns(ahead // LEAST_WORK, total=ahead)
        self._lookers = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._drivers = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="drive")
        self._costly = Turns(settings.decode_processes, total=settings.max_image_pixels)
        self._pixels = Room(settings.max_pixels_under_way, "pixels of large images are under way")
        self._idle: list[tuple[DecoderProcess, float]] = []  # and since when
        self._busy: set[DecoderProcess] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        for process in self._busy:
            process.end()
        for process, _ in self._idle:
            process.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for pool in (self._threads, self._lookers, self._drivers):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> Sequence[DecoderProcess]:
        """The processes that decode."""
        return list(self._busy)

    @property
    def processes(self) -> Sequence[DecoderProcess]:
        """The processes that decode, or wait for a costly image."""
        return [*self._busy, *(process for process, _ in self._idle)]

    async def costs(self, images: Sequence[EncodedOrPixels]) -> list[ImageCost]:
        """Return what each image of a request costs, as a quick look finds.

        Raises:
            ImageTooLarge: one has too many parts; of several the message says which.
            InvalidImage: the same.
            RequestTooLarge: all together have more pixels than allowed.
        """
        if len(images) == 1 and len(images[0]) <= GLANCE_BYTES:
            found = [_cost(images[0])]
        else:
            found = await asyncio.get_running_loop().run_in_executor(self._lookers, _costs, images)
        pixels, most = sum(map(self._counted, found)), self._settings.max_request_pixels
        if pixels > most:
            raise RequestTooLarge(
                f"the {len(images)} images of the request have {pixels:,} pixels together; at most {most:,} are "
                "allowed: scale them down, or send several requests"
            )
        return found

    @contextmanager
    def admit(self, client: str, costs: Sequence[ImageCost]) -> Iterator[None]:
        """Hold room for the pixels of a request's costly images.

        Raises:
            Overloaded: there is no room, or `client` has its share of it.
        """
        pixels = sum(self._counted(cost) for cost in costs if not self._is_light(cost))
        if not pixels:
            yield
            return
        self._pixels.take(client, pixels)
        try:
            yield
        finally:
            self._pixels.give_back(client, pixels)

    async def decode(self, image: EncodedOrPixels, cost: ImageCost, sizes: Sequence[int], client: str) -> Decoded:
        """Return the image in each of the sizes, when it is the client's turn. Cancelled, it ends the decoding.

        Raises:
            InvalidImage: it cannot be read.
            ImageTooLarge: it has more bytes or pixels than allowed, or decoding takes too much time or memory.
        """
        if isinstance(image, bytes) and len(image) <= self._limits.max_bytes and not self._is_light(cost, len(sizes)):
            return await self._decode_apart(image, self._counted(cost), sizes, client)
        amount = cost.work * len(sizes)
        return await self._beside(client, amount, self._decode, image, cost.is_plain, sizes, get_current_span())

    async def beside(
        self, client: str, work: "Callable[Arguments, Result]", *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run short work of a client on the threads that decode, when it is the client's turn."""
        return await self._beside(client, LIGHT_WORK, work, *args, **kwargs)

    async def _beside(
        self,
        client: str,
        amount: int,
        work: "Callable[Arguments, Result]",
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        async with self._light.turn(client, max(amount, LEAST_WORK)):
            return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))

    def _counted(self, cost: ImageCost) -> int:
        """Return the pixels that a limit counts: as many as may be where nobody knows."""
        most = self._limits.max_pixels
        return most if not cost.pixels and not cost.is_plain else min(cost.pixels, most)

    def _is_light(self, cost: ImageCost, sizes: int = 1) -> bool:
        return cost.is_plain and cost.work * sizes <= LIGHT_WORK

    def _decode(self, image: EncodedOrPixels, is_plain: bool, sizes: Sequence[int], request: Span) -> Decoded:
        with traces.span(self._tracer, "decode", request):
            if isinstance(image, bytes):
                return {size: load_pixels(image, size, self._limits, is_plain=is_plain) for size in sizes}
            return {size: fit_pixels(image, size, self._limits) for size in sizes}

    async def _decode_apart(self, image: bytes, pixels: int, sizes: Sequence[int], client: str) -> Decoded:
        request = get_current_span()
        async with self._costly.turn(client, pixels):
            process = self._process()
            self._busy.add(process)
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._drivers, self._drive, process, image, sizes, request
                )
            except asyncio.CancelledError:
                process.end()
                raise
            finally:
                self._busy.discard(process)
                self._keep(process)

    def _drive(self, process: DecoderProcess, image: bytes, sizes: Sequence[int], request: Span) -> Decoded:
        with traces.span(self._tracer, "decode", request):
            return process.decode(image, sizes)

    def _process(self) -> DecoderProcess:
        while self._idle:
            process, _ = self._idle.pop()
            if process.is_alive:
                return process
        return DecoderProcess(self._limits, seconds=self._settings.decode_timeout_s)

    def _keep(self, process: DecoderProcess) -> None:
        if not process.is_alive:
            return
        loop = asyncio.get_running_loop()
        self._idle.append((process, loop.time()))
        if self._sweeper is None:
            self._sweeper = loop.call_later(IDLE_S, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() - IDLE_S
        ended = [process for process, since in self._idle if since <= latest]
        self._idle = [(process, since) for process, since in self._idle if since > latest]
        for process in ended:
            self._drivers.submit(process.close)
        self._sweeper = loop.call_later(IDLE_S, self._sweep) if self._idle else None


def _costs(images: Sequence[EncodedOrPixels]) -> list[ImageCost]:
    found = []
    for index, image in enumerate(images):
        try:
            found.append(_cost(image))
        except (InvalidImage, ImageTooLarge) as error:
            raise of_several(error, index, len(images)) from error
    return found


def _cost(image: EncodedOrPixels) -> ImageCost:
    """Return an image's cost. Decoded pixels are only resized: what they take is bounded by the bytes of the body."""
    if isinstance(image, bytes):
        return image_cost(image, is_quick=True)
    return ImageCost(image.shape[0] * image.shape[1], is_plain=True)


def of_several(error: InvalidImage | ImageTooLarge, index: int, count: int) -> InvalidImage | ImageTooLarge:
    """Return an error that says which of a request's images it is about."""
    return error if count == 1 else type(error)(f"image {index + 1} of {count}: {error}")
