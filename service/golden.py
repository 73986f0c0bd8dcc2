"""Golden samples: the proof, on this machine and device, that a release answers as it did where it was made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.errors import ExportMismatch, InvalidRoute
from models.precision import Precision
from models.store import Store
from models.weights import deserialize
from service.engine import LoadedRoute, Logits, Row

# Of a logit, times its sample's own scale, see `_tolerances`. Other processors and libraries round otherwise (seen in
# float32: up to 1e-5 between CPUs, TF32 is off on CUDA); wrong weights are far off. In int8 a last bit decides now and
# then between two levels, in float16 there are but 11 bits.
TOLERANCE: dict[Precision | None, float] = {None: 1e-3, "int8": 5e-2, "float16": 5e-2}
RESOLUTION = 1e-6  # of the largest logit: what float32 rounds away, however close together the logits lie
LEAST_VARIATION = 0.05  # of the spread: samples that are nearly alike must not ask for more than arithmetic gives

RunRows = Callable[[Sequence[Row]], list[Logits]]
Key = tuple[bytes, str]  # the way of a route, all its subgraphs in order, and its golden samples


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """A route's samples, and what this process answered to them when it proved itself."""

    pixels: np.ndarray  # uint8 [samples, size, size, 3]
    answered: np.ndarray  # float32 [samples, classes]


class Proofs:
    """What this process has proved. Used from one thread only, the watcher's."""

    def __init__(self) -> None:
        self._proofs: dict[Key, Proof] = {}

    def check(
        self, route: LoadedRoute, store: Store, run: RunRows, *, elsewhere: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Run a route's golden samples, one at a time, and hold the logits against what they must be.

        Subgraphs that this process has answered from in this order must give the very same bits, under
        whatever name the task goes; others the stored logits within a tolerance, and the same best class.

        Args:
            route: whose.
            store: has the samples.
            run: the engine.
            elsewhere: by `proof_name`, what the process that proved a route answered: the bits must be equal.

        Raises:
            ExportMismatch: the logits differ; the message says where and by how much.
            InvalidRoute: the route has no golden samples.
            StoreError: their file is missing or damaged.
        """
        known = self._proofs.get(_key(route))
        if known is not None:
            found = _answers(route, known.pixels, run)
            _demand(route, found, known.answered, at_most=0.0, reference="this server answered before")
            return
        samples = _read(route, store)
        found = _answers(route, samples["pixels"], run)
        _demand_stored(route, found, samples["logits"])
        answered = (elsewhere or {}).get(proof_name(route))
        if answered is not None:
            _demand(route, found, answered, at_most=0.0, reference="the process that proved it answered")
        self._proofs[_key(route)] = Proof(samples["pixels"], found)

    def has(self, route: LoadedRoute) -> bool:
        return _key(route) in self._proofs

    def answered(self) -> dict[str, np.ndarray]:
        """Return what was answered to the samples of each route, by `proof_name`."""
        return {_name(key): proof.answered for key, proof in self._proofs.items()}

    def keep(self, routes: Iterable[LoadedRoute]) -> None:
        """Forget all but these."""
        kept = {_key(route) for route in routes}
        self._proofs = {key: proof for key, proof in self._proofs.items() if key in kept}


def proof_name(route: LoadedRoute) -> str:
    """Return a name for what a proof is of: the route's subgraphs in order and its samples."""
    return _name(_key(route))


def _name(key: Key) -> str:
    return f"{key[0].hex()} {key[1]}"


def _key(route: LoadedRoute) -> Key:
    return route.prefixes[-1], str(route.golden)


def _answers(route: LoadedRoute, pixels: np.ndarray, run: RunRows) -> Float[np.ndarray, "samples classes"]:
    """Return the logits of each sample by itself: other neighbours can round otherwise, and a piece stays small."""
    return np.stack([logits for image in pixels for logits in run([Row(image, route)])])


def _read(route: LoadedRoute, store: Store) -> dict[str, np.ndarray]:
    golden = route.golden
    if golden is None:
        raise InvalidRoute(f"task {route.task!r}: route {route.id} has no golden samples; publish it again")
    needed_by = f"task {route.task!r} as its golden samples"
    samples = deserialize(store.read_object(golden, "safetensors", needed_by=needed_by), f"golden samples {golden}")
    if samples.keys() != {"pixels", "logits"} or not len(samples["pixels"]):
        raise InvalidRoute(f"task {route.task!r}: golden samples {golden} need pixels and logits; publish it again")
    return samples


def _demand(
    route: LoadedRoute,
    found: Float[np.ndarray, "samples classes"],
    wanted: Float[np.ndarray, "samples classes"],
    *,
    at_most: float | Float[np.ndarray, " samples"],
    reference: str,
) -> None:
    if found.shape != wanted.shape:
        raise ExportMismatch(
            f"task {route.task!r}: golden samples give logits of shape {found.shape}, {reference} {wanted.shape}"
        )
    distance = np.abs(found - wanted).max(axis=1)  # (samples,)
    allowed = np.broadcast_to(at_most, distance.shape)
    for sample in np.flatnonzero(~(distance <= allowed)):  # a NaN is never within
        raise ExportMismatch(
            f"task {route.task!r}: golden sample {sample} differs by {distance[sample]:.3g} from what {reference}; "
            f"at most {allowed[sample]:.3g} is allowed"
        )


def _demand_stored(
    route: LoadedRoute, found: Float[np.ndarray, "samples classes"], wanted: Float[np.ndarray, "samples classes"]
) -> None:
    """Raise ExportMismatch unless the logits are the stored ones within their tolerance, and so is the best class."""
    allowed = _tolerances(wanted, route.precision) if wanted.ndim == 2 else np.zeros(len(wanted))
    _demand(route, found, wanted, at_most=allowed, reference="the store says")
    best = found.argmax(axis=1)
    behind = wanted.max(axis=1) - np.take_along_axis(wanted, best[:, None], axis=1)[:, 0]  # (samples,)
    for sample in np.flatnonzero(~(behind <= allowed)):  # nearer than the tolerance, two classes are both right
        raise ExportMismatch(
            f"task {route.task!r}: golden sample {sample} has the best class {best[sample]}, the store says "
            f"{wanted[sample].argmax()}"
        )


def _tolerances(wanted: Float[np.ndarray, "samples classes"], precision: Precision | None) -> np.ndarray:
    """Return how much each sample's logits may differ, by the scale on which that sample's logits tell anything.

    That is how far apart its classes lie: what all have in common changes no answer. In float32, where other
    arithmetic differs least, it is also no more than what the samples differ by: a bias that all have alike would
    hide that the image counts for nothing.
    """
    wanted = wanted.astype(np.float64)
    if not np.isfinite(wanted).all() or not wanted.size:
        return np.zeros(len(wanted))
    largest = np.abs(wanted).max(axis=1)
    scale = wanted.max(axis=1) - wanted.min(axis=1) if wanted.shape[1] > 1 else largest
    if precision is None and len(wanted) > 1:
        variation = np.abs(wanted - wanted.mean(axis=0)).max()
        scale = np.clip(variation, LEAST_VARIATION * scale, scale)
    tolerances: np.ndarray = np.maximum(TOLERANCE[precision] * scale, RESOLUTION * largest)
    return tolerances
