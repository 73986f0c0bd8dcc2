"""A publisher for the part `kills`: copies routes from a pool into a store and releases them, for ever.

    python -m benchmarks.hostile.publisher POOL STORE LOG SEED

Writes `try TASK ROUTE` before and `done TASK ROUTE RELEASE` after each release, forced to the disk.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from models.names import RouteId, TaskName
from models.store import Store, route_objects


def main() -> None:
    pool, store = Store.open(sys.argv[1]), Store.open(sys.argv[2])
    rng = np.random.default_rng(int(sys.argv[4]))
    routes = [(line.split()[0], line.split()[1]) for line in (pool.folder / "routes.txt").read_text().splitlines()]
    with Path(sys.argv[3]).open("a") as log:
        while True:
            task, route = routes[rng.integers(len(routes))]
            tell(log.fileno(), f"try {task} {route}")
            number = release(pool, store, TaskName(task), RouteId(route))
            tell(log.fileno(), f"done {task} {route} {number}")
            time.sleep(float(rng.uniform(0.0, 0.3)))


def tell(log: int, line: str) -> None:
    os.write(log, f"{line}\n".encode())
    os.fsync(log)


def release(pool: Store, store: Store, task: TaskName, route_id: RouteId) -> int:
    route = pool.route(route_id, needed_by="the publisher")
    for name in route_objects(route):
        store.put_object(pool.files.read(name), "onnx" if name.endswith(".onnx") else "safetensors")
    stored = store.put_route(route)
    return store.publish(lambda tasks: {**tasks, task: stored}, reason=f"{task} anew").number


if __name__ == "__main__":
    main()
