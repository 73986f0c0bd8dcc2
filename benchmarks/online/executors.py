"""online-6 and online-7: candidates a minute of one worker, of two, and of Ray with two, on the same generations.

Timed is a generation from handing it to the executor until its last candidate is back: what is frozen is computed,
weights and pixels go to where they are needed, candidates train. Not timed is what happens once in a worker's life:
processes start, import torch, Ray starts its own; a short generation goes before for that.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evolve.data import real_store, real_task
from evolve.config import EvolveConfig
from evolve.local_executor import LocalExecutor
from evolve.ray_executor import RayExecutor
from evolve.run import Executor, TaskRun

CONFIG = EvolveConfig(
    children_per_generation=4, epochs=4, validations=4, image_size=64, learning_rate=0.02, probe_head=True
)
WAYS: dict[str, Callable[[], AbstractContextManager[Executor]]] = {
    "local 1": lambda: LocalExecutor(1),
    "local 2": lambda: LocalExecutor(2, process_flops=0),
    "ray 2": lambda: RayExecutor(workers=2),
}


def measurements(folder: Path, generations: int, images: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name."""
    for way in WAYS:
        yield f"executor {way}", partial(measure, folder / way.replace(" ", "-"), way, generations, images)


def measure(folder: Path, way: str, generations: int, images: int) -> dict[str, Any]:
    """Train so many generations of children of the root, as evolution draws them; nothing else runs meanwhile."""
    task = real_task("sign_digits", train=images, val=images // 2)
    run = TaskRun.begin(task, real_store(folder), CONFIG, private=False)
    population = run.start_population()
    drawn = []
    for generation in range(generations):
        data = run.sample_data(population, generation)
        drawn.append((run.sample_children(population, data, generation), run.plan(generation)))
    seconds, qualities = [], []
    with WAYS[way]() as execute:
        children, plan = drawn[0]
        list(execute(children[:2], task, run.pool, replace(plan, images=plan.batch_size, validations=1)))
        for children, plan in drawn:
            started = time.perf_counter()
            trained = list(execute(children, task, run.pool, plan))
            seconds.append(time.perf_counter() - started)
            qualities.append([one.quality for one in trained])
    candidates = sum(map(len, qualities))
    return {
        "candidates_per_minute": 60 * candidates / sum(seconds),
        "seconds": [round(value, 2) for value in seconds],
        "qualities": qualities,
    }


def ratio(raw: dict[str, Any], way: str, reference: str) -> float | None:
    """Return the ratio of candidates a minute, None unless both were measured and trained the same."""
    one, other = (raw.get(f"executor {name}") for name in (way, reference))
    if one is None or other is None or one["qualities"] != other["qualities"]:
        return None
    return float(one["candidates_per_minute"] / other["candidates_per_minute"])
