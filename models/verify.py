"""Proof that a release is whole: every file that it needs is read and checked, and all that is wrong is named."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from models.errors import DamagedObject, Mu2NetError
from models.names import RouteId
from models.release import Release
from models.route import Route
from models.signatures import Trust
from models.store import Store, object_name, route_objects
from models.weights import deserialize


@dataclass(slots=True)
class Verification:
    """What was read, and what is wrong with it; `problems` name the file and who needs it."""

    files: int = 0
    size: int = 0  # bytes
    problems: list[str] = field(default_factory=list)
    routes: dict[RouteId, set[str]] = field(default_factory=dict)  # the files of each route that was read


def nothing_is_proven(route_id: RouteId) -> bool:
    return False


def verify(
    store: Store,
    numbers: Iterable[int],
    is_proven: Callable[[RouteId], bool] = nothing_is_proven,
    *,
    trust: Trust | None = None,
) -> Verification:
    """Read all that the releases need, each file once, but for routes that `is_proven` knows to be right.

    With `trust`, each release must have a signature by one of its keys. Nothing is raised for what is wrong: it is
    listed.
    """
    verifier = _Verifier(store, is_proven, trust)
    verifier.pointer()
    for number in numbers:
        verifier.release(number)
    return verifier.found


class _Verifier:
    def __init__(self, store: Store, is_proven: Callable[[RouteId], bool], trust: Trust | None) -> None:
        self._trust = trust
        self.found = Verification()
        self._store = store
        self._is_proven = is_proven
        self._seen: set[str] = set()

    def pointer(self) -> None:
        def read() -> int:
            self._store.current()
            return len(self._store.files.read("CURRENT"))

        self.attempt("CURRENT", read)

    def attempt(self, name: str, read: Callable[[], int]) -> None:
        """Count what `read` reads, once for each name, or note what is wrong."""
        if name in self._seen:
            return
        self._seen.add(name)
        try:
            self.found.size += read()
            self.found.files += 1
        except Mu2NetError as error:
            self.found.problems.append(str(error))

    def release(self, number: int) -> None:
        releases: list[Release] = []

        def read() -> int:
            before = self._store.bytes_read
            releases.append(self._store.release(number))
            return self._store.bytes_read - before

        self.attempt(f"release {number}", read)
        for release in releases:
            self._signed(release)
            owners = {f"task {task!r}": route_id for task, route_id in release.tasks.items()}
            for owner, route_id in {"the root": release.root, **owners}.items():
                if not self._is_proven(route_id):
                    self.route(route_id, f"{owner} of release {number}")

    def _signed(self, release: Release) -> None:
        if self._trust is not None:
            try:
                self._trust.check(self._store.files, release)
            except Mu2NetError as error:
                self.found.problems.append(str(error))

    def route(self, route_id: RouteId, owner: str) -> None:
        routes: list[Route] = []

        def read() -> int:
            data = self._store.read_object(route_id, "json", needed_by=owner)
            routes.append(self._store.route(route_id, needed_by=owner))
            return len(data)

        self.attempt(f"{route_id}.json", read)
        for route in routes:
            self.found.routes[route_id] = route_objects(route) | {object_name(route_id, "json")}
            for stage in route.stages:
                self.attempt(f"{stage.subgraph}.onnx", partial(self._graph, stage.subgraph, owner))
            for component in route.components:
                weights = partial(self._weights, component.id, owner, component.parameters)
                self.attempt(f"{component.id}.safetensors", weights)
            for precision, variant in route.variants.items():
                for lowered in variant.stages:
                    self.attempt(f"{lowered.subgraph}.onnx", partial(self._graph, lowered.subgraph, owner))
                    for digest in lowered.weights:
                        weights = partial(self._weights, digest, f"{owner} in {precision}", None)
                        self.attempt(f"{digest}.safetensors", weights)
            goldens = [route.golden, *(variant.golden for variant in route.variants.values())]
            for golden in goldens:
                if golden is not None:
                    samples = partial(self._weights, golden, f"{owner} as its golden samples", None)
                    self.attempt(f"{golden}.safetensors", samples)

    def _graph(self, digest: str, owner: str) -> int:
        return len(self._store.read_object(digest, "onnx", needed_by=owner))

    def _weights(self, digest: str, owner: str, parameters: int | None) -> int:
        data = self._store.read_object(digest, "safetensors", needed_by=owner)
        tensors = deserialize(data, f"{digest}.safetensors, needed by {owner},")
        count = sum(values.size for values in tensors.values())
        if parameters is not None and count != parameters:
            raise DamagedObject(
                f"{digest}.safetensors has {count} weights, the record of {owner} says {parameters}: restore the "
                "record from a copy of this store"
            )
        return len(data)
