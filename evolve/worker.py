"""`mu2net worker`: takes jobs from the queue, one at a time, and evolves their tasks.

A worker may be killed at any moment: its lease runs out, and another goes on from the journal. It runs at
the lowest priority with few threads, since it usually shares its machine with the server.
"""

import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

import typer

from evolve.executors import ExecutorOption, RayAddressOption, WorkersOption, open_executor
from models.commands import StoreArgument
from models.errors import LeaseLost, Mu2NetError, QueueUnreachable, TaskBusy
from models.jobs import LEASE_S, MAX_FRUITLESS_STARTS, Claim, JobQueue, queue_url
from models.store import Store
from models.uploads import Uploads, drop_unused

POLL_S = 0.5  # between looks for a job
BEAT_S = LEASE_S / 5  # between renewals of the lease
BUSY_PAUSE_S = 5.0  # before a job is tried again whose task somebody evolves by hand
SWEEP_S = 3600.0  # between looks for images that nobody needs any more
DAY_S = 24 * 3600.0
NICENESS = 19
AUTOGROUP = Path("/proc/self/autogroup")


class JobStopped(BaseException):
    """Raised in the main thread to end a job from outside; like KeyboardInterrupt no error of the job's own."""


class Hold:
    """Holds a claimed job: renews its lease, and stops the main thread when the job must end. A context manager."""

    def __init__(self, queue: JobQueue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._handlers: dict[int, object] = {}
        self.is_cancelled = False
        self.is_lost = False

    def __enter__(self) -> "Hold":
        for number in (signal.SIGUSR1, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._stop)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what was set before
        self._thread.join()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._is_ending.is_set():
            self._is_ending.set()
            raise JobStopped

    def _beat(self) -> None:
        held_until = time.monotonic() + LEASE_S
        while not self._is_ending.wait(BEAT_S):
            try:
                renewed_at = time.monotonic()
                self.is_cancelled = self._queue.renew(self._claim).is_cancelling
                held_until = renewed_at + LEASE_S
            except LeaseLost:
                self.is_lost = True
            except QueueUnreachable:  # it may come back; but others may have the job as soon as the lease is over
                self.is_lost = time.monotonic() + BEAT_S > held_until
            if self.is_cancelled or self.is_lost:
                os.kill(os.getpid(), signal.SIGUSR1)
                return


def worker(
    store: StoreArgument,
    queue: Annotated[
        str | None,
        typer.Option(envvar="MU2NET_QUEUE", help="SQLAlchemy URL of the jobs; default: a file in the store's folder."),
    ] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    keep_uploads_days: Annotated[
        float | None,
        typer.Option(min=0.0, help="Delete images sent longer ago; default: kept as long as their task is there."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
) -> None:
    """Work on the tasks that are sent to the server of this store. Ctrl-C stops; the job is taken up again."""
    step_back()
    os.umask(0o077)  # what libraries write of a task's images is nobody else's
    opened = Store.open(store)
    if not opened.is_remote:
        opened.local_files.close_to_others()
    jobs = JobQueue(queue_url(opened, queue))
    keep_s = None if keep_uploads_days is None else keep_uploads_days * DAY_S

    def work(claim: Claim) -> None:
        from evolve.job import JobTeller, run_job  # torch: after the job is held, so that its progress can be seen

        chosen = open_executor(executor, workers=workers, ray_address=ray_address)
        with chosen as execute:
            run_job(claim.job, opened, JobTeller(jobs, claim), execute)

    swept_at = 0.0
    while True:
        claim = _claimed(jobs)
        if claim is not None:
            work_on(claim, opened, jobs, work)
        elif once:
            return
        else:
            time.sleep(POLL_S)
        if time.monotonic() - swept_at > SWEEP_S:
            swept_at = time.monotonic()
            for task in Uploads(opened).tasks():
                drop_unused(opened, jobs, task, keep_s=keep_s)


def step_back() -> None:
    """Give this process and its children the lowest priority: requests go before training.

    Linux may share the processor between sessions first ("autogroup", on by default where no container does it),
    and BentoML's server is a session of its own: there niceness and class count for nothing against it, and each
    time that a thread of the server woke up it waited up to 4 ms for training. So a worker that leads a session
    lowers that as a whole; of a shell's session it has no right to.
    """
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if AUTOGROUP.exists() and os.getsid(0) == os.getpid():
        with suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))


def _claimed(queue: JobQueue) -> Claim | None:
    try:
        return queue.claim()
    except QueueUnreachable as error:
        typer.echo(f"{error}; trying again", err=True)
        time.sleep(BEAT_S)
        return None


def work_on(claim: Claim, store: Store, queue: JobQueue, work: Callable[[Claim], None]) -> None:
    """Do a job and record how it ended. Only what ends this process, or a lost lease, leaves it open."""
    job = claim.job
    queue.log(job.id, f"taken up by {socket.gethostname()}:{os.getpid()}, start {job.starts}")
    with suppress(LeaseLost, QueueUnreachable):  # then another worker has it, or will
        if job.is_cancelling:
            queue.end(claim, "cancelled")
        elif queue.is_given_up(claim):
            _fail(queue, claim, f"{MAX_FRUITLESS_STARTS} workers died in this job, each before a candidate was trained")
        else:
            _try(claim, queue, work)
        if queue.job(job.id).is_over:
            drop_unused(store, queue, job.request.task, digest=job.request.upload)


def _try(claim: Claim, queue: JobQueue, work: Callable[[Claim], None]) -> None:
    hold = Hold(queue, claim)
    try:
        with hold:
            work(claim)
    except JobStopped:
        if hold.is_cancelled:
            queue.log(claim.job.id, "cancelled")
            queue.end(claim, "cancelled")
        elif not hold.is_lost:
            _leave(queue, claim)
            raise SystemExit(143) from None  # as the signal asked
    except KeyboardInterrupt:
        _leave(queue, claim)
        raise
    except TaskBusy as error:
        queue.log(claim.job.id, f"waiting: {error}")
        queue.give_back(claim)
        time.sleep(BUSY_PAUSE_S)
    except LeaseLost:
        raise
    except (Mu2NetError, OSError) as error:
        _fail(queue, claim, str(error))
    except Exception as error:
        queue.log(claim.job.id, traceback.format_exc())
        _fail(queue, claim, f"the job failed unexpectedly ({type(error).__name__}: {error}): its log has more")
    else:
        queue.end(claim, "done")


def _leave(queue: JobQueue, claim: Claim) -> None:
    queue.log(claim.job.id, "the worker was stopped; another will go on from here")
    queue.give_back(claim)


def _fail(queue: JobQueue, claim: Claim, error: str) -> None:
    queue.log(claim.job.id, f"failed: {error}")
    queue.end(claim, "failed", error)
