"""From encoded images and task names to logits: pins a release, decodes beside the event loop, asks the batcher."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import ImageTooLarge, InvalidImage, NotReady, Overloaded
from models.image_cost import ImageCost
from service.batcher import Batcher
from service.decoders import Decoders, EncodedOrPixels, of_several
from service.engine import LoadedRoute, Logits, Row
from service.release import LoadedRelease
from service.residents import Residents


@dataclass(frozen=True, slots=True)
class Answer:
    """One task's logits for each image, in the order of the images."""

    route: LoadedRoute
    logits: Sequence[Logits]


class Predictor:
    """Answers from the resident releases; a call ends on the release it began on."""

    def __init__(self, batcher: Batcher, residents: Residents, decoders: Decoders, *, timeout_s: float) -> None:
        self._residents = residents
        self._batcher = batcher
        self._decoders = decoders
        self._timeout_s = timeout_s

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

    async def classify(
        self, images: Sequence[EncodedOrPixels], routes: Sequence[LoadedRoute], *, client: str = ""
    ) -> list[Answer]:
        """Return one answer for each of `routes`.

        Args:
            images: files or pixels.
            routes: the tasks that are asked.
            client: who asks, the unit of fairness; see `Caller.client`.

        Raises:
            InvalidImage: an image that cannot be read; of several the message says which.
            ImageTooLarge: an image with more bytes, pixels or scans than allowed, or that takes too long to decode.
            RequestTooLarge: all images together have more pixels than allowed.
            Overloaded: the queue is full, or the answer took longer than allowed.
        """
        with self._batcher.admit(tuple(route.task for route in routes), len(images), client):
            try:
                async with asyncio.timeout(self._timeout_s):
                    by_image = await self._classify_all(images, routes, client)
            except TimeoutError:
                raise Overloaded(
                    f"no answer within {self._timeout_s:g} s, so the request was given up: send fewer images at once, "
                    "or try again later"
                ) from None
        return [Answer(route, [answers[k] for answers in by_image]) for k, route in enumerate(routes)]

    async def _classify_all(
        self, images: Sequence[EncodedOrPixels], routes: Sequence[LoadedRoute], client: str
    ) -> list[list[Logits]]:
        costs = await self._decoders.costs(images)
        sizes = sorted({route.route.image_size for route in routes})

        async def classify(index: int, image: EncodedOrPixels, cost: ImageCost) -> list[Logits]:
            try:
                decoded = await self._decoders.decode(image, cost, sizes, client)
            except (InvalidImage, ImageTooLarge) as error:
                raise of_several(error, index, len(images)) from error
            rows = [Row(decoded[route.route.image_size], route) for route in routes]
            return await self._batcher.submit(rows, client)

        with self._decoders.admit(client, costs):
            found = zip(images, costs, strict=True)
            return await _all_or_none([classify(index, image, cost) for index, (image, cost) in enumerate(found)])


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
