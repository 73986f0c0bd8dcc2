"""A release in memory: every task's route with its subgraphs, each held once however many routes use it."""

import logging
from collections.abc import Collection, Mapping, Sequence
from weakref import WeakValueDictionary

from models.component import ComponentRecord
from models.errors import InvalidRoute, UnknownTask
from models.figures import TaskFigures, task_figures
from models.names import RouteId, SubgraphId, TaskName
from models.recently_used import RecentlyUsed
from models.release import Release, unknown_task
from models.route import LoweredStage, Route, Stage
from models.store import Store
from models.weights import Weights, deserialize
from service.device import Device
from service.engine import Head, LoadedRoute, LoadedStage, Subgraph
from service.graph import check_graph
from service.prepared import PreparedGraphs
from service.runtime import CUDA, Runtime

ANSWERS_BYTES = 16 * 2**20  # of descriptions that a release keeps
MOST_FIGURES = 32  # sets of visible tasks whose figures are kept

log = logging.getLogger("mu2net.release")


class LoadedRelease:
    """Immutable once served. Freed with the last request that began on it; shared subgraphs live on."""

    def __init__(self, record: Release, root: Route, routes: Mapping[TaskName, LoadedRoute]) -> None:
        self.number = record.number
        self.record = record
        self.root = root
        self.routes = routes
        # descriptions as they were sent, so that a large one is made once
        self.answers: RecentlyUsed[bytes] = RecentlyUsed(ANSWERS_BYTES)
        self._figures: dict[frozenset[TaskName], Mapping[TaskName, TaskFigures]] = {}

    def figures(self, visible: Mapping[TaskName, LoadedRoute]) -> Mapping[TaskName, TaskFigures]:
        """Return what each of the `visible` tasks costs, as if the release had no others.

        Kept for the sets of tasks that callers may see: their keys bound how many there are.
        """
        key = frozenset(visible)
        found = self._figures.get(key)
        if found is None:
            found = task_figures({task: loaded.route for task, loaded in visible.items()}, self.root)
            if len(self._figures) < MOST_FIGURES:
                self._figures[key] = found
        return found

    def route(self, task: str) -> LoadedRoute:
        """Return a task's route.

        Raises:
            UnknownTask: the release has no such task; the message lists those it has.
        """
        try:
            return self.routes[TaskName(task)]
        except KeyError:
            raise UnknownTask(unknown_task(task, self.routes)) from None


class StagePool:
    """The stages that any live release uses, by digest. Used from one thread only, the watcher's."""

    def __init__(
        self,
        runtime: Runtime,
        prepared: PreparedGraphs | None = None,
        device: Device | None = None,
        checked: Collection[SubgraphId] = (),
    ) -> None:
        self._runtime = runtime
        self._checked = checked  # graphs that another process of this machine read and allowed
        self._prepared = prepared
        self._device = Device(runtime) if device is None and runtime.provider == CUDA else device
        self._stages: WeakValueDictionary[SubgraphId, LoadedStage] = WeakValueDictionary()

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def prepared(self) -> PreparedGraphs | None:
        return self._prepared

    def held(self) -> set[SubgraphId]:
        """Return the subgraphs that are in memory now."""
        return set(self._stages)

    def trim(self) -> None:
        """Delete prepared files that no server of this machine has used for long."""
        if self._prepared is not None:
            self._prepared.trim(self.held())

    def load_release(self, store: Store, release: int | Release, residents: Sequence[LoadedRelease]) -> LoadedRelease:
        """Load a release, given by its number or its record; what a resident one holds is neither read nor made again.

        Raises:
            StoreError: a file is missing, damaged or of another format.
            InvalidRoute: a route that contradicts itself.
        """
        record = store.release(release) if isinstance(release, int) else release
        loaded = {route.id: route for resident in residents for route in resident.routes.values()}
        roots = {resident.record.root: resident.root for resident in residents}
        routes: dict[TaskName, LoadedRoute] = {}
        for task, route_id in record.tasks.items():
            kept = loaded.get(route_id)
            routes[task] = kept if kept and kept.task == task else self.load_route(store, task, route_id)
        root = roots.get(record.root)
        if root is None:
            root = store.route(record.root, needed_by=f"release {record.number} as its root")
        return LoadedRelease(record, root, routes)

    def load_route(self, store: Store, task: TaskName, route_id: RouteId) -> LoadedRoute:
        """Load one task's route; what any live route holds is neither read nor made again.

        Raises:
            StoreError, InvalidRoute: as `load_release`.
        """
        route = store.route(route_id, needed_by=f"task {task!r}")
        if route.task != task:
            raise InvalidRoute(f"route {route_id} is listed for task {task!r}, but says it is of {route.task!r}")
        lowered = route.lowered_stages(self._runtime.precision)
        stages = tuple(self._stage(store, *pair, task) for pair in zip(route.stages, lowered, strict=True))
        head = stages[-1]
        if not isinstance(head, Head) or head.num_classes != len(route.labels):
            raise InvalidRoute(
                f"task {task!r}: the head of route {route_id} does not fit its {len(route.labels)} labels"
            )
        precision = self._runtime.precision
        return LoadedRoute(task, route_id, route, stages, precision if precision in route.variants else None)

    def _stage(self, store: Store, stage: Stage, lowered: LoweredStage, task: TaskName) -> LoadedStage:
        held = self._stages.get(lowered.subgraph)
        if held is None:
            needed_by = f"task {task!r}"
            if stage.kind == "head":  # float32 in every precision: it is next to no work
                held = self._load_head(store, stage, needed_by=needed_by)
            else:
                held = self._load_subgraph(store, stage, lowered, needed_by=needed_by)
            self._stages[lowered.subgraph] = held
        return held

    def _load_subgraph(self, store: Store, stage: Stage, lowered: LoweredStage, *, needed_by: str) -> LoadedStage:
        # read by the session, at the offsets that the graph has
        weights = [*(component.id for component in stage.components), *lowered.weights]
        for digest in weights:
            store.object_path(digest, "safetensors", needed_by=needed_by)
        if lowered.subgraph not in self._checked:
            graph = store.read_object(lowered.subgraph, "onnx", needed_by=needed_by)
            files = {f"{digest}.safetensors" for digest in weights}
            check_graph(graph, files=files, shown=f"subgraph {lowered.subgraph}, needed by {needed_by},")
        path = store.object_path(lowered.subgraph, "onnx", needed_by=needed_by)
        prepared = self._prepared
        session = self._runtime.session(path) if prepared is None else prepared.session(lowered.subgraph, path)
        return Subgraph(lowered.subgraph, session, self._device)

    def _load_head(self, store: Store, stage: Stage, *, needed_by: str) -> LoadedStage:
        def weights(component: ComponentRecord) -> Weights:
            data = store.read_object(component.id, "safetensors", needed_by=needed_by)
            return deserialize(data, f"component {component.id}")

        by_kind = {component.kind: component for component in stage.components}
        if by_kind.keys() != {"norm", "head"}:
            raise InvalidRoute(f"{needed_by}: its last stage has {sorted(by_kind)}, not a norm and a head")
        return Head(stage.subgraph, weights(by_kind["norm"]), weights(by_kind["head"]))
