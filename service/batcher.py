"""The queue before the engine: bounded, and batching by itself.

The engine runs on one thread. While it is busy, images gather; when it is free, all that have gathered
run together, up to a limit. So a lone image never waits for company, and under load batches grow.
BentoML's own batching has an unbounded queue and fails a whole batch for one item.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from models.errors import Overloaded
from service.engine import Logits, Row
from service.metrics import Metrics

Run = Callable[[Sequence[Row]], list[Logits]]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One image with all the tasks it is asked about."""

    rows: Sequence[Row]
    answer: "asyncio.Future[list[Logits]]"
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Use from one event loop, between `start` and `stop`; `run_in_turn` from other threads."""

    def __init__(self, run: Run, *, max_batch_rows: int, max_queue_images: int, metrics: Metrics) -> None:
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_queue_images = max_queue_images
        self._metrics = metrics
        self._queue: dict[_Job, None] = {}  # in order of arrival; a dict, so that leaving it early is cheap
        self._images = 0
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Drop what waits; requests still waiting get CancelledError."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        for job in list(self._queue):
            job.answer.cancel()
        self._thread.shutdown(wait=True)

    @contextlib.contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold room for `images` from before they are decoded until they are answered.

        Raises:
            Overloaded: there is no room.
        """
        if self._images + images > self._max_queue_images:
            raise Overloaded(
                f"the queue is full: {self._images} images are waiting, {images} more would exceed "
                f"{self._max_queue_images}; try again after the time in Retry-After"
            )
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def _count(self, images: int) -> None:
        self._images += images
        self._metrics.images_waiting.set(self._images)

    async def submit(self, rows: Sequence[Row]) -> list[Logits]:
        """Return the logits of one image's rows. A cancelled call leaves the queue."""
        job = _Job(rows, asyncio.get_running_loop().create_future())
        self._queue[job] = None
        self._arrival.set()
        try:
            return await job.answer
        finally:
            self._queue.pop(job, None)

    def run_in_turn(self, rows: Sequence[Row]) -> list[Logits]:
        """Run rows from another thread, between two batches and beside none; blocks until they are done."""
        return self._thread.submit(self._run, rows).result()

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            batch = self._take()
            if batch:
                await self._answer(batch)
            else:
                self._arrival.clear()

    def _take(self) -> list[_Job]:
        """Remove and return the oldest jobs that fit into one batch; a job larger than a batch goes alone."""
        batch: list[_Job] = []
        room = self._max_batch_rows
        for job in self._queue:
            if batch and len(job.rows) > room:
                break
            room -= len(job.rows)
            batch.append(job)
        for job in batch:
            del self._queue[job]
            self._metrics.queue_seconds.observe(time.monotonic() - job.since)
        return batch

    async def _answer(self, batch: list[_Job]) -> None:
        rows = [row for job in batch for row in job.rows]
        self._metrics.batch_rows.observe(len(rows))
        started = time.monotonic()
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, rows)
        except Exception as error:  # the engine's, whatever it is, belongs to the job that caused it
            await self._answer_singly(batch, error)
            return
        finally:
            self._metrics.engine_seconds.inc(time.monotonic() - started)
        answers = iter(logits)
        for job in batch:
            own = [next(answers) for _ in job.rows]
            if not job.answer.done():  # its request may have been given up meanwhile
                job.answer.set_result(own)

    async def _answer_singly(self, batch: list[_Job], error: Exception) -> None:
        if len(batch) > 1:
            for job in batch:
                await self._answer([job])
        elif not batch[0].answer.done():
            batch[0].answer.set_exception(error)
