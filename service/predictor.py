"""From encoded images and task names to logits: pins a release, decodes beside the event loop, asks the batcher."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import Span, Tracer, get_current_span

from models.errors import ImageTooLarge, InvalidImage, NotReady, Overloaded
from models.preprocess import ImageLimits, fit_pixels, load_pixels
from service import traces
from service.batcher import Batcher
from service.engine import LoadedRoute, Logits, Pixels, Row
from service.release import LoadedRelease
from service.residents import Residents

EncodedOrPixels = bytes | Pixels  # a file's bytes, or uint8 RGB of any size [height, width, 3]


@dataclass(frozen=True, slots=True)
class Answer:
    """One task's logits for each image, in the order of the images."""

    route: LoadedRoute
    logits: Sequence[Logits]


class Predictor:
    """Answers from the resident releases; a call ends on the release it began on."""

    def __init__(
        self,
        batcher: Batcher,
        residents: Residents,
        *,
        limits: ImageLimits,
        decode_threads: int,
        timeout_s: float,
        tracer: Tracer,
    ) -> None:
        self._residents = residents
        self._batcher = batcher
        self._limits = limits
        self._tracer = tracer
        self._timeout_s = timeout_s
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    def stop(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @property
    def release(self) -> LoadedRelease | None:
        """Return the release of this moment, None before the first."""
        return self._residents.live

    def loaded_release(self) -> LoadedRelease:
        """Return the release of this moment, which may have no task.

        Raises:
            NotReady: none has been loaded.
        """
        release = self.release
        if release is None:
            raise NotReady("not ready: no release has been loaded yet; /v1/releases says why, if it failed")
        return release

    def ready_release(self, pinned: int | None = None) -> LoadedRelease:
        """Return the release of this moment, or the one that is asked for.

        Raises:
            NotReady: none has been loaded, or it has no task.
            ReleaseNotResident: the one that is asked for is not in memory.
        """
        release = self.loaded_release() if pinned is None else self._residents.pinned(pinned)
        if not release.routes and pinned is None:
            raise NotReady(f"not ready: release {release.number} has no task yet; add one with 'mu2net evolve'")
        return release

    async def classify(self, images: Sequence[EncodedOrPixels], routes: Sequence[LoadedRoute]) -> list[Answer]:
        """Return one answer for each of `routes`.

        Raises:
            InvalidImage: an image that cannot be read; of several the message says which.
            ImageTooLarge: an image with more bytes or pixels than allowed.
            Overloaded: the queue is full, or the answer took longer than allowed.
        """
        with self._batcher.admit(tuple(route.task for route in routes), len(images)):
            try:
                async with asyncio.timeout(self._timeout_s):
                    by_image = await _all_or_none(
                        [self._classify_one(image, routes, i, len(images)) for i, image in enumerate(images)]
                    )
            except TimeoutError:
                raise Overloaded(
                    f"no answer within {self._timeout_s:g} s, so the request was given up: send fewer images at once, "
                    "or try again later"
                ) from None
        return [Answer(route, [answers[k] for answers in by_image]) for k, route in enumerate(routes)]

    async def _classify_one(
        self, image: EncodedOrPixels, routes: Sequence[LoadedRoute], index: int, count: int
    ) -> list[Logits]:
        sizes = sorted({route.route.image_size for route in routes})
        try:
            decoded = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._decode, image, sizes, get_current_span()
            )
        except (InvalidImage, ImageTooLarge) as error:
            if count == 1:
                raise
            raise type(error)(f"image {index + 1} of {count}: {error}") from error
        return await self._batcher.submit([Row(decoded[route.route.image_size], route) for route in routes])

    def _decode(self, image: EncodedOrPixels, sizes: Sequence[int], request: Span) -> dict[int, Pixels]:
        with traces.span(self._tracer, "decode", request):
            if isinstance(image, bytes):
                return {size: load_pixels(image, size, self._limits) for size in sizes}
            return {size: fit_pixels(image, size, self._limits) for size in sizes}


async def _all_or_none(calls: Sequence[Coroutine[Any, Any, list[Logits]]]) -> list[list[Logits]]:
    """Await all calls; the first that fails cancels the others and is raised as it is."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
