"""Threads for what asks the store or the queue, apart from those that answer from memory.

A store or a database that accepts and never answers holds a thread for seconds. In the pool that all endpoints share
it would hold up /metrics, the console and the decoding of requests as well.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from models.errors import StoreUnreachable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PLACES = 16  # calls at once; each waits for another machine and hardly computes
PATIENCE_S = 5.0  # that a call waits for a place


class StoreThreads:
    """Runs calls, as many at once as it has places."""

    def __init__(self, places: int = PLACES, patience_s: float = PATIENCE_S) -> None:
        self._places = places
        self._patience_s = patience_s
        self._free = asyncio.Semaphore(places)
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="store")

    async def run(
        self, call: "Callable[Arguments, Result]", *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what `call` returns.

        Raises:
            StoreUnreachable: no place became free in time.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnreachable(
                f"{self._places} requests wait for the store or the queue, which answers too slowly: try again later"
            ) from None
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        running = loop.run_in_executor(self._threads, partial(context.run, partial(call, *args, **kwargs)))
        running.add_done_callback(lambda _: self._free.release())  # not before, even if the request has gone
        return await asyncio.shield(running)

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
