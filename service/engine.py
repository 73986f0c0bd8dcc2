"""The engine: runs rows of any mix of tasks through the subgraphs of their routes. Knows no HTTP and no store.

At each stage rows are grouped by subgraph, so tasks run together wherever they share, also after parting
and meeting again; rows of one image that have come the same way so far are one row. A row's answer does
not depend on its neighbours.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from jaxtyping import Float, UInt8

from models.errors import InvalidRoute
from models.names import RouteId, SubgraphId, TaskName
from models.network import LAYER_NORM_EPS
from models.precision import Precision
from models.route import Route
from models.weights import Weights
from service.device import Device, DeviceBatch, Place

Pixels = UInt8[np.ndarray, "size size 3"]
Logits = Float[np.ndarray, " classes"]
Batch = np.ndarray | DeviceBatch  # float32 or uint8 [rows, ...]


class Subgraph:
    """An embedding or a block as an ONNX Runtime session."""

    def __init__(self, subgraph_id: SubgraphId, session: ort.InferenceSession, device: Device | None = None) -> None:
        self.id = subgraph_id
        self._session = session
        self._device = device
        self._input = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, places: Sequence[Place]) -> Batch:
        """Return the tokens of the rows at `places`, on the device if there is one."""
        if self._device is not None:
            return self._device.run(self._session, self._input, self._outputs[0], places)
        result: np.ndarray = self._session.run(self._outputs, {self._input: _gather(places)})[0]
        return result


class Head:
    """The final norm and the head, as arrays: a session of their own would cost more than the arithmetic.

    Raises:
        InvalidRoute: the arrays do not fit together.
    """

    def __init__(self, subgraph_id: SubgraphId, norm: Weights, head: Weights) -> None:
        self.id = subgraph_id
        try:
            self._scale, self._shift = norm["weight"], norm["bias"]
            self._weight, self._bias = head["weight"].T, head["bias"]
        except KeyError as error:
            raise InvalidRoute(f"subgraph {subgraph_id}: its norm or head has no tensor {error}") from error
        if self._weight.shape != (*self._scale.shape, *self._bias.shape):
            raise InvalidRoute(
                f"subgraph {subgraph_id}: a head of shape {head['weight'].shape} fits no norm of {self._scale.shape} "
                f"and bias of {self._bias.shape}"
            )

    @property
    def num_classes(self) -> int:
        return len(self._bias)

    def run(self, places: Sequence[Place]) -> Float[np.ndarray, "batch classes"]:
        cls = _first_tokens(places)  # (B, D)
        centred = cls - cls.mean(axis=1, keepdims=True)
        variance = np.square(centred).mean(axis=1, keepdims=True)
        features = centred / np.sqrt(variance + np.float32(LAYER_NORM_EPS)) * self._scale + self._shift
        # One product a row: BLAS rounds a product of several rows differently from one of a single row.
        products: np.ndarray = np.matmul(features[:, None], self._weight)
        return products[:, 0] + self._bias


LoadedStage = Subgraph | Head


class LoadedRoute:
    """A route with its stages in memory; compared by identity."""

    def __init__(
        self,
        task: TaskName,
        route_id: RouteId,
        route: Route,
        stages: tuple[LoadedStage, ...],
        precision: Precision | None = None,
    ) -> None:
        self.task = task
        self.id = route_id
        self.route = route
        self.stages = stages
        self.precision = precision  # in which the stages are, None for float32
        self.golden = route.variants[precision].golden if precision else route.golden
        self.prefixes = _prefixes(stages)
        self.flops = route.flops  # of one row, what the queue reckons with


def _prefixes(stages: tuple[LoadedStage, ...]) -> tuple[bytes, ...]:
    """Return a name for the way up to and with each stage: routes that came the same way have equal ones."""
    names: list[bytes] = []
    way = hashlib.sha256()
    for stage in stages:
        way.update(stage.id.encode())
        names.append(way.digest())
    return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One image for one task. Rows that hold the same array object are rows of one image."""

    pixels: Pixels  # of the route's image size
    route: LoadedRoute


def flops(rows: Sequence[Row]) -> float:
    """Estimate the operations of one image's rows: what they share counts once, all stages of a route alike."""
    total, seen = 0.0, set[bytes]()
    for row in rows:
        prefixes = set(row.route.prefixes)
        total += row.route.flops * len(prefixes - seen) / len(prefixes)
        seen |= prefixes
    return total


Key = tuple[int, bytes]  # an image and the way it came
Observe = Callable[[SubgraphId, int], None]  # told which subgraph ran, with how many rows


def run(rows: Sequence[Row], observe: Observe | None = None) -> list[Logits]:
    """Return the logits of each row, in order."""
    pieces = run_in_pieces(rows, observe)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            answers: list[Logits] = end.value
            return answers


def run_in_pieces(rows: Sequence[Row], observe: Observe | None = None) -> Generator[None, None, list[Logits]]:
    """Do what `run` does one stage at a time, so that others can have the device in between."""
    places: dict[Key, Place] = {(id(row.pixels), b""): (row.pixels[None], 0) for row in rows}
    logits: list[Logits | None] = [None] * len(rows)
    waiting = list(range(len(rows)))
    depth = 0
    while waiting:
        places = _run_depth([rows[i] for i in waiting], depth, places, observe)
        ended = [i for i in waiting if len(rows[i].route.stages) == depth + 1]
        for i in ended:
            batch, index = places[_key(rows[i], depth)]
            assert isinstance(batch, np.ndarray), "a route ends with a head, whose answers are here"
            logits[i] = batch[index]
        waiting = [i for i in waiting if logits[i] is None]
        depth += 1
        yield
    return [answer for answer in logits if answer is not None]


def _run_depth(rows: Sequence[Row], depth: int, places: dict[Key, Place], observe: Observe | None) -> dict[Key, Place]:
    """Run the stage at `depth` of every row, each subgraph once for all that need it."""
    groups: dict[tuple[SubgraphId, tuple[int, ...]], dict[Key, Place]] = {}
    stages: dict[SubgraphId, LoadedStage] = {}
    for row in rows:
        stage = row.route.stages[depth]
        source = places[_key(row, depth - 1)]
        stages[stage.id] = stage
        groups.setdefault((stage.id, source[0].shape[1:]), {})[_key(row, depth)] = source
    results: dict[Key, Place] = {}
    for (subgraph, _), sources in groups.items():
        batch = stages[subgraph].run(list(sources.values()))
        results.update((key, (batch, index)) for index, key in enumerate(sources))
        if observe is not None:
            observe(subgraph, len(sources))
    return results


def _key(row: Row, depth: int) -> Key:
    return id(row.pixels), row.route.prefixes[depth] if depth >= 0 else b""


def _gather(places: Sequence[Place]) -> np.ndarray:
    """Return the batch of all places, without a copy where it is a whole batch already."""
    first = places[0][0]
    if len(first) == len(places) and all(batch is first and index == i for i, (batch, index) in enumerate(places)):
        return _here(first)
    return np.stack([_here(batch)[index] for batch, index in places])


def _first_tokens(places: Sequence[Place]) -> Float[np.ndarray, "rows dim"]:
    return np.stack([b.first_tokens[i] if isinstance(b, DeviceBatch) else b[i, 0] for b, i in places])


def _here(batch: Batch) -> np.ndarray:
    assert isinstance(batch, np.ndarray), "without a device all batches are arrays"
    return batch
