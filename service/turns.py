"""Who is next where few may work at once: each holder one after the other, so that a line of one delays nobody else."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets a number of holders work at once, each of them once at most. Use from one event loop."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._working: set[str] = set()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """Wait for a turn of `holder` and hold it while the block runs."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holder, ready))
        self._call_next()
        try:
            await ready
            yield
        finally:
            if ready.done() and not ready.cancelled():
                self._free += 1
                self._working.discard(holder)
            else:  # given up while waiting
                self._waiting.remove((holder, ready))
            self._call_next()

    def _call_next(self) -> None:
        for waiting in list(self._waiting):
            holder, ready = waiting
            if not self._free:
                return
            if holder not in self._working:
                self._waiting.remove(waiting)
                self._free -= 1
                self._working.add(holder)
                ready.set_result(None)
