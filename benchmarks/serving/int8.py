"""What int8 needs to be measured: a store whose routes have it, and evolved tasks that are judged in both."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from evolve.config import EvolveConfig
from evolve.loop import evolve_task
from evolve.onnx_route import OnnxRoute
from evolve.publish import create_store
from evolve.subgraphs import SubgraphWriter
from evolve.task import load_task
from evolve.variants import lower_release
from models.names import TaskName
from models.root import load_root
from models.route import Variant
from models.store import Store
from tests.support.shared_data import shared_folder

ROOT = "weights/vit_tiny_patch16_224.safetensors"
TASKS = {"devanagari": 32, "hoda_farsi": 32, "sign_digits": 64}  # where the search starts, in pixels
# Short, but enough for routes that are worth serving. Nearly every block becomes the task's own.
CONFIG = EvolveConfig(
    generations=1, children_per_generation=2, max_images=8_000, epochs=20, depth=6, clone_rate=0.9, learning_rate=0.02
)


def lowered_copy(location: Path) -> Store:
    """Return a copy of the store, made anew, whose routes have int8 beside float32, unjudged: for speed alone."""
    target = location.with_name(f"{location.name}-int8")
    shutil.rmtree(target, ignore_errors=True)
    store = Store.open(shutil.copytree(location, target))
    tasks = {}
    for task, route in store.routes(store.release()).items():
        writer = SubgraphWriter(store, route.network, route.preprocessing, route.image_size)
        stages = tuple(writer.write(stage.kind, stage.components, "int8") for stage in route.stages)
        assert route.golden is not None, "a task's route has golden samples"
        variant = Variant(stages, route.golden, 0.0, 0.0, 0)
        tasks[task] = store.put_route(replace(route, variants={"int8": variant}))
    store.publish(lambda _: tasks, reason="int8, unjudged", precisions={"int8": 100.0})
    return store


def int8_accuracy(folder: Path) -> dict[str, Any]:
    """Test accuracy of evolved ViT-Ti routes in float32 and in int8, all of their blocks lowered whatever it costs."""
    location = folder / "int8-accuracy"
    shutil.rmtree(location, ignore_errors=True)
    store = create_store(location, load_root(str(shared_folder() / ROOT)))
    tasks = {
        name: load_task(
            TaskName(name), shared_folder() / "datasets" / f"{name}.zip", seed=0, cache_folder=folder / "pixels"
        )
        for name in TASKS
    }
    for name, task in tasks.items():
        evolve_task(task, store, replace(CONFIG, image_size=TASKS[name]))
    lower_release(store, "int8", {task.name: task.val for task in tasks.values()}, tolerance=100)
    raw: dict[str, Any] = {}
    for name, route in store.routes(store.release()).items():
        test, variant = tasks[name].test, route.variants["int8"]
        assert test is not None, f"{name} has test images"
        in_float32 = OnnxRoute(store, route.stages).accuracy(test, route.image_size)
        in_int8 = OnnxRoute(store, route.stages, variant.stages).accuracy(test, route.image_size)
        raw[name] = {
            "image_size": route.image_size,
            "blocks": route.depth,
            "test_images": len(test),
            "float32": in_float32,
            "int8": in_int8,
            "points_lost": 100 * (in_float32 - in_int8),
            "validation_points_lost": variant.points_lost,
        }
    return raw | {"most_points_lost": max(figures["points_lost"] for figures in raw.values())}
