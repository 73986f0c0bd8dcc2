"""The changes of all jobs, read from the queue once for every stream that follows them.

A stream that asked the queue by itself would cost a query each half second; a few hundred would be an attack.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from models.errors import Mu2NetError
from models.jobs import Job, JobQueue

POLL_S = 0.5  # between looks at the queue
KEPT_S = 600.0  # that the end of a job can be told to a stream whose client reads slowly

log = logging.getLogger("mu2net.jobs")


class JobFeed:
    """Looks at the queue while anybody follows. Use from one event loop."""

    def __init__(self, queue: Callable[[], JobQueue]) -> None:
        self._queue = queue
        self._followers = 0
        self._polling: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()
        self._number = 0  # of the newest change
        # Each job as it is with the number of its last change, in the order of these: of a slow reader, too, only the
        # newest state of each job is kept.
        self._jobs: OrderedDict[str, tuple[int, Job]] = OrderedDict()
        self._trouble = ""

    async def changes(self) -> AsyncGenerator[list[Job], None]:
        """Yield the jobs that are not over or ended lately and then, after each look, those that have changed.

        Close it, or use `aclosing`. While the queue cannot be read nothing is yielded.
        """
        self._followers += 1
        try:
            if self._polling is None:
                self._jobs.clear()
                self._ticked = asyncio.Event()
                self._polling = asyncio.create_task(self._poll())
            if not self._jobs:
                await self._ticked.wait()
            seen = 0
            while True:
                ticked = self._ticked
                changed, seen = self._since(seen), self._number
                yield changed
                await ticked.wait()
        finally:
            self._followers -= 1
            if not self._followers:
                self.stop()

    def stop(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None

    def _since(self, seen: int) -> list[Job]:
        found = []
        for number, job in reversed(self._jobs.values()):
            if number <= seen:
                break
            found.append(job)
        return found[::-1]

    async def _poll(self) -> None:
        while True:
            try:
                self._take(await asyncio.to_thread(self._look))
                self._trouble = ""
            except Mu2NetError as error:
                if str(error) != self._trouble:
                    log.error("the jobs cannot be read, streams of them wait: %s", error)
                self._trouble = str(error)
            self._ticked.set()
            self._ticked = asyncio.Event()
            await asyncio.sleep(POLL_S)

    def _look(self) -> list[Job]:
        return self._queue().recent(KEPT_S)

    def _take(self, jobs: list[Job]) -> None:
        for job in jobs:
            number, known = self._jobs.get(job.id, (0, None))
            if known is None or is_change(known, job):
                self._number += 1
                number = self._number
                self._jobs[job.id] = (number, job)
                self._jobs.move_to_end(job.id)
            else:
                self._jobs[job.id] = (number, job)
        recent = {job.id for job in jobs}
        for gone in [job for job in self._jobs if job not in recent]:
            del self._jobs[gone]


def is_change(before: Job, after: Job) -> bool:
    """Tell whether a job has changed: that a second has passed is no change."""
    return _without_time(before) != _without_time(after)


def _without_time(job: Job) -> Job:
    return replace(job, seconds=0.0, progress=replace(job.progress, seconds_left=None))
