"""Golden samples: the proof, on this machine and device, that a release answers as it did where it was made."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.errors import ExportMismatch, InvalidRoute
from models.precision import Precision
from models.store import Store
from models.weights import deserialize
from service.engine import LoadedRoute, Logits, Row

# Of a logit, times the largest one where that is above 1. Other processors and libraries round otherwise (seen
# in float32: up to 1e-5 between CPUs, TF32 is off on CUDA); wrong weights are far off. In int8 a last bit decides
# now and then between two levels, in float16 there are but 11 bits.
TOLERANCE: dict[Precision | None, float] = {None: 1e-3, "int8": 5e-2, "float16": 5e-2}

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

    def check(self, route: LoadedRoute, store: Store, run: RunRows) -> None:
        """Run a route's golden samples, one at a time, and hold the logits against what they must be.

        Subgraphs that this process has answered from in this order must give the very same bits, under
        whatever name the task goes; others the stored logits within a tolerance.

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
        wanted = samples["logits"]
        scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
        _demand(route, found, wanted, at_most=TOLERANCE[route.precision] * scale, reference="the store says")
        self._proofs[_key(route)] = Proof(samples["pixels"], found)

    def keep(self, routes: Iterable[LoadedRoute]) -> None:
        """Forget all but these."""
        kept = {_key(route) for route in routes}
        self._proofs = {key: proof for key, proof in self._proofs.items() if key in kept}


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
    at_most: float,
    reference: str,
) -> None:
    if found.shape != wanted.shape:
        raise ExportMismatch(
            f"task {route.task!r}: golden samples give logits of shape {found.shape}, {reference} {wanted.shape}"
        )
    distance = np.abs(found - wanted).max(axis=1)  # (samples,)
    worst = int(np.argmax(distance))  # a NaN counts as the largest
    if not distance[worst] <= at_most:
        raise ExportMismatch(
            f"task {route.task!r}: golden sample {worst} differs by {distance[worst]:.3g} from what {reference}; "
            f"at most {at_most:.3g} is allowed"
        )
