"""Routes in lower precisions: which subgraphs they run, and whether their accuracy allows it.

A component looks alike in a precision whoever uses it, so what routes share in float32 they share in int8 as well.
A route that would lose too much keeps float32 for the stages that are its own; what others use stays as theirs.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from evolve.onnx_route import OnnxRoute
from evolve.subgraphs import SubgraphWriter
from evolve.task import LabelledImages
from models.errors import InvalidConfig, PrecisionLoss, PublishConflict
from models.names import GoldenId, RouteId, SubgraphId, TaskName
from models.precision import Precision
from models.release import Release
from models.route import LoweredStage, Route, Variant
from models.store import Store
from models.weights import deserialize, serialize

Settled = Mapping[SubgraphId, LoweredStage]  # how float32 subgraphs run that other routes use as well
Told = Callable[[TaskName, Variant], None]


def lower_release(
    store: Store,
    precision: Precision,
    images: Mapping[TaskName, LabelledImages],
    *,
    tolerance: float,
    told: Told = lambda task, variant: None,
) -> Release:
    """Publish a release whose routes all have `precision` beside float32, each judged on its validation images.

    Args:
        store: its newest release is lowered.
        precision: the one that is added, or made anew.
        images: of every task.
        tolerance: points of accuracy that a route may lose.
        told: called with each route's variant.

    Raises:
        InvalidConfig: a task has no images; nothing was published.
        PrecisionLoss: a route loses more, with its own stages in float32 too; nothing was published.
        PublishConflict: others published meanwhile.
    """
    base = store.newest()
    missing = sorted(base.tasks.keys() - images.keys())
    if missing:
        raise InvalidConfig(
            f"no validation images for {', '.join(missing)}: give --data TASK=IMAGES for each task, as for evolve"
        )
    routes = store.routes(base)
    use = Counter(subgraph for route in routes.values() for subgraph in {stage.subgraph for stage in route.stages})
    settled: dict[SubgraphId, LoweredStage] = {}
    for route in routes.values():
        for stage in route.stages:
            if use[stage.subgraph] > 1 and stage.subgraph not in settled:
                settled[stage.subgraph] = _writer(store, route).write(stage.kind, stage.components, precision)
    lowered: dict[TaskName, RouteId] = {}
    losses: list[str] = []
    for task, route in sorted(routes.items()):
        try:
            variant = make_variant(store, route, images[task], precision, tolerance=tolerance, settled=settled)
        except PrecisionLoss as loss:
            losses.append(str(loss))
            continue
        told(task, variant)
        lowered[task] = store.put_route(replace(route, variants={**route.variants, precision: variant}))
    if losses:
        raise PrecisionLoss(f"nothing was published: {'; '.join(losses)}")
    return _publish_all(store, base, lowered, f"{precision} within {tolerance:g} points", {precision: tolerance})


def drop_variants(store: Store) -> Release:
    """Publish a release whose routes have float32 alone, as they had before they were lowered."""
    base = store.newest()
    plain = {task: store.put_route(replace(route, variants={})) for task, route in store.routes(base).items()}
    return _publish_all(store, base, plain, "float32 alone", None)


def _publish_all(
    store: Store,
    base: Release,
    tasks: Mapping[TaskName, RouteId],
    reason: str,
    added: Mapping[Precision, float] | None,
) -> Release:
    def change(newest: Mapping[TaskName, RouteId]) -> Mapping[TaskName, RouteId]:
        if newest != base.tasks:
            raise PublishConflict("another release was published meanwhile: do it again")
        return tasks

    return store.publish(change, reason=reason, precisions={} if added is None else {**base.precisions, **added})


def with_variants(store: Store, route: Route, images: LabelledImages, base: Release) -> Route:
    """Return a route that is about to join `base` with the precisions that the release's routes have.

    Raises:
        PrecisionLoss: it would lose more than the release allows.
    """
    others = [other for task, other in store.routes(base).items() if task != route.task]
    variants: dict[Precision, Variant] = {}
    for precision, tolerance in base.precisions.items():
        settled: dict[SubgraphId, LoweredStage] = {}
        for other in others:
            for stage, lowered in zip(other.stages, other.lowered_stages(precision), strict=True):
                if lowered.subgraph != stage.subgraph or stage.subgraph not in settled:
                    settled[stage.subgraph] = lowered
        variants[precision] = make_variant(store, route, images, precision, tolerance=tolerance, settled=settled)
    return replace(route, variants=variants)


def make_variant(
    store: Store, route: Route, images: LabelledImages, precision: Precision, *, tolerance: float, settled: Settled
) -> Variant:
    """Return a route in a precision, with float32 for its own stages where it would lose too much otherwise.

    Raises:
        PrecisionLoss: it loses more than `tolerance` points of accuracy in any case.
    """
    pixels = images.pixels(route.image_size)
    in_float32 = _accuracy(OnnxRoute(store, route.stages).logits(pixels), images)
    writer = _writer(store, route)
    lowered = [
        settled.get(stage.subgraph) or writer.write(stage.kind, stage.components, precision) for stage in route.stages
    ]
    careful = [settled.get(stage.subgraph, LoweredStage(stage.subgraph)) for stage in route.stages]
    for stages in (lowered, careful):
        onnx_route = OnnxRoute(store, route.stages, stages)
        accuracy = _accuracy(onnx_route.logits(pixels), images)
        if 100 * (in_float32 - accuracy) <= tolerance + 1e-9:
            golden = _store_golden(store, route, onnx_route)
            return Variant(tuple(stages), golden, accuracy, in_float32, len(images))
    raise PrecisionLoss(
        f"task {route.task!r} would have {accuracy:.4f} instead of {in_float32:.4f} of {len(images)} validation images "
        f"right in {precision}, also with its own parts in float32; {tolerance:g} points are allowed: allow more with "
        "'mu2net precision --tolerance', or go on in float32 with 'mu2net precision STORE float32'"
    )


def _writer(store: Store, route: Route) -> SubgraphWriter:
    return SubgraphWriter(store, route.network, route.preprocessing, route.image_size)


def _accuracy(logits: np.ndarray, images: LabelledImages) -> float:
    return float((logits.argmax(axis=1) == images.labels).mean())


def _store_golden(store: Store, route: Route, onnx_route: OnnxRoute) -> GoldenId:
    """Store the samples of a route with the logits of its lowered subgraphs."""
    data = store.read_object(str(route.golden), "safetensors", needed_by=f"task {route.task!r} as its golden samples")
    pixels = deserialize(data, f"golden samples {route.golden}")["pixels"]
    return GoldenId(store.put_object(serialize({"pixels": pixels, "logits": onnx_route.logits(pixels)}), "safetensors"))
