"""The Ray executor: a generation's candidates side by side on the machines of a cluster.

Each candidate is a Ray task. Weights and pixels go through Ray's object store, once to each machine, where
they lie as files like those of a local run; activations of frozen components are computed once on each
machine, in the same fixed pieces. So what is trained is bit by bit what the local executor trains, whatever
the number of machines, and one that is lost costs only its candidates: Ray runs them elsewhere.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

# Ray reads it when it is imported. Otherwise a driver under `uv run` has each machine unpack a copy of the working
# directory, whatever lies in it, and build an environment for it: minutes and gigabytes before the first candidate.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray
from filelock import FileLock
from ray.exceptions import RayError, RayTaskError

from evolve.candidate import Candidate
from evolve.fast_train import Checkpoint, fill, finished, pieces, train
from evolve.halving import train_halved
from evolve.lanes import complete
from evolve.local_executor import make_room
from evolve.pool import WeightPool
from evolve.prefix import Sharing, plan_sharing
from evolve.task import LabelledImages, Task
from evolve.train import Trained, TrainPlan
from models.cores import usable_cores
from models.errors import ClusterLost, Mu2NetError
from models.files import held
from models.names import ComponentId

RETRIES = 3  # of a candidate whose machine or process is lost
STALE_S = 6 * 3600.0  # after which another run's files on a machine are nobody's


@dataclass(frozen=True, slots=True)
class Generation:
    """What all tasks of a generation need; the references are to Ray's object store."""

    candidates: Sequence[Candidate]
    task: Task  # without its test images
    plan: TrainPlan
    weights: Mapping[ComponentId, "ray.ObjectRef[bytes]"]
    pixels: Mapping[str, "ray.ObjectRef[np.ndarray]"]  # of train and val


class RayExecutor:
    """Trains generations on a Ray cluster: that at `address`, or one of this machine alone, with `workers` cores.

    A context manager: it connects when it is entered.

    Raises:
        ClusterLost: no cluster there, or a candidate was lost over and over.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self._address = address
        self._workers = workers
        self._weights: dict[ComponentId, ray.ObjectRef[bytes]] = {}
        self._pixels: dict[tuple[str, str, int], ray.ObjectRef[np.ndarray]] = {}

    def __enter__(self) -> "RayExecutor":
        place: dict[str, Any] = {"address": self._address}
        if self._address is None:
            place = {"address": "local", "num_cpus": self._workers or usable_cores(), "include_dashboard": False}
        try:
            ray.init(**place, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterLost(
                f"there is no Ray cluster at {self._address!r} ({str(error).splitlines()[0]}): start one with 'ray "
                "start --head', or leave --ray-address out for one of this machine"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()  # ends this run's tasks wherever they are

    def __call__(
        self, candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan
    ) -> Iterator[Trained]:
        """Train candidates of one generation and yield them in the same order."""
        generation = ray.put(self._sent(candidates, task, pool, plan))
        needs = {"num_cpus": plan.threads, "num_gpus": 0 if plan.device == "cpu" else 1}
        on_machine = ray.remote(**needs, max_retries=RETRIES)(train_on_machine)

        def start(place: int, checkpoint: Checkpoint | None, validations: int) -> "Future[Checkpoint]":
            future: Future[Checkpoint] = on_machine.remote(generation, place, checkpoint, validations).future()
            return future

        try:
            if plan.halving:
                yield from train_halved(candidates, start, pool, plan)
                return
            futures = [start(place, None, plan.validations) for place in range(len(candidates))]
            for candidate, future in zip(candidates, futures, strict=True):
                yield finished(candidate, future.result(), pool, plan)
        except RayTaskError as error:
            if isinstance(error.cause, Mu2NetError):
                raise error.cause from error
            raise
        except RayError as error:
            raise ClusterLost(
                f"a candidate was lost {RETRIES + 1} times ({type(error).__name__}): look whether its machines have "
                "enough memory, then run the same command again; it goes on from the last generation"
            ) from error

    def _sent(self, candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan) -> Generation:
        """Put what the generation needs into the object store, unless an earlier one did."""
        parts = [part for candidate in candidates for part in candidate.parts]
        needed = {part.component.id for part in parts} | {part.momentum for part in parts if part.momentum}
        self._weights = {id: self._weights.get(id) or ray.put(pool.read(id)) for id in sorted(needed)}
        size = candidates[0].data.image_size
        sent = self._pixels
        self._pixels = {}
        for name, images in (("train", task.train), ("val", task.val)):
            key = (task.digest, name, size)
            self._pixels[key] = sent.get(key) or ray.put(np.array(images.pixels(size)))
        pixels = {name: reference for (_, name, _), reference in self._pixels.items()}
        return Generation(list(candidates), replace(task, test=None), plan, self._weights, pixels)


def train_on_machine(generation: Generation, place: int, checkpoint: Checkpoint | None, validations: int) -> Checkpoint:
    """Train a candidate up to a validation, on the machine where this runs."""
    plan = generation.plan
    folder = _folder(generation.task.digest)
    task = _with_pixels(generation, folder / "pixels")
    pool = _with_weights(generation, folder)
    with FileLock(folder / "activations.lock"):  # the first candidate on a machine computes them for the others
        sharing = plan_sharing(generation.candidates, task, plan, folder / "activations")
        make_room(sharing, pool, plan)
        _fill(sharing, task, pool, plan)
    candidate = generation.candidates[place]
    work = train(candidate, sharing, task, pool, plan, checkpoint=checkpoint, validations=validations)
    return complete(work, plan.device)


def _folder(task_digest: str) -> Path:
    """Return this run's folder on this machine, and delete those of runs long over."""
    context = ray.get_runtime_context()
    everyone = Path(tempfile.gettempdir()) / f"mu2net-ray-{os.getuid()}"
    folder = everyone / f"{context.get_node_id()[:16]}-{context.get_job_id()}-{task_digest[:16]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(folder)
    for other in everyone.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > STALE_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _with_pixels(generation: Generation, cache_folder: Path) -> Task:
    size = generation.candidates[0].data.image_size

    def kept(images: LabelledImages, name: str) -> LabelledImages:
        here = replace(images, cache_folder=cache_folder)
        if not here.has_pixels(size):
            here.keep_pixels(ray.get(generation.pixels[name]))
        return here

    task = generation.task
    return replace(task, train=kept(task.train, "train"), val=kept(task.val, "val"))


def _with_weights(generation: Generation, folder: Path) -> WeightPool:
    pool = WeightPool(None, folder)
    for component, reference in generation.weights.items():
        if not pool.has(component):
            pool.take(component, ray.get(reference))
    return pool


def _fill(sharing: Sharing, task: Task, pool: WeightPool, plan: TrainPlan) -> None:
    for shared in sharing.shared:
        if not shared.activations.is_complete:
            unfinished = shared.activations.begin()
            todo = pieces(shared, sharing.data, plan)
            with held(unfinished):
                complete(fill(shared, todo, unfinished, sharing.data, task, pool, plan), plan.device)
                shared.activations.finish(unfinished)
