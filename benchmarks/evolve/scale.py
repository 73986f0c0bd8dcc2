"""evolve-4: the time of a task iteration with 500 routes in the system over that with 10.

The routes are copies of one that was evolved, each with a head of its own: whichever becomes a parent, its
children cost the same, so what differs is what the number of routes costs. One more task was published on top,
as in a store that grew: what that publish proved need not be read again.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evolve.data import real_store, real_task
from evolve.config import EvolveConfig
from evolve.loop import evolve_task
from evolve.subgraphs import SubgraphWriter
from models.names import ComponentId, RouteId, TaskName
from models.route import Route
from models.store import Store
from models.weights import deserialize, serialize

CONFIG = EvolveConfig(generations=2, children_per_generation=3, epochs=2, image_size=32, mutation_rate=0.02)
COUNTS = (10, 500)
REPEATS = 3
IMAGES, VAL_IMAGES = 500, 200


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name."""
    for repeat in range(REPEATS):
        for count in COUNTS:
            yield _key(count, repeat), partial(_iterated, folder, count, repeat)


def time_ratio(raw: dict[str, Any]) -> float | None:
    """Return the ratio of the median times; None until all are there."""
    if any(_key(count, repeat) not in raw for count in COUNTS for repeat in range(REPEATS)):
        return None
    few, many = (statistics.median(float(raw[_key(count, repeat)]) for repeat in range(REPEATS)) for count in COUNTS)
    return many / few


def _key(count: int, repeat: int) -> str:
    return f"seconds with {count} routes, repeat {repeat}"


def _iterated(folder: Path, count: int, repeat: int) -> float:
    made = folder / f"{count} routes"
    if not made.exists():
        _fill(real_store(made), count)
    copy = Path(shutil.copytree(made, folder / f"{count} routes, repeat {repeat}"))
    task = real_task("sign_digits", train=IMAGES, val=VAL_IMAGES)
    for images in (task.train, task.val):
        images.pixels(CONFIG.image_size or 0)  # decoded before
    started = time.perf_counter()
    evolve_task(task, Store.open(copy), replace(CONFIG, seed=repeat))
    seconds = time.perf_counter() - started
    shutil.rmtree(copy)
    return round(seconds, 3)


def _fill(store: Store, count: int) -> None:
    """Give the store `count` routes: two evolved ones, and copies of the first."""
    short = replace(CONFIG, generations=1, children_per_generation=1)
    route = evolve_task(real_task("devanagari", train=IMAGES, val=VAL_IMAGES), store, short).route
    routes = {TaskName(f"copy_{number}"): _copied(store, route, number) for number in range(count - 2)}

    def change(tasks: Mapping[TaskName, RouteId]) -> Mapping[TaskName, RouteId]:
        return {**tasks, **routes}

    store.publish(change, reason="copies")
    evolve_task(real_task("hoda_farsi", train=IMAGES, val=VAL_IMAGES), store, short)


def _copied(store: Store, route: Route, number: int) -> RouteId:
    """Store the route with another head, for another task."""
    *body, head = route.components
    weights = deserialize(store.read_object(head.id, "safetensors", needed_by="a copy"), head.id)
    weights["bias"] = weights["bias"] + np.float32(1e-3 * (number + 1))
    own = replace(head, id=ComponentId(store.put_object(serialize(weights), "safetensors")))
    writer = SubgraphWriter(store, route.network, route.preprocessing, route.image_size)
    copy = replace(route, task=TaskName(f"copy_{number}"), stages=writer.write_stages([*body, own]), variants={})
    return store.put_route(copy)
