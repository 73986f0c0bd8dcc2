"""The queue before the engine: bounded, fair between clients and their tasks, and batching by itself.

The engine runs on one thread. While it is busy, images gather; when it is free, those that have gathered
run together, up to a limit of rows and of the time that they will take. So a lone image never waits for
company, and under load batches grow. Waiting on purpose would not pay on a CPU, where eight images take
eight times as long as one (measured with ViT-Ti at 224 pixels).
BentoML's own batching has an unbounded queue and fails a whole batch for one item.
"""

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry.trace import NoOpTracer, Span, Tracer, get_current_span

from models.errors import Overloaded
from service import traces
from service.engine import Logits, Row, flops
from service.metrics import Metrics, task_label

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Run = Callable[[Sequence[Row]], list[Logits]]
Asker = tuple[str, ...]  # the tasks of one image's request: a client's images for the same stand in one line

SHARE = 4  # dynamic threshold (Choudhury & Hahne 1998): a client may hold so many times the room that is left
TASK_SHARE = 1  # the same of one line of a client, and of what is left to that client
FIRST_SHARE = 0.5  # of the room that is left, for several images of a client who holds nothing: others have one image
NEW_WEIGHT = 0.2  # of the newest batch in the running mean of the engine's speed
MAX_RETRY_S = 30.0
YIELD_S = 0.02  # that a piece of other work waits for the queue to empty; then it takes the next turn all the same


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One image with all the tasks it is asked about."""

    rows: Sequence[Row]
    client: str
    flops: float
    answer: "asyncio.Future[list[Logits]]"
    since: float = field(default_factory=time.monotonic)
    request: Span = field(default_factory=get_current_span)

    @property
    def asker(self) -> Asker:
        return tuple(row.route.task for row in self.rows)


class _Ended(Exception):
    """A generator's result; a StopIteration cannot pass through a future."""


def _next_piece(pieces: Generator[None, None, object]) -> None:
    try:
        next(pieces)
    except StopIteration as end:
        raise _Ended(end.value) from None


def _trace(tracer: Tracer, batch: Sequence[_Job], *, batch_rows: int, started: float, ended: float) -> None:
    for job in batch:
        if traces.is_traced(job.request):
            about: traces.Attributes = {"tasks": [task_label(row.route) for row in job.rows], "rows": len(job.rows)}
            traces.record(tracer, "queue", job.request, started=job.since, ended=started, about=about)
            run = {**about, "batch_rows": batch_rows}
            traces.record(tracer, "engine", job.request, started=started, ended=ended, about=run)


class Batcher:
    """Use from one event loop, between `start` and `stop`; `run_in_turns` from other threads."""

    def __init__(
        self,
        run: Run,
        *,
        max_batch_rows: int,
        max_batch_s: float,
        max_queue_images: int,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_batch_s = max_batch_s
        self._max_queue_images = max_queue_images
        self._metrics = metrics
        self._tracer = NoOpTracer() if tracer is None else tracer
        # Of each client one line for each asker in order of arrival, what has its turn first; dicts: leaving is cheap.
        self._lines: OrderedDict[str, OrderedDict[Asker, dict[_Job, None]]] = OrderedDict()
        self._images: dict[str, Counter[Asker]] = {}
        self._waiting = 0  # images in all
        self._flops_per_s = 0.0  # how fast the engine has been lately, 0 as long as nobody knows
        self._seconds_per_image = 0.0
        self._arrival = asyncio.Event()
        self._is_idle = threading.Event()  # nothing waits and nothing runs
        self._is_idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None
        self._busy_since: float | None = None  # of the engine's thread, on the monotonic clock

    def start(self) -> None:
        self._thread.submit(int)  # makes the thread here and now: one made by `run_in_turns` would have its niceness
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Drop what waits; requests still waiting get CancelledError."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        for job in [job for lines in self._lines.values() for line in lines.values() for job in line]:
            job.answer.cancel()
        self._thread.shutdown(wait=True)

    @contextlib.contextmanager
    def admit(self, asker: Asker, images: int, client: str = "") -> Iterator[None]:
        """Hold room for `images` from before they are decoded until they are answered.

        One client cannot take all room, nor one of its tasks all of the client's: the fuller the queue, the less of it
        may be theirs.

        Raises:
            Overloaded: there is no room, or `client` has its share of it.
        """
        free = self._max_queue_images - self._waiting
        if images > free:
            raise self._overloaded(
                f"the queue is full: {self._waiting} images are waiting, {images} more would exceed "
                f"{self._max_queue_images}"
            )
        held = self._images.get(client)
        if held is None:
            if images > 1 and self._waiting and images > FIRST_SHARE * free:
                raise self._overloaded(
                    f"{self._waiting} images are waiting, and {images} more would take over half of the room that is "
                    f"left, for {free}: send fewer at once"
                )
        else:
            self._check_share(held, asker, images, free)
        self._count(client, asker, images)
        try:
            yield
        finally:
            self._count(client, asker, -images)

    def _check_share(self, held: "Counter[Asker]", asker: Asker, images: int, free: int) -> None:
        own, alike = held.total(), held[asker]
        if own + images > SHARE * free:
            raise self._overloaded(
                f"the queue's share of this client is full: {own} of its images are waiting, and room for {free} more "
                "is left to all"
            )
        left = SHARE * free - own
        if alike and alike + images > TASK_SHARE * left:
            raise self._overloaded(
                f"the share of {', '.join(asker)[:80]} is full: {alike} of its images are waiting for this client, and "
                f"room for {min(left, free)} more is left to all its tasks"
            )

    def _overloaded(self, what: str) -> Overloaded:
        expected_s = self._waiting * self._seconds_per_image
        return Overloaded(
            f"{what}; try again after the time in Retry-After", retry_after_s=min(expected_s, MAX_RETRY_S)
        )

    def _count(self, client: str, asker: Asker, images: int) -> None:
        held = self._images.setdefault(client, Counter())
        held[asker] += images
        if not held[asker]:
            del held[asker]
        if not held:
            del self._images[client]
        self._waiting += images
        self._metrics.images_waiting.set(self._waiting)

    @property
    def images_waiting(self) -> int:
        """Return how many images are accepted and not yet answered."""
        return self._waiting

    @property
    def busy_s(self) -> float:
        """Return for how long the engine has worked at one batch, 0 while it works at none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _watched(self, work: Callable[[Argument], Result], argument: Argument) -> Result:
        self._busy_since = time.monotonic()
        try:
            return work(argument)
        finally:
            self._busy_since = None

    async def submit(self, rows: Sequence[Row], client: str = "") -> list[Logits]:
        """Return the logits of one image's rows. A cancelled call leaves the queue."""
        job = _Job(rows, client, flops(rows), asyncio.get_running_loop().create_future())
        self._lines.setdefault(client, OrderedDict()).setdefault(job.asker, {})[job] = None
        self._is_idle.clear()
        self._arrival.set()
        try:
            return await job.answer
        finally:
            self._leave(job)

    def run_in_turns(self, pieces: Generator[None, None, Result]) -> Result:
        """Run work on the engine's thread from another one, piece by piece, beside no batch; return its result.

        A piece goes before a batch only if the queue does not empty soon.
        """
        while True:
            self._is_idle.wait(YIELD_S)
            try:
                self._thread.submit(self._watched, _next_piece, pieces).result()
            except _Ended as end:
                result: Result = end.args[0]
                return result

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            batch = self._take()
            if batch:
                await self._answer(batch)
            else:
                self._arrival.clear()
                self._is_idle.set()

    def _leave(self, job: _Job) -> None:
        """Take `job` out of its line, if it is still in it."""
        lines = self._lines.get(job.client)
        if lines is None or job.asker not in lines:
            return
        lines[job.asker].pop(job, None)
        if not lines[job.asker]:
            del lines[job.asker]
        if not lines:
            del self._lines[job.client]

    def _take(self) -> list[_Job]:
        """Remove and return jobs for one batch, while they fit: of each client one in turns, of its lines in turns.

        A job larger than a batch goes alone.
        """
        batch: list[_Job] = []
        rows, operations = 0, 0.0
        while self._lines:
            client, lines = next(iter(self._lines.items()))
            asker, line = next(iter(lines.items()))
            job = next(iter(line))
            rows += len(job.rows)
            operations += job.flops
            if batch and (rows > self._max_batch_rows or operations > self._max_batch_s * self._flops_per_s):
                break
            batch.append(job)
            self._lines.move_to_end(client)
            lines.move_to_end(asker)
            self._leave(job)
        return batch

    async def _answer(self, batch: list[_Job]) -> None:
        rows = [row for job in batch for row in job.rows]
        started = time.monotonic()
        for job in batch:
            labels = [task_label(row.route) for row in job.rows]
            self._metrics.count_batched(labels, waited_s=started - job.since, batch_rows=len(rows))
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, self._watched, self._run, rows)
        except Exception as error:  # the engine's, whatever it is, belongs to the job that caused it
            await self._answer_singly(batch, error)
            return
        finally:
            ended = time.monotonic()
            self._metrics.engine_seconds.inc(ended - started)
            _trace(self._tracer, batch, batch_rows=len(rows), started=started, ended=ended)
        self._learn_speed(batch, time.monotonic() - started)
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

    def _learn_speed(self, batch: list[_Job], seconds: float) -> None:
        flops_per_s = sum(job.flops for job in batch) / max(seconds, 1e-6)
        weight = NEW_WEIGHT if self._flops_per_s else 1.0
        self._flops_per_s += weight * (flops_per_s - self._flops_per_s)
        self._seconds_per_image += weight * (seconds / len(batch) - self._seconds_per_image)
