"""Publishing a route: its components and subgraphs into the store, proven against torch, then a release.

Callable at any time, also several times for a task.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from evolve.candidate import Candidate, Part, route_hparams
from evolve.network import build_network
from evolve.onnx_route import OnnxRoute
from evolve.pool import WeightPool
from evolve.subgraphs import SubgraphWriter
from evolve.task import LabelledImages, Task
from evolve.train import TrainPlan, logits
from evolve.variants import with_variants
from models.component import ComponentRecord
from models.errors import DamagedObject, ExportMismatch, InvalidConfig, PublishConflict
from models.names import ComponentId, GoldenId, RouteId, TaskName
from models.proven import Proven
from models.release import Release
from models.root import Root
from models.route import Lineage, Quality, Route, Scalar
from models.store import Store
from models.verify import verify
from models.weights import num_parameters, serialize

EXPORT_TOLERANCE = 1e-4  # largest difference of a float32 logit between torch and ONNX Runtime, see `compare`
COMPARED_IMAGES = 32
GOLDEN_IMAGES = 4


def create_store(location: str | Path, root: Root) -> Store:
    """Make a store that holds `root` and no task.

    Raises:
        InvalidConfig: there is a store already, or a folder with other files.
    """
    found = sorted(path.name for path in Path(location).iterdir()) if Path(location).is_dir() else []
    if found and "CURRENT" not in found:
        raise InvalidConfig(
            f"{location} is not empty and no store (it has {', '.join(found[:3])}): choose a new folder, or empty it"
        )
    return Store.create(location, lambda store: _store_root(store, root))


def _store_root(store: Store, root: Root) -> Route:
    records = [
        ComponentRecord(kind, ComponentId(store.put_object(serialize(weights), "safetensors")), num_parameters(weights))
        for kind, weights in root.parts
    ]
    return Route(
        task=None,
        stages=SubgraphWriter(store, root.network, root.preprocessing, root.network.image_size).write_stages(records),
        network=root.network,
        image_size=root.network.image_size,
        preprocessing=root.preprocessing,
        labels=tuple(f"class {index}" for index in range(root.num_classes)),
        hparams={},
        quality=None,
        lineage=Lineage(parent=None, mutations=(), iteration=0, candidate="root", trained_images=0),
        golden=None,
    )


@dataclass(frozen=True, slots=True)
class Winner:
    """The candidate to be published for a task, and what was measured of it."""

    candidate: Candidate
    quality: float
    score: float
    iteration: int
    trained_images: int
    private: bool
    parent: RouteId  # the route it descends from: the root's, another task's or its own former one
    mutations: tuple[str, ...]  # all since then, in order
    replaces: bool  # whether the task had a route when the iteration began
    config: Mapping[str, Scalar]
    expected_accuracy: float | None = None


def publish(winner: Winner, task: Task, store: Store, pool: WeightPool, plan: TrainPlan) -> Release:
    """Write the winner's route with all it needs, prove it, and make a release with it in place.

    Raises:
        ExportMismatch: ONNX Runtime's logits differ from torch's; nothing was released.
        DamagedObject: what the other tasks need is not what their records promise; nothing was released.
        PublishConflict: the task was removed by somebody while it was evolved; nothing was released.
        PrecisionLoss: the release's other precisions would cost it too much accuracy; nothing was released.
    """
    route = _store_route(winner, task, store, pool, plan)
    _prove_untouched(store)
    while True:
        base = store.newest()
        route_id = store.put_route(with_variants(store, route, task.val, base))
        with suppress(_PrecisionsChanged):
            return store.publish(
                partial(_put_in, winner, task.name, route_id, store, base),
                reason=f"{task.name}: iteration {winner.iteration}",
            )


class _PrecisionsChanged(Exception):
    """While the route was lowered somebody published a release with other precisions."""


def _put_in(
    winner: Winner,
    task: TaskName,
    route_id: RouteId,
    store: Store,
    base: Release,
    tasks: Mapping[TaskName, RouteId],
) -> Mapping[TaskName, RouteId]:
    if winner.replaces and task not in tasks:
        raise PublishConflict(
            f"task {task!r} was removed while this route was made; route {route_id} is stored but not "
            "released: evolve the task again to bring it back"
        )
    if store.newest().precisions != base.precisions:
        raise _PrecisionsChanged
    return {**tasks, task: route_id}


def _prove_untouched(store: Store) -> None:
    """Read the files of the active release against their digests, but for those that look as when they were last read.

    So no older task's answer can have changed, and the cost does not grow with the number of tasks.
    """
    proven = Proven(store)
    number = store.current().release
    verification = verify(store, [number], proven.has)
    problems = verification.problems
    if problems:
        raise DamagedObject(
            f"nothing was published, since release {number} is not whole any more: {problems[0]}"
            + (f" (and {len(problems) - 1} more: see 'mu2net releases verify')" if len(problems) > 1 else "")
        )
    release = store.release(number)
    proven.keep([release.root, *release.tasks.values()], verification.routes)


def _store_route(winner: Winner, task: Task, store: Store, pool: WeightPool, plan: TrainPlan) -> Route:
    candidate = winner.candidate
    for part in candidate.parts:
        store.put_object(pool.read(part.component.id), "safetensors")
    writer = SubgraphWriter(store, plan.network, plan.preprocessing, candidate.data.image_size)
    stages = writer.write_stages(candidate.components)
    onnx_route = OnnxRoute(store, stages)
    compare(onnx_route, candidate.parts, task.val, candidate.data.image_size, pool, plan)
    test_accuracy = None
    if task.test is not None:
        test_accuracy = onnx_route.accuracy(task.test, candidate.data.image_size)
    return Route(
        task=task.name,
        stages=stages,
        network=plan.network,
        image_size=candidate.data.image_size,
        preprocessing=plan.preprocessing,
        labels=task.labels,
        hparams=route_hparams(candidate),
        quality=Quality(
            validation_accuracy=winner.quality,
            validation_images=len(task.val),
            score=winner.score,
            test_accuracy=test_accuracy,
            test_images=0 if task.test is None else len(task.test),
            expected_accuracy=winner.expected_accuracy,
        ),
        lineage=Lineage(
            winner.parent, winner.mutations, winner.iteration, candidate.name, winner.trained_images, winner.config
        ),
        golden=_store_golden(store, onnx_route, task.val, candidate.data.image_size),
        private=winner.private,
    )


def compare(
    onnx_route: OnnxRoute,
    parts: Sequence[Part],
    images: LabelledImages,
    image_size: int,
    pool: WeightPool,
    plan: TrainPlan,
) -> None:
    """Check ONNX Runtime's logits against torch's on real images.

    Differences are relative to the largest logit where that is above 1: float32 has no more to give.

    Raises:
        ExportMismatch: a difference above `EXPORT_TOLERANCE`.
    """
    pixels = np.asarray(images.pixels(image_size)[_spread(len(images), COMPARED_IMAGES)])
    network, _ = build_network(parts, pool, plan.network)
    expected = logits(network.cpu(), pixels, replace(plan, device="cpu"))
    difference = np.abs(onnx_route.logits(pixels) - expected).max() / max(1.0, np.abs(expected).max())
    if not difference <= EXPORT_TOLERANCE:
        raise ExportMismatch(
            f"ONNX Runtime and torch differ by {difference:.2e} on {len(pixels)} validation images; at most "
            f"{EXPORT_TOLERANCE:.0e} is allowed: nothing was published; check the installed onnxruntime"
        )


def _store_golden(store: Store, onnx_route: OnnxRoute, images: LabelledImages, image_size: int) -> GoldenId:
    """Store samples that tell this route from others: validation images, images of one colour where those are alike.

    A sample proves a subgraph only if its logits depend on it, so those are taken whose logits lie farthest apart.
    """
    found = np.asarray(images.pixels(image_size)[_spread(len(images), COMPARED_IMAGES)])
    plain = np.stack([np.full(found.shape[1:], level, np.uint8) for level in (0, 255)])
    pixels = np.concatenate([found, plain])
    logits = np.concatenate([onnx_route.logits(image[None]) for image in pixels])  # alone, as a server proves them
    chosen = farthest(logits, GOLDEN_IMAGES, preferred=len(found))
    sample = {"pixels": pixels[chosen], "logits": logits[chosen]}
    return GoldenId(store.put_object(serialize(sample), "safetensors"))


def farthest(logits: np.ndarray, count: int, *, preferred: int) -> list[int]:
    """Return the indices of up to `count` rows that lie far apart, from the first on, without repeating any.

    Of the first `preferred` rows as many are taken as differ; then come the others.
    """
    chosen = [0]
    for candidates in (range(preferred), range(preferred, len(logits))):
        while len(chosen) < count:
            distances = {
                index: min(float(np.abs(logits[index] - logits[other]).max()) for other in chosen)
                for index in candidates
                if index not in chosen
            }
            best = max(distances, key=lambda index: distances[index], default=None)
            if best is None or not distances[best] > 0:
                break
            chosen.append(best)
    return chosen


def _spread(count: int, wanted: int) -> np.ndarray:
    """Return up to `wanted` indices evenly spread over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
