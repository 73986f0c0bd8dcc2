"""Who is next where few may work at once: one line for each holder, so a long line delays nobody else.

Next is the holder who has used least: start-time fair queueing (Goyal, Vin & Cheng 1996). A holder who comes after a
pause starts where the others are, so nothing is saved up by waiting. Where each turn counts the same this is a round.
"""

import asyncio
import heapq
from collections import deque
from types import TracebackType

Waiting = tuple["asyncio.Future[None]", int]

MANY = 1024  # holders whose use is remembered before a look for those who can be forgotten


class Turns:
    """Lets some work at once, and together with no more than an amount. Use from one event loop."""

    def __init__(self, at_once: int, *, total: int = 0) -> None:
        """
        Args:
            at_once: turns that are held at the same time.
            total: of the amounts of all turns that are held; one alone may have more. 0 is no limit.
        """
        self._free = at_once
        self._total = total
        self._held = 0  # of `total`
        self._lines: dict[str, deque[Waiting]] = {}
        # Each of their holders, with the use that its next turn starts from; equals in the order of their coming.
        self._next: list[tuple[float, int, str]] = []
        self._came = 0
        self._now = 0.0  # the use from which the latest turn started
        self._used: dict[str, float] = {}  # by holder, where the next turn starts from if that is later than now
        self._most_used = MANY

    def turn(self, holder: str, amount: int = 0) -> "Turn":
        """Return what waits for a turn of `holder` and holds it while its block runs."""
        return Turn(self, holder, amount)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    async def begin(self, holder: str, amount: int = 0) -> None:
        """Return when it is the holder's turn, which lasts until `end`."""
        if not self._lines and self._fits(amount):  # mostly: without a future
            self._take(self._start(holder), amount)
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._lines.get(holder)
        if line is None:
            line = self._lines[holder] = deque()
            self._queue(holder)
        line.append((ready, amount))
        self._call_next()  # it may need less than who was first until now
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # its turn came in the same moment
                self.end(holder, amount)
            else:
                self._leave(holder, (ready, amount))
            raise

    def end(self, holder: str, amount: int = 0, *, used: float = 1.0) -> None:
        """Give back a turn that took `used` of what the holders share: their number, or seconds."""
        self._free += 1
        self._held -= amount
        self._used[holder] = self._start(holder) + used
        if len(self._used) > self._most_used:
            self._used = {name: use for name, use in self._used.items() if use > self._now}
            self._most_used = max(MANY, 2 * len(self._used))
        self._call_next()

    def _start(self, holder: str) -> float:
        return max(self._now, self._used.get(holder, 0.0))

    def _queue(self, holder: str) -> None:
        self._came += 1
        heapq.heappush(self._next, (self._start(holder), self._came, holder))

    def _fits(self, amount: int) -> bool:
        return self._free > 0 and (not self._held or not self._total or self._held + amount <= self._total)

    def _take(self, start: float, amount: int) -> None:
        self._now = start
        self._free -= 1
        self._held += amount

    def _leave(self, holder: str, waiting: Waiting) -> None:
        line = self._lines.get(holder)
        if line is None or waiting not in line:  # passed over between its cancelling and now
            return
        line.remove(waiting)
        self._call_next()  # who stood behind it may need less

    def _call_next(self) -> None:
        """Let in whose turn it is; a large amount waits for its room, and nobody passes it meanwhile."""
        while self._next:
            start, _, holder = self._next[0]
            line = self._lines[holder]
            while line and line[0][0].cancelled():  # its task does not know it yet
                line.popleft()
            if line and start >= self._start(holder):
                ready, amount = line[0]
                if not self._fits(amount):
                    return
                line.popleft()
                self._take(start, amount)
                ready.set_result(None)
            heapq.heappop(self._next)
            if line:  # also where another turn of the holder's has ended since it came into the line
                self._queue(holder)
            else:
                del self._lines[holder]


class Turn:
    """A context manager, see `Turns.turn`; a class since each image of a request needs one."""

    __slots__ = ("_amount", "_holder", "_turns")

    def __init__(self, turns: Turns, holder: str, amount: int) -> None:
        self._turns, self._holder, self._amount = turns, holder, amount

    async def __aenter__(self) -> None:
        await self._turns.begin(self._holder, self._amount)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.end(self._holder, self._amount)
