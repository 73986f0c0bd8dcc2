"""The local executor: a generation's candidates side by side on this machine, sharing what is frozen.

On a CPU worker processes map the shared activations' files. Each candidate trains with the plan's number of
threads whatever the number of workers, and rows are computed in fixed pieces, so the number of workers
changes the time and nothing else. Processes rather than threads: on small networks two processes of one
thread each did over twice the work of one process with two threads. On a GPU candidates take turns in this
process (`evolve/lanes.py`): processes there do not run at once, but wait for each other's slices of time.
"""

import ctypes
import heapq
import itertools
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from evolve.candidate import Candidate
from evolve.device_memory import INPUTS_SHARE, give_memory_back, used_share
from evolve.fast_train import Checkpoint, fill, finished, forget_inputs, pieces, train
from evolve.graphed_step import WARM_UP
from evolve.halving import train_halved
from evolve.lanes import Lanes, Turns, complete
from evolve.pool import WeightPool
from evolve.prefix import Shared, Sharing, plan_sharing
from evolve.task import Task
from evolve.throughput import Phases
from evolve.train import Trained, TrainPlan
from models.cores import usable_cores
from models.files import held

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# A generation below this trains one after another in this process: some ten seconds of a core, as long as processes
# take to start; on a GPU less than the trial of how many to train at once.
PROCESS_FLOPS = 5e11

# Each step frees what it allocated, hundreds of MiB. Given back to the system, every page of them is a fault and a
# memset in the next step: without these, generations of the benchmark took 1 to 3 % longer. From glibc's malloc.h:
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, the latter's largest allowed value.
MALLOC_SETTINGS = ((-1, 2**30), (-3, 2**25))

AT_ONCE = (1, 2, 4, 8)  # candidates on one GPU that are tried
TRIAL_STEPS = 16  # of each that are timed
LEAST_GAIN = 1.05  # in candidates a second, for which it is worth having more at once
LEAST_SAVED = 0.98  # of a generation's time, for which it is worth handing a candidate from one worker to another


@dataclass(frozen=True, slots=True)
class Pause:
    """A candidate that is put aside after so many validations, and taken up again when all others are under way."""

    place: int
    validations: int


def takes_turns(plan: TrainPlan) -> bool:
    """Whether candidates that train at once do so in this process."""
    return plan.device != "cpu"


def fastest(counts: Sequence[int], seconds: Callable[[int], float | None]) -> int:
    """Return how many candidates at once make the most of them a second, going up `counts` while more are faster.

    Args:
        counts: to try, growing.
        seconds: how long so many take at once; None if they do not fit.
    """
    best, best_rate = counts[0], 0.0
    for count in counts:
        took = seconds(count)
        if took is None or count / took < LEAST_GAIN * best_rate:
            break
        best, best_rate = count, count / took
    return best


class LocalExecutor:
    """Trains generations, `workers` candidates at once: on a CPU in processes, on a GPU by turns in this process.

    With None on a CPU as many as have their threads; on a GPU as many as some steps of the first large generation's
    candidates show to be fastest. A generation that costs less than `process_flops` is worth neither processes nor
    that trial: it trains one after another in this process, unless processes run already. A context manager: its end
    ends the processes, at once if it ends by an error or by Ctrl-C.
    """

    def __init__(self, workers: int | None = 1, *, process_flops: float = PROCESS_FLOPS) -> None:
        self._most_workers = workers
        self.workers = 1  # that train the present generation at once
        self._process_flops = process_flops
        self._lanes: Lanes | None = None  # where the present generation takes turns, in this process
        self._made_lanes: dict[tuple[int, str], Lanes] = {}  # each keeps its streams, and so what they left in memory
        self._processes: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(at_once=error is not None)
        forget_inputs()

    def __call__(
        self, candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan
    ) -> Iterator[Trained]:
        """Train candidates of one generation and yield them in the same order."""
        size = candidates[0].data.image_size
        for images in (task.train, task.val):
            images.pixels(size)  # decoded here once, so that no worker does
        is_large = sum(candidate.flops(plan.network) for candidate in candidates) * plan.images >= self._process_flops
        if self._most_workers is None and is_large:
            trial = partial(_trial, candidates, task, pool, plan)
            cores = max(1, usable_cores() // plan.threads)
            self._most_workers = fastest(AT_ONCE, trial) if takes_turns(plan) else cores
        self.workers = (self._most_workers or 1) if is_large or self._processes else 1
        self._lanes = self._lanes_for(plan) if takes_turns(plan) or self.workers == 1 else None
        try:
            sharing = plan_sharing(candidates, task, plan, pool.folder / "activations")
            make_room(sharing, pool, plan)
            seconds = sum(self._fill(shared, sharing, task, pool, plan) for shared in sharing.shared)
            frozen = Phases(frozen=seconds / len(candidates))
            train_all = self._halved if plan.halving else self._trained
            for trained in train_all(candidates, sharing, task, pool, plan):
                yield replace(trained, phases=trained.phases + frozen)
        finally:
            if self._lanes:
                self._lanes.close()

    def _lanes_for(self, plan: TrainPlan) -> Lanes:
        key = self.workers, plan.device
        if key not in self._made_lanes:
            self._made_lanes[key] = Lanes(*key)
        return self._made_lanes[key]

    def _trained(
        self, candidates: Sequence[Candidate], sharing: Sharing, task: Task, pool: WeightPool, plan: TrainPlan
    ) -> Iterator[Trained]:
        if self._lanes:
            for future in [self._submit(train_whole, one, sharing, task, pool, plan) for one in candidates]:
                yield future.result()
            return
        costs = [_cost(candidate) for candidate in candidates]
        pause = best_pause(costs, plan.validations, self.workers)
        begun = pause and self._submit(
            train, candidates[pause.place], sharing, task, pool, plan, validations=pause.validations
        )
        futures = {
            place: self._submit(train_whole, candidates[place], sharing, task, pool, plan)
            for place in _longest_first(costs)
            if pause is None or place != pause.place
        }
        if pause and begun:
            checkpoint = begun.result()
            futures[pause.place] = self._submit(
                train_whole, candidates[pause.place], sharing, task, pool, plan, checkpoint
            )
        for place in range(len(candidates)):
            yield futures[place].result()

    def _halved(
        self, candidates: Sequence[Candidate], sharing: Sharing, task: Task, pool: WeightPool, plan: TrainPlan
    ) -> Iterator[Trained]:
        def start(place: int, checkpoint: Checkpoint | None, validations: int) -> "Future[Checkpoint]":
            one = candidates[place]
            return self._submit(train, one, sharing, task, pool, plan, checkpoint=checkpoint, validations=validations)

        return train_halved(candidates, start, pool, plan)

    def _fill(self, shared: Shared, sharing: Sharing, task: Task, pool: WeightPool, plan: TrainPlan) -> float:
        """Compute shared activations unless an earlier generation did; return the workers' seconds."""
        if shared.activations.is_complete:
            return 0.0
        unfinished = shared.activations.begin()
        todo = pieces(shared, sharing.data, plan)
        size = math.ceil(len(todo) / self.workers)
        with held(unfinished):
            futures = [
                self._submit(fill, shared, todo[at : at + size], unfinished, sharing.data, task, pool, plan)
                for at in range(0, len(todo), size)
            ]
            seconds = sum(future.result() for future in futures)
            shared.activations.finish(unfinished)
        return seconds

    def _submit(
        self, work: "Callable[Arguments, Turns[Result]]", *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> "Future[Result]":
        if self._lanes:
            return self._lanes.submit(work(*args, **kwargs))
        done: Future[Result] = self._started().submit(_completed, work, *args, **kwargs)  # type: ignore[arg-type]
        return done

    def _started(self) -> ProcessPoolExecutor:
        if self._processes is None:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            context.set_forkserver_preload(["evolve.fast_train"])  # torch is imported once for all workers
            worker_end, self._lifeline = context.Pipe(duplex=False)
            self._processes = ProcessPoolExecutor(self._most_workers, context, _begin_worker, (worker_end,))
        return self._processes

    def _stop(self, *, at_once: bool) -> None:
        """End the processes, if there are any."""
        if self._processes and self._lifeline:
            if at_once:
                self._lifeline.close()
            self._processes.shutdown(cancel_futures=True)
            self._lifeline.close()
        self._processes = None


def train_whole(
    candidate: Candidate,
    sharing: Sharing,
    task: Task,
    pool: WeightPool,
    plan: TrainPlan,
    checkpoint: Checkpoint | None = None,
) -> Turns[Trained]:
    """Train a candidate to the end, from the start or from a checkpoint, a turn for each step."""
    ended = yield from train(candidate, sharing, task, pool, plan, checkpoint=checkpoint, validations=plan.validations)
    return finished(candidate, ended, pool, plan)


def _completed(work: "Callable[Arguments, Turns[Result]]", *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    return complete(work(*args, **kwargs), "cpu")


def _trial(candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan, count: int) -> float | None:
    """Return the seconds of some steps of `count` candidates that take turns, None if memory does not suffice.

    Nothing kept is read meanwhile, so what that may take up has to be left.
    """
    warm_up = WARM_UP + 2
    few = replace(plan, images=(warm_up + TRIAL_STEPS + 1) * plan.batch_size, validations=1)
    nothing = Sharing(candidates[0].data, ())
    lanes = Lanes(count, plan.device)
    chosen = itertools.islice(itertools.cycle(candidates), count)
    futures = [lanes.submit(train(one, nothing, task, pool, few, validations=1)) for one in chosen]

    def seconds(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            lanes.turn()
        if plan.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    if plan.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds(warm_up)
        took = seconds(TRIAL_STEPS)
        for future in futures:
            if future.done():  # before its end: by an error
                future.result()
        is_too_large = plan.device != "cpu" and used_share() > 1 - INPUTS_SHARE
    except torch.OutOfMemoryError:
        is_too_large = True
    finally:
        lanes.close()
    if is_too_large:
        futures.clear()  # an error holds what its training held
        give_memory_back()
        return None
    return took


def make_room(sharing: Sharing, pool: WeightPool, plan: TrainPlan) -> None:
    """Delete what earlier generations shared and this one does not, the oldest first, down to the limit."""
    needed = {shared.activations.path: shared.activations.num_bytes for shared in sharing.shared}
    folder = pool.folder / "activations"
    old = [path for path in folder.glob("*") if path not in needed] if folder.is_dir() else []
    room = plan.activation_bytes - sum(needed.values())
    for path in sorted(old, key=lambda path: path.stat().st_mtime, reverse=True):
        room -= path.stat().st_size
        if room < 0:
            path.unlink()


def best_pause(costs: Sequence[int], validations: int, workers: int) -> Pause | None:
    """Return where to interrupt one candidate so that all workers end at nearly the same time (McNaughton 1959).

    Its first piece goes before all others and its rest after them, so that it fills what whole candidates, the
    longest first, would leave of the other workers' time.

    Args:
        costs: of each candidate's training, in any unit.
        validations: that each has, after which it can be interrupted.
        workers: that train at once.

    Returns:
        None if nothing worth its checkpoint is gained.
    """
    best, least = None, LEAST_SAVED * _makespan(costs, None, validations, workers)
    for place, stop in itertools.product(range(len(costs)), range(1, validations)):
        pause = Pause(place, stop)
        if (took := _makespan(costs, pause, validations, workers)) < least:
            best, least = pause, took
    return best


def _makespan(costs: Sequence[int], pause: Pause | None, validations: int, workers: int) -> float:
    """Return when the last worker is done, if each takes what is next in line."""
    line = [float(costs[place]) for place in _longest_first(costs) if pause is None or place != pause.place]
    begun, rest = 0.0, 0.0
    if pause:
        begun = costs[pause.place] * pause.validations / validations
        rest = costs[pause.place] - begun
        line = [begun, *line]
    free = [0.0] * workers
    for cost in line:
        heapq.heapreplace(free, free[0] + cost)
    heapq.heapreplace(free, max(free[0], begun) + rest)
    return max(free)


def _longest_first(costs: Sequence[int]) -> list[int]:
    return sorted(range(len(costs)), key=lambda place: -costs[place])


def _cost(candidate: Candidate) -> int:
    """Return the products of a training step, in those of one component forwards.

    From the first own component on each runs forwards, takes the gradient back, and if it is own gets one itself.
    """
    first = next(at for at, part in enumerate(candidate.parts) if part.is_own)
    return sum(2 + part.is_own for part in candidate.parts[first:])


def _begin_worker(lifeline: Connection) -> None:
    """Let this worker end when the other end of `lifeline` is closed, or its process is gone; keep freed memory."""

    def wait() -> None:
        try:
            lifeline.recv_bytes()
        except EOFError:
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    with suppress(OSError, AttributeError):  # glibc only
        library = ctypes.CDLL("libc.so.6")
        for setting, value in MALLOC_SETTINGS:
            library.mallopt(setting, value)
