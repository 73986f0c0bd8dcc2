"""The process that loads and proves what is new in a release, before the server takes it up: `python -m service.prove`.

A graph of somebody else's may run for ever, take all memory, or crash ONNX Runtime. Here that ends this process and
leaves the server alone. It reads one request in JSON from its standard input, and answers in JSON on its standard
output. What it prepares lies in the cache that the server shares, and what it read goes back with the answer, so the
server's own load reads little again.
"""

import base64
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import apart
from models.errors import Mu2NetError, kind_of
from models.names import RouteId, SubgraphId, TaskName
from models.precision import Precision
from models.store import Signature, Store, object_name, route_objects
from service import engine
from service.engine import LoadedRoute, Row
from service.golden import Proofs
from service.memory import is_out_of_memory, resident_bytes
from service.prepared import PreparedGraphs
from service.release import StagePool
from service.runtime import CPU, CUDA, start_runtime

NICENESS = 10  # requests go first where cores are short
WEIGHTS_HELD = 3  # times the files' sizes: as read, in the session, and packed
HANDED_BYTES = 64 * 2**20  # of objects that go back with the answer; the server reads the others again
BATCH_ROWS = 8  # that run together once: memory must not grow faster than the number of rows
CUDA_BYTES = 2**31  # of the host, for CUDA's libraries and what is mapped of prepared weights
LOOK_S = 0.05
OUT_OF_MEMORY, OUT_OF_TIME = 70, 71  # exit statuses; the server words them
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be proven, and within which limits."""

    location: str
    cache: str | None
    prepared: str | None  # the folder of prepared graphs, None where there is none
    provider: str
    threads: int
    precision: Precision | None
    routes: tuple[tuple[TaskName, RouteId], ...]
    memory_bytes: int
    timeout_s: float  # for each route
    cpu_s: float  # for all together
    verified: Mapping[str, Signature]  # files that the server found right; those that look otherwise are read again
    checked: tuple[SubgraphId, ...]  # graphs that it has in memory


@dataclass(frozen=True, slots=True)
class Proved:
    """What a successful proof leaves to the server. Arrays and objects are in base64."""

    bytes_read: int  # of the store
    answers: dict[str, tuple[int, int, str]]  # by the proof's name: samples, classes, float32 logits
    verified: dict[str, Signature]  # files whose digest was found right, and how they looked
    objects: dict[str, str] = field(default_factory=dict)  # what was read whole: records, heads, golden samples

    def logits(self) -> dict[str, np.ndarray]:
        return {
            name: np.frombuffer(base64.b64decode(data), np.float32).reshape(samples, classes)
            for name, (samples, classes, data) in self.answers.items()
        }

    def contents(self) -> dict[str, bytes]:
        return {name: base64.b64decode(data) for name, data in self.objects.items()}


def prove(request: Request) -> Proved:
    """Load and prove the routes of a request.

    Raises:
        Mu2NetError: what is wrong with one of them.
    """
    store = Store.open(request.location, cache=None if request.cache is None else Path(request.cache))
    recorder = _Recorder(store)
    store.trust_verified(request.verified)
    weight_bytes = _weight_bytes(store, request)
    store.hand_over(recorder.contents)  # the records, read just now
    limit = _Limit(request, request.memory_bytes + WEIGHTS_HELD * weight_bytes)
    runtime = start_runtime("cuda" if request.provider == CUDA else "cpu", request.threads)
    runtime = replace(runtime, precision=request.precision)
    prepared = None if request.prepared is None else PreparedGraphs(Path(request.prepared), runtime)
    pool, proofs = StagePool(runtime, prepared, checked=request.checked), Proofs()
    kept: list[LoadedRoute] = []
    for task, route_id in request.routes:
        route = pool.load_route(store, task, route_id)
        proofs.check(route, store, engine.run)
        _run_together(route)
        kept.append(route)  # what the next routes share stays in memory
        limit.begin_route()
    return Proved(
        bytes_read=store.bytes_read,
        answers={
            name: (*logits.shape, base64.b64encode(logits.astype(np.float32).tobytes()).decode())
            for name, logits in proofs.answered().items()
        },
        verified=dict(store.verified),
        objects=recorder.objects(),
    )


def _run_together(route: LoadedRoute) -> None:
    size = route.route.image_size
    rows = [np.full((size, size, 3), level, np.uint8) for level in range(BATCH_ROWS)]
    engine.run([Row(pixels, route) for pixels in rows])


class _Recorder:
    """Keeps what a store read whole, so that the server need not read it again."""

    def __init__(self, store: Store) -> None:
        self.contents: dict[str, bytes] = {}
        self._left = 0 if store.is_remote else HANDED_BYTES  # of a URL the cache keeps it
        store.on_read = self._keep

    def _keep(self, name: str, data: bytes) -> None:
        if name not in self.contents and len(data) <= self._left:
            self._left -= len(data)
            self.contents[name] = data

    def objects(self) -> dict[str, str]:
        return {name: base64.b64encode(data).decode() for name, data in self.contents.items()}


def _weight_bytes(store: Store, request: Request) -> int:
    """Return the sizes of all files that the routes need, each once."""
    names: set[str] = set()
    for task, route_id in request.routes:
        names |= route_objects(store.route(route_id, needed_by=f"task {task!r}")) | {object_name(route_id, "json")}
    return sum(info.size for info in store.files.infos("objects") if info.name in names)


class _Limit:
    """Bounds this process's time for each route, its processor time, and the memory that it takes from here on.

    CUDA's driver reserves far more address space than it uses, so there the resident memory is watched instead.
    """

    def __init__(self, request: Request, memory_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(request.cpu_s) + 1, int(request.cpu_s) + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if request.provider == CPU:
            apart.limit_memory(_data_bytes() + memory_bytes)
        self._timeout_s = request.timeout_s
        self._allowed_bytes = (resident_bytes() or 0) + CUDA_BYTES + memory_bytes
        self.begin_route()
        threading.Thread(target=self._watch, name="limit", daemon=True).start()

    def begin_route(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def _watch(self) -> None:
        while (resident_bytes() or 0) <= self._allowed_bytes:
            if time.monotonic() > self._deadline:
                os._exit(OUT_OF_TIME)
            time.sleep(LOOK_S)
        os._exit(OUT_OF_MEMORY)


def _data_bytes() -> int:
    """Return the private memory that this process has mapped, as RLIMIT_DATA counts it; 0 where nobody says."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024
    return 0


def failure_of(error: Exception) -> dict[str, str]:
    """Return an error as the answer tells it."""
    text = str(error) if isinstance(error, Mu2NetError) else f"{type(error).__name__}: {error}"
    return {"kind": "out-of-memory" if is_out_of_memory(error) else kind_of(error), "error": text}


def request_of(plain: Mapping[str, Any]) -> Request:
    routes = tuple((TaskName(task), RouteId(route)) for task, route in plain["routes"])
    verified = {name: (look[0], look[1], look[2]) for name, look in plain["verified"].items()}
    checked = tuple(map(SubgraphId, plain["checked"]))
    return Request(**{**plain, "routes": routes, "verified": verified, "checked": checked})


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a proof without its server is of no use
    apart.step_back(NICENESS)
    try:
        found: dict[str, Any] = asdict(prove(request_of(json.load(sys.stdin))))
    except Exception as error:  # this process's boundary: the server reports it
        found = failure_of(error)
    with os.fdopen(answer, "w") as file:
        json.dump(found, file)
        file.flush()
    os._exit(0)  # tearing sessions down takes time and proves nothing


if __name__ == "__main__":
    main()
