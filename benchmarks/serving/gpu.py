"""What is measured where there is an NVIDIA GPU: where nodes run, mixed batches, memory over reloads."""

import subprocess
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.serving.routes import SEED
from models.store import Store
from service import engine
from service.engine import LoadedRoute, Row
from service.memory import give_back
from service.release import LoadedRelease, StagePool
from service.runtime import Runtime

BATCH = 64
RELOADS = (5, 50)  # between which memory must not grow


def gpu(runtime: Runtime, store: Store, small: Store) -> dict[str, Any]:
    """Return the figures of a store with at least `BATCH` tasks, and of the reloads of a small one.

    Activations are on the device. A subgraph takes it some 50 ms to load.
    """
    memory = _memory_over_reloads(runtime, small)
    release = _load(runtime, store)
    routes = list(release.routes.values())[:BATCH]
    return {
        "nodes_on_cpu": sum(_nodes_on_cpu(runtime, store, release).values()),
        "one_task": _throughput(routes[:1] * BATCH),
        "mixed": _throughput(routes),
        "memory_mib": memory,
    }


def _load(runtime: Runtime, store: Store) -> LoadedRelease:
    return StagePool(runtime).load_release(store, store.current().release, [])


def _nodes_on_cpu(runtime: Runtime, store: Store, release: LoadedRelease) -> dict[str, int]:
    """Return for each subgraph how many of its nodes run elsewhere than on the device."""
    stages = {stage.subgraph: stage for route in release.routes.values() for stage in route.route.stages}
    return {
        subgraph: runtime.nodes_elsewhere(store.object_path(subgraph, "onnx", needed_by="a benchmark"))
        for subgraph, stage in stages.items()
        if stage.kind != "head"  # arrays, see service/engine.py
    }


def _throughput(routes: Sequence[LoadedRoute], *, seconds: float = 10.0) -> float:
    """Return rows a second of batches with one image for each of `routes`."""
    size = routes[0].route.image_size
    images = np.random.default_rng(SEED).integers(0, 256, (len(routes), size, size, 3), dtype=np.uint8)
    rows = [Row(image, route) for image, route in zip(images, routes, strict=True)]
    engine.run(rows)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine.run(rows)
        done += len(rows)
    return done / (time.perf_counter() - started)


def _memory_over_reloads(runtime: Runtime, store: Store) -> dict[str, int]:
    """Load everything anew again and again, the old beside the new until it answers, as a reload does."""
    found = {}
    live: LoadedRelease | None = None
    for count in range(1, RELOADS[-1] + 1):
        fresh = _load(runtime, store)
        route = next(iter(fresh.routes.values()))
        size = route.route.image_size
        engine.run([Row(np.zeros((size, size, 3), np.uint8), route)])
        live = fresh
        give_back()
        if count in RELOADS:
            found[str(count)] = _used_mib()
    assert live is not None
    return found


def _used_mib() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
