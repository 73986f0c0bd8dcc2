"""Threads for calls that take long, apart from those that answer from memory; each client gets places in turns.

A store or a database that accepts and never answers holds a thread for seconds. In the pool that all endpoints share
it would hold up /metrics, the console and the decoding of requests as well.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from models.errors import Mu2NetError, Overloaded, StoreUnreachable
from service.turns import Turns

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

STORE_PLACES, STORE_PATIENCE_S = 16, 5.0
COMPUTING, COMPUTING_S = 2, 0.1  # calls at once that may be computing: which have just begun


class Threads:
    """Runs calls, as many at once as it has places. Use from one event loop.

    Of calls that compute few run at once, since each takes the interpreter from the event loop. Nobody knows what a
    call does, but one that has not ended after a moment most likely waits for something.
    """

    def __init__(self, places: int, patience_s: float, refusal: Callable[[int], Mu2NetError]) -> None:
        """
        Args:
            places: calls at once.
            patience_s: that a call waits for a place.
            refusal: makes the error for a call that got none, from the number of places.
        """
        self._places = places
        self._patience_s = patience_s
        self._refusal = refusal
        self._turns = Turns(places)
        self._computing = Turns(COMPUTING)
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="call")

    async def run(
        self, holder: str, call: "Callable[Arguments, Result]", /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what `call` returns, when it is the holder's turn.

        Raises:
            Mu2NetError: no place became free in time.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.begin(holder)
        except TimeoutError:
            raise self._refusal(self._places) from None
        return await asyncio.shield(asyncio.ensure_future(self._run(holder, partial(call, *args, **kwargs))))

    async def _run(self, holder: str, call: "Callable[[], Result]") -> Result:
        """Run to the end, even if the request has gone: the place is not free before."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        try:
            await self._computing.begin(holder)
            began = loop.time()
            running = loop.run_in_executor(self._threads, context.run, call)
            try:
                await asyncio.wait({running}, timeout=COMPUTING_S)
            finally:
                self._computing.end(holder, used=loop.time() - began)
            return await running
        finally:
            self._turns.end(holder)

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def store_threads(places: int = STORE_PLACES, patience_s: float = STORE_PATIENCE_S) -> Threads:
    """Return threads for what asks the store or the queue: each waits for another machine and hardly computes."""
    return Threads(places, patience_s, _store_is_slow)


def upload_threads() -> Threads:
    """Return threads for what copies uploads into the store, which may take minutes."""
    return Threads(4, 60.0, _store_is_slow)


def answer_threads() -> Threads:
    """Return the thread for answers that take long to compute: several would only take the interpreter in turns."""
    return Threads(1, 10.0, _busy)


def _store_is_slow(places: int) -> StoreUnreachable:
    return StoreUnreachable(
        f"{places} requests wait for the store or the queue, which answers too slowly: try again later"
    )


def _busy(places: int) -> Overloaded:
    return Overloaded("too many requests ask for what takes long to compute; try again after the time in Retry-After")
