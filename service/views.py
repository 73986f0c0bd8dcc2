"""From the engine's objects to the answers of the HTTP interface."""

import dataclasses
from contextlib import suppress

import numpy as np

from models.diff import diff
from models.errors import NotFound, StoreError
from models.names import ComponentId
from models.release import Release
from models.store import Current
from service.engine import Logits
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
    TaskSummary,
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
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [Prediction(label=labels[i], probability=float(probabilities[i])) for i in order]


def task_summary(release: LoadedRelease, task: str) -> TaskSummary:
    loaded = release.route(task)
    route, figures = loaded.route, release.figures[loaded.task]
    return TaskSummary(
        task=loaded.task,
        release=release.number,
        route=loaded.id,
        num_classes=len(route.labels),
        image_size=route.image_size,
        quality=None if route.quality is None else QualityView(**dataclasses.asdict(route.quality)),
        parameters=route.parameters,
        parameters_added=figures.parameters_added,
        accounted_parameters=figures.accounted_parameters,
        flops=figures.flops,
        root_flops=figures.root_flops,
    )


def task_detail(release: LoadedRelease, task: str) -> TaskDetail:
    route = release.route(task).route
    users: dict[ComponentId, list[str]] = {component: [] for component in route.component_ids}
    for other, loaded in sorted(release.routes.items()):
        for component in loaded.route.component_ids & users.keys():
            if other != task:
                users[component].append(other)
    stages = [
        StageView(
            kind=stage.kind,
            subgraph=stage.subgraph,
            components=[
                ComponentView(kind=c.kind, id=c.id, parameters=c.parameters, shared_with=users[c.id])
                for c in stage.components
            ],
        )
        for stage in route.stages
    ]
    return TaskDetail(
        **task_summary(release, task).model_dump(),
        labels=list(route.labels),
        hparams=route.hparams,
        lineage=LineageView(**dataclasses.asdict(route.lineage)),
        stages=stages,
    )


def release_list(server: Server, *, limit: int) -> ReleaseList:
    """Return what the store has and what this server does about it; reads the store's release files.

    A store that cannot be read leaves `active` unknown: `failure` has the watcher's reason.
    """
    current: Current | None = None
    releases: list[ReleaseSummary] = []
    with suppress(StoreError, NotFound, OSError):
        store = server.store()
        current = store.current()
        releases = [_release_summary(store.release(number)) for number in store.release_numbers()[::-1][:limit]]
    status, runtime = server.watcher.status, server.runtime
    resident = [held.number for held in server.residents.held]
    return ReleaseList(
        serving=resident[0] if resident else None,
        active=None if current is None else current.release,
        held=None if current is None else current.is_held,
        pending=[] if current is None else list(current.pending),
        resident=resident,
        last_reload=_reload(status),
        failure=_failure(status),
        engine=EngineView(provider=runtime.provider, threads=runtime.threads, onnxruntime=runtime.version),
        releases=releases,
    )


def release_diff(server: Server, *, before: int, after: int) -> ReleaseDiff:
    """Return what differs from one release of the store to another; UnknownRelease if it lacks one."""
    store = server.store()
    changes = diff(store, store.release(before), store.release(after))
    views = [DifferenceView(**dataclasses.asdict(change)) for change in changes]
    return ReleaseDiff(before=before, after=after, changes=views)


def readiness(server: Server) -> Readiness:
    """Return for /readyz which release answers, and whether it is the one that is wanted.

    Raises:
        NotReady: no release with a task has proved itself yet.
    """
    release = server.predictor.ready_release()
    watcher = server.watcher
    return Readiness(
        release=release.number, active=watcher.active, skewed=watcher.is_skewed, failure=_failure(watcher.status)
    )


def pointer(server: Server, current: Current) -> Pointer:
    live = server.residents.live
    return Pointer(
        active=current.release,
        held=current.is_held,
        pending=list(current.pending),
        serving=None if live is None else live.number,
    )


def _failure(status: WatchStatus) -> FailureView | None:
    return None if status.failure is None else FailureView(**dataclasses.asdict(status.failure))


def _reload(status: WatchStatus) -> ReloadView | None:
    last = status.last_reload
    if last is None:
        return None
    return ReloadView(
        release=last.release,
        taken_up_at=last.taken_up_at,
        seconds=last.cost.seconds,
        bytes_read=last.cost.bytes_read,
        subgraphs_added=last.cost.added,
        subgraphs_reused=last.cost.reused,
        subgraphs_freed=last.cost.freed,
        memory_before=last.cost.memory_before,
        memory_after=last.cost.memory_after,
    )


def _release_summary(release: Release) -> ReleaseSummary:
    return ReleaseSummary(
        release=release.number,
        parent=release.parent,
        reason=release.reason,
        created_at=release.created_at,
        tasks=len(release.tasks),
    )
