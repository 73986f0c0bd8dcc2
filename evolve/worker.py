"""`mu2net worker`: takes jobs from the queue, one at a time, and evolves their tasks.

A worker may be killed at any moment: its lease runs out, and another goes on from the journal. It runs at
the lowest priority with few threads, since it usually shares its machine with the server.

What goes wrong is the job's fault or the machine's. A job that is at fault fails. A full disk, a store that cannot
be reached, a library that cannot be loaded are no fault of the job: it goes back to the queue with its images, and
this worker waits, or ends where its own process may be damaged.
"""

import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

import typer

from evolve.executors import ExecutorOption, RayAddressOption, WorkersOption, open_executor
from models.commands import SignOption, StoreArgument, open_store
from models.errors import (
    ClusterLost,
    LeaseLost,
    Mu2NetError,
    PublishConflict,
    QueueUnreachable,
    StorageFull,
    StorageReadOnly,
    StoreError,
    StoreNotFound,
    StoreUnreachable,
    TaskBusy,
    WorkerFailed,
)
from models.family import PARENT_VARIABLE, end_with_parent
from models.jobs import LEASE_S, MAX_FRUITLESS_STARTS, Claim, Job, JobQueue, queue_url
from models.leftovers import drop_leftovers
from models.storage import STORE, storage_error
from models.store import Store
from models.uploads import Uploads, drop_unused

POLL_S = 0.5  # between looks for a job
DEFER_S = 0.2  # between attempts to stop a main thread that loads a module
STOP_S = 10.0  # for a worker whose parent has gone to give its job back
BEAT_S = LEASE_S / 5  # between renewals of the lease
BUSY_PAUSE_S = 5.0  # before a job is tried again whose task somebody evolves by hand
SWEEP_S = 3600.0  # between looks for images that nobody needs any more
DAY_S = 24 * 3600.0
NICENESS = 19
AUTOGROUP = Path("/proc/self/autogroup")


MACHINE_PAUSE_S = (5.0, 300.0)  # after an error of the machine: the first pause, doubled with each up to the last
MACHINE_ERRORS = (
    MemoryError,
    ImportError,
    BrokenExecutor,  # a process that trained was killed, mostly for its memory
    StoreUnreachable,
    StoreNotFound,
    PublishConflict,
    QueueUnreachable,
    ClusterLost,
    StorageFull,
    StorageReadOnly,
)
# What is left of a library that was loaded by half cannot be loaded again by the same process.
DAMAGING_ERRORS = (MemoryError, ImportError)
NO_ROOM = re.compile(  # libraries that have no type for it
    r"No space left on device|Disk quota exceeded|file write failed|Cannot allocate memory|out of memory", re.IGNORECASE
)


class JobStopped(BaseException):
    """Raised in the main thread to end a job from outside; like KeyboardInterrupt no error of the job's own."""


class Hold:
    """Holds a claimed job: renews its lease, and stops the main thread when the job must end. A context manager.

    The main thread is never stopped while it loads a module: half loaded, many cannot be loaded again in this process.
    """

    def __init__(self, queue: JobQueue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._is_ending = threading.Event()
        self._is_deferred = threading.Event()  # the main thread must stop, but loads a module
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._handlers: dict[int, object] = {}
        self._is_told_to_end = False
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
        if self._is_told_to_end and kind is not JobStopped:  # the job was over before the module was loaded
            signal.raise_signal(signal.SIGTERM)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending.is_set():
            return
        if loads_a_module(frame):
            self._is_told_to_end |= number == signal.SIGTERM
            self._is_deferred.set()
            return
        self._is_ending.set()
        raise JobStopped

    def _beat(self) -> None:
        held_until = time.monotonic() + LEASE_S
        beat_at = time.monotonic() + BEAT_S
        while not self._is_ending.wait(min(BEAT_S, DEFER_S)):
            if self._is_deferred.is_set() or self.is_cancelled or self.is_lost:
                os.kill(os.getpid(), signal.SIGUSR1)
            if time.monotonic() < beat_at or self.is_cancelled or self.is_lost:
                continue
            beat_at = time.monotonic() + BEAT_S
            try:
                renewed_at = time.monotonic()
                self.is_cancelled = self._queue.renew(self._claim).is_cancelling
                held_until = renewed_at + LEASE_S
            except LeaseLost:
                self.is_lost = True
            except QueueUnreachable:  # it may come back; but others may have the job as soon as the lease is over
                self.is_lost = time.monotonic() + BEAT_S > held_until


def loads_a_module(frame: FrameType | None) -> bool:
    """Whether the code at `frame` runs within an import, however deep."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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
    sign: SignOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
    parent: Annotated[int | None, typer.Option(envvar=PARENT_VARIABLE, hidden=True)] = None,
) -> None:
    """Work on the tasks that are sent to the server of this store. Ctrl-C stops; the job is taken up again."""
    if parent is not None:
        end_with_parent(parent, grace_s=STOP_S)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a closed terminal
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    step_back()
    os.umask(0o077)  # what libraries write of a task's images is nobody else's
    opened = open_store(store, sign)
    if not opened.is_remote:
        opened.local_files.close_to_others()
    jobs = JobQueue(queue_url(opened, queue))
    keep_s = None if keep_uploads_days is None else keep_uploads_days * DAY_S

    def work(claim: Claim) -> None:
        try:
            from evolve.job import JobTeller, run_job  # torch: after the job is held, so that its progress can be seen
        except Exception as error:  # of whatever kind: half of it is loaded
            raise ImportError(f"evolve.job cannot be loaded: {told(error)}") from error

        chosen = open_executor(executor, workers=workers, ray_address=ray_address)
        with chosen as execute:
            run_job(claim.job, opened, JobTeller(jobs, claim), execute)

    swept_at, errors = -SWEEP_S, 0
    while True:
        claim = _claimed(jobs, is_fatal=once)
        if claim is not None:
            error = work_on(claim, opened, jobs, work)
            errors = 0 if error is None else errors + 1
            if error is not None:
                _recover(error, errors, is_fatal=once)
        elif once:
            return
        else:
            time.sleep(POLL_S)
        if time.monotonic() - swept_at > SWEEP_S:
            swept_at = time.monotonic()
            _sweep(opened, jobs, keep_s)


def _recover(error: Exception, errors: int, *, is_fatal: bool) -> None:
    """Wait after an error of the machine, or end this process if it may be damaged or shall not wait."""
    if is_fatal or isinstance(error, DAMAGING_ERRORS):
        raise WorkerFailed(f"the job waits for another worker, because this one cannot go on: {told(error)}") from error
    pause_s = min(MACHINE_PAUSE_S[0] * 2 ** (errors - 1), MACHINE_PAUSE_S[1])
    typer.echo(f"{told(error)}; the job waits, and this worker goes on in {pause_s:g} s", err=True)
    time.sleep(pause_s)


def _sweep(store: Store, queue: JobQueue, keep_s: float | None) -> None:
    """Delete images that nobody needs and what killed writers left; what cannot be deleted is tried again later."""
    try:
        for task in Uploads(store).tasks():
            drop_unused(store, queue, task, keep_s=keep_s)
        drop_leftovers(store.folder)
    except (Mu2NetError, OSError) as error:
        typer.echo(f"unused images could not be deleted: {error}; trying again in {SWEEP_S / 3600:g} h", err=True)


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


def _claimed(queue: JobQueue, *, is_fatal: bool) -> Claim | None:
    try:
        return queue.claim()
    except QueueUnreachable as error:
        if is_fatal:
            raise
        typer.echo(f"{error}; trying again", err=True)
        time.sleep(BEAT_S)
        return None


def work_on(claim: Claim, store: Store, queue: JobQueue, work: Callable[[Claim], None]) -> Exception | None:
    """Do a job and record how it ended. Only what ends this process, or a lost lease, leaves it open.

    Returns the error of this machine that sent the job back to the queue, None if there was none.
    """
    job = claim.job
    error: Exception | None = None
    try:
        queue.log(job.id, f"taken up by {socket.gethostname()}:{os.getpid()}, start {job.starts}")
        if job.is_cancelling:
            queue.end(claim, "cancelled")
        elif queue.is_given_up(claim):
            _fail(queue, claim, _given_up(job))
        else:
            error = _try(claim, queue, work)
        if queue.job(job.id).is_over:
            drop_unused(store, queue, job.request.task, digest=job.request.upload)
    except LeaseLost:  # another worker has it
        return None
    except QueueUnreachable as unreachable:  # another worker has it when the lease is over
        return unreachable
    except (
        StoreError,
        StoreNotFound,
        StorageFull,
        StorageReadOnly,
        OSError,
    ) as unswept:  # the job is over, and its images go with a sweep
        typer.echo(f"the images of job {job.id} could not be deleted: {told(unswept)}", err=True)
    return error


def _given_up(job: Job) -> str:
    if job.error is None:
        return f"{MAX_FRUITLESS_STARTS} workers died in this job, each before a candidate was trained"
    return f"{MAX_FRUITLESS_STARTS} starts of this job ended before a candidate was trained, the last with: {job.error}"


def _try(claim: Claim, queue: JobQueue, work: Callable[[Claim], None]) -> Exception | None:
    """Do the job and record how it ended; return the error of this machine that sent it back to the queue."""
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
    except Exception as error:
        if is_of_machine(error):
            with suppress(QueueUnreachable):  # then the lease runs out
                queue.log(claim.job.id, f"another worker goes on from here, because this one cannot: {told(error)}")
                queue.give_back(claim, told(error))
            return error
        if isinstance(error, Mu2NetError | OSError):
            _fail(queue, claim, str(error))
            return None
        queue.log(claim.job.id, traceback.format_exc())
        _fail(queue, claim, f"the job failed unexpectedly ({type(error).__name__}: {error}): its log has more")
    else:
        queue.end(claim, "done")
    return None


def is_of_machine(error: Exception) -> bool:
    """Whether an error says nothing about the job: another worker, or this one later, may well do it."""
    if isinstance(error, OSError):
        return error.errno is not None or storage_error(error, STORE) is not None  # Pillow's about images have none
    return isinstance(error, MACHINE_ERRORS) or NO_ROOM.search(str(error)) is not None


def told(error: Exception) -> str:
    """Return an error in one line, with its kind where its text alone says little."""
    return str(error) if isinstance(error, Mu2NetError) else f"{type(error).__name__}: {error}"


def _leave(queue: JobQueue, claim: Claim) -> None:
    queue.log(claim.job.id, "the worker was stopped; another will go on from here")
    queue.give_back(claim)


def _fail(queue: JobQueue, claim: Claim, error: str) -> None:
    queue.log(claim.job.id, f"failed: {error}")
    queue.end(claim, "failed", error)
