"""One classify request, whatever the protocol: who asks, which release and tasks, and that nobody waits in vain."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service import traces
from service.access import Caller, allow, caller_of, server_of
from service.decoders import EncodedOrPixels
from service.engine import LoadedRoute
from service.metrics import NO_TASK, task_label
from service.predictor import Answer
from service.release import LoadedRelease

Result = TypeVar("Result")


def begin(request: Request, pinned: int | None) -> tuple[Caller, LoadedRelease]:
    """Return who asks, if they may classify at all, and the release that will answer; from here on it is counted."""
    request.state.tasks = [NO_TASK]
    caller = allow(request, "classify")
    release = server_of(request).predictor.ready_release(pinned)
    request.state.release = release.number
    traces.describe_request("release", release.number)
    return caller, release


def choose(request: Request, caller: Caller, release: LoadedRelease, tasks: Sequence[str]) -> list[LoadedRoute]:
    """Return the routes of the tasks that the request asks about, see `Caller.routes`."""
    routes = caller.routes(release, tasks)
    request.state.tasks = [task_label(route) for route in routes]
    traces.describe_request("tasks", request.state.tasks)
    return routes


async def answer(request: Request, images: Sequence[EncodedOrPixels], routes: Sequence[LoadedRoute]) -> list[Answer]:
    """Return one answer for each route; given up when the client has gone, see `Predictor.classify`."""
    client = caller_of(request).client
    return await unless_gone(request, server_of(request).predictor.classify(images, routes, client=client))


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`; if the client breaks the connection first, cancel it, so that nothing is done for nobody.

    Raises:
        ClientDisconnect: the client has gone.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
