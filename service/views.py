"""From the engine's objects to the answers of the HTTP interface."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from jaxtyping import Float

from models.diff import diff
from models.errors import DamagedObject, NotFound, NotReady, StoreError, UnknownRelease, UnsupportedFormat
from models.figures import TaskFigures
from models.names import ComponentId, TaskName
from models.release import Release
from models.store import Current
from service.access import Caller
from service.engine import LoadedRoute, Logits
from service.predictor import Answer
from service.release import LoadedRelease
from service.reload import WatchStatus
from service.schemas import (
    Classification,
    ComponentView,
    DifferenceView,
    EngineView,
    FailureView,
    ImageResult,
    LineageView,
    Pointer,
    Prediction,
    QualityView,
    Readiness,
    ReleaseDiff,
    ReleaseList,
    ReleaseSummary,
    ReloadView,
    StageView,
    TaskDetail,
    TaskList,
    TaskSummary,
    VariantView,
)
from service.server import Server


def classification(answer: Answer, release: LoadedRelease, *, top_k: int, with_logits: bool) -> Classification:
    labels = answer.route.route.labels
    return Classification(
        task=answer.route.task,
        release=release.number,
        route=answer.route.id,
        results=[
            ImageResult(predictions=best(logits, labels, top_k), logits=logits.tolist() if with_logits else None)
            for logits in answer.logits
        ],
    )


def best(logits: Logits, labels: tuple[str, ...], top_k: int) -> list[Prediction]:
    """Return the `top_k` most probable labels, equals in the order of the labels."""
    found = probabilities(logits)
    order = np.argsort(-found, kind="stable")[:top_k]
    return [Prediction(label=labels[i], probability=float(found[i])) for i in order]


def probabilities(logits: Logits) -> Float[np.ndarray, " classes"]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    found: Float[np.ndarray, " classes"] = powers / powers.sum()
    return found


def task_list(release: LoadedRelease, visible: Mapping[TaskName, LoadedRoute]) -> TaskList:
    """Return the `visible` tasks in short, with their costs as if the release had no others."""
    figures = release.figures(visible)
    return TaskList(release=release.number, tasks=[_summary(release, found, figures) for found in visible.values()])


def _summary(release: LoadedRelease, loaded: LoadedRoute, of_all: Mapping[TaskName, TaskFigures]) -> TaskSummary:
    route, figures = loaded.route, of_all[loaded.task]
    return TaskSummary(
        task=loaded.task,
        release=release.number,
        route=loaded.id,
        is_private=route.private,
        num_classes=len(route.labels),
        image_size=route.image_size,
        quality=None if route.quality is None else QualityView(**dataclasses.asdict(route.quality)),
        parameters=route.parameters,
        parameters_added=figures.parameters_added,
        accounted_parameters=figures.accounted_parameters,
        flops=figures.flops,
        root_flops=figures.root_flops,
    )


def task_detail(release: LoadedRelease, described: LoadedRoute, visible: Mapping[TaskName, LoadedRoute]) -> TaskDetail:
    """Return all about one task; of the others, those that are `visible` are named."""
    route = described.route
    users: dict[ComponentId, list[str]] = {component: [] for component in route.component_ids}
    for other, loaded in visible.items():
        for component in loaded.route.component_ids & users.keys():
            if other != described.task:
                users[component].append(other)
    stages = [
        StageView(
            kind=stage.kind,
            subgraph=running.id,
            components=[
                ComponentView(
                    kind=c.kind,
                    id=c.id,
                    parameters=c.parameters,
                    of_root=c.id in release.root.component_ids,
                    shared_with=users[c.id],
                )
                for c in stage.components
            ],
        )
        for stage, running in zip(route.stages, described.stages, strict=True)
    ]
    return TaskDetail(
        **_summary(release, described, release.figures(visible)).model_dump(),
        labels=list(route.labels),
        precision=described.precision or "float32",
        variants={
            precision: VariantView(
                validation_accuracy=variant.validation_accuracy,
                float32_accuracy=variant.float32_accuracy,
                validation_images=variant.validation_images,
                points_lost=variant.points_lost,
            )
            for precision, variant in route.variants.items()
        },
        hparams=route.hparams,
        lineage=LineageView(**dataclasses.asdict(route.lineage)),
        stages=stages,
    )


def release_list(server: Server, caller: Caller, *, limit: int) -> ReleaseList:
    """Return what the store has and what this server does about it; reads the store's release files.

    What may name a private task is left out for a caller who may not know of it.

    A store that cannot be read leaves `active` unknown: `failure` has the watcher's reason.
    """
    current: Current | None = None
    releases: list[ReleaseSummary] = []
    with suppress(StoreError, NotFound, OSError):
        store = server.store()
        current = store.current()
        for number in store.release_numbers()[::-1][:limit]:
            with suppress(DamagedObject, UnsupportedFormat, UnknownRelease):  # the others are listed all the same
                releases.append(_release_summary(store.release(number), caller))
    status, runtime = server.watcher.status, server.runtime
    resident = [held.number for held in server.residents.held]
    return ReleaseList(
        serving=resident[0] if resident else None,
        active=None if current is None else current.release,
        held=None if current is None else current.is_held,
        pending=[] if current is None else list(current.pending),
        resident=resident,
        last_reload=_reload(status, is_told=caller.sees_all),
        failure=_failure(status, is_told=caller.sees_all),
        engine=EngineView(
            provider=runtime.provider,
            threads=runtime.threads,
            onnxruntime=runtime.version,
            precision=runtime.precision or "float32",
        ),
        releases=releases,
    )


def release_diff(server: Server, caller: Caller, *, before: int, after: int) -> ReleaseDiff:
    """Return what differs from one release of the store to another; UnknownRelease if it lacks one."""
    store = server.store()
    changes = diff(store, store.release(before), store.release(after), sees=caller.sees_route)
    views = [DifferenceView(**dataclasses.asdict(change)) for change in changes]
    return ReleaseDiff(before=before, after=after, changes=views)


def readiness(server: Server) -> Readiness:
    """Return for /readyz which release answers, and whether it is the one that is wanted.

    Raises:
        NotReady: no release with a task has proved itself yet, the engine has not answered for long, or the server
            is shutting down.
    """
    if server.door.is_draining:
        raise NotReady("not ready: the server is shutting down; send requests to another one")
    stalled_s = server.batcher.busy_s
    if stalled_s > server.settings.engine_stall_s:
        raise NotReady(
            f"not ready: the engine has not answered for {stalled_s:.0f} s; at most "
            f"{server.settings.engine_stall_s:g} s are allowed (MU2NET_ENGINE_STALL_S): restart the server"
        )
    watcher = server.watcher
    try:
        release = server.predictor.ready_release()
    except NotReady as error:
        if watcher.status.failure is None:
            raise
        raise NotReady(f"{error}; the last attempt failed: {watcher.status.failure.kind}") from error
    return Readiness(
        release=release.number,
        active=watcher.active,
        skewed=watcher.is_skewed,
        failure=_failure(watcher.status, is_told=False),
    )


def pointer(server: Server, current: Current) -> Pointer:
    live = server.residents.live
    return Pointer(
        active=current.release,
        held=current.is_held,
        pending=list(current.pending),
        serving=None if live is None else live.number,
    )


def _failure(status: WatchStatus, *, is_told: bool) -> FailureView | None:
    if status.failure is None:
        return None
    failure = FailureView(**dataclasses.asdict(status.failure))
    return failure if is_told else failure.model_copy(update={"error": None})


def _reload(status: WatchStatus, *, is_told: bool) -> ReloadView | None:
    """Return the last reload; what it cost, private tasks included, if that `is_told`."""
    last = status.last_reload
    if last is None:
        return None
    view = ReloadView(release=last.release, taken_up_at=last.taken_up_at, seconds=last.cost.seconds)
    if not is_told:
        return view
    cost = {
        "bytes_read": last.cost.bytes_read,
        "subgraphs_added": last.cost.added,
        "subgraphs_reused": last.cost.reused,
        "subgraphs_freed": last.cost.freed,
        "memory_before": last.cost.memory_before,
        "memory_after": last.cost.memory_after,
    }
    return view.model_copy(update=cost)


def _release_summary(release: Release, caller: Caller) -> ReleaseSummary:
    return ReleaseSummary(
        release=release.number,
        parent=release.parent,
        reason=release.reason if caller.sees_all else None,
        created_at=release.created_at,
        tasks=len(release.tasks) if caller.sees_all else None,
    )
