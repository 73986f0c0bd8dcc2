"""Who is next where few may work at once: one line for each holder, in turns, so a long line delays nobody else."""

import asyncio
from collections import OrderedDict, deque
from types import TracebackType

Waiting = tuple["asyncio.Future[None]", int]


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
        self._used = 0
        # One line for each holder who waits, the one whose turn is next first.
        self._lines: OrderedDict[str, deque[Waiting]] = OrderedDict()

    def turn(self, holder: str, amount: int = 0) -> "Turn":
        """Return what waits for a turn of `holder` and holds it while its block runs."""
        return Turn(self, holder, amount)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    async def begin(self, holder: str, amount: int) -> None:
        if not self._lines and self._fits(amount):  # mostly: without a future
            self._take(amount)
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(holder, deque()).append((ready, amount))
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # its turn came in the same moment
                self.end(amount)
            else:
                self._leave(holder, (ready, amount))
            raise

    def end(self, amount: int) -> None:
        self._free += 1
        self._used -= amount
        self._call_next()

    def _fits(self, amount: int) -> bool:
        return self._free > 0 and (not self._used or not self._total or self._used + amount <= self._total)

    def _take(self, amount: int) -> None:
        self._free -= 1
        self._used += amount

    def _leave(self, holder: str, waiting: Waiting) -> None:
        line = self._lines.get(holder)
        if line is None or waiting not in line:  # passed over between its cancelling and now
            return
        line.remove(waiting)
        if not line:
            del self._lines[holder]
        self._call_next()  # who stood behind it may need less

    def _call_next(self) -> None:
        """Let in whose turn it is; a large amount waits for its room, and nobody passes it meanwhile."""
        while self._lines:
            holder, line = next(iter(self._lines.items()))
            ready, amount = line[0]
            is_gone = ready.cancelled()  # its task has been cancelled and does not know it yet
            if not is_gone and not self._fits(amount):
                return
            line.popleft()
            if not line:
                del self._lines[holder]
            if is_gone:
                continue
            if line:
                self._lines.move_to_end(holder)
            self._take(amount)
            ready.set_result(None)


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
        self._turns.end(self._amount)
