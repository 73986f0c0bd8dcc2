"""Golden samples: the proof, on this machine and device, that a release answers as it did where it was made."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from models.errors import ExportMismatch, InvalidRoute
from models.store import Store
from models.weights import deserialize
from service.engine import LoadedRoute, Logits, Row

TOLERANCE = 1e-3  # in logits, float32: other processors and batch sizes round otherwise; wrong weights are far off

RunRows = Callable[[Sequence[Row]], list[Logits]]


def check_route(route: LoadedRoute, store: Store, run: RunRows) -> None:
    """Run a route's golden samples and hold the logits against what they must be.

    A route that this process has answered from must give the very same bits; a new one its stored logits
    within `TOLERANCE`.

    Raises:
        ExportMismatch: the logits differ; the message says where and by how much.
        InvalidRoute: the route has no golden samples.
        StoreError: their file is missing or damaged.
    """
    samples = _read(route, store)
    found = np.stack(run([Row(pixels, route) for pixels in samples["pixels"]]))
    if route.golden_logits is not None:
        _demand(route, found, route.golden_logits, at_most=0.0, reference="this server answered before")
    else:
        _demand(route, found, samples["logits"], at_most=TOLERANCE, reference="the store says")
        route.golden_logits = found


def _read(route: LoadedRoute, store: Store) -> dict[str, np.ndarray]:
    golden = route.route.golden
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
            f"at most {at_most:g} is allowed"
        )
