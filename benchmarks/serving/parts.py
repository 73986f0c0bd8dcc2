"""What is measured, in parts that each fit into a few minutes; each returns raw figures."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.serving.client import Load
from benchmarks.serving.gpu import BATCH, gpu
from benchmarks.serving.int8 import int8_accuracy, lowered_copy
from benchmarks.serving.routes import FIXED, HEAVY, LIGHT, Mix, export_whole, make_store, task_name
from benchmarks.serving.systems import PEERS, Place, System, SystemName, tasks_of
from models.onnx_threads import shared_threads_options
from models.store import Store
from service import engine
from service.engine import LoadedRoute, Row
from service.release import LoadedRelease, StagePool
from service.runtime import start_runtime

Raw = dict[str, Any]
Make = Callable[[System], Load]
ALL: tuple[SystemName, ...] = ("ours", *PEERS)
TOLERANCE = 1e-3  # between our logits and the peers'


def prepare(folder: Path, mix: Mix, tasks: int) -> Place:
    """Make the store and the whole models of so many tasks, where they are missing."""
    store = make_store(folder, mix, tasks)
    for task in store.release().tasks:
        export_whole(store, folder / "whole", task)
    return Place(folder, store.folder.name, tasks)


def empty(folder: Path) -> Raw:
    """Weigh every system with no task loaded."""
    place = prepare(folder, FIXED, 0)
    raw: Raw = {}
    for name in ALL:
        with System(name, place) as system:
            time.sleep(2)
            raw[name] = {"memory_mib": system.memory_mib()}
    return raw


def fixed_20(folder: Path) -> Raw:
    place, image, tasks = prepare(folder, FIXED, 20), _image(folder, 224), [task_name(i) for i in range(20)]
    with ExitStack() as stack:
        systems = [stack.enter_context(System(name, place)) for name in ALL]
        return _described(systems, image) | {
            "hot": _interleaved(systems, lambda s: s.load(image, tasks[:1], concurrency=8, seconds=4), rounds=2),
            "random": _interleaved(systems, lambda s: s.load(image, tasks, concurrency=8, seconds=4), rounds=3),
            "many": _interleaved(systems, lambda s: s.load_of_many(image, tasks, concurrency=2, seconds=6), rounds=2),
        }


def fixed_100(folder: Path) -> Raw:
    place, image = prepare(folder, FIXED, 100), _image(folder, 224)
    with ExitStack() as stack:
        systems = [stack.enter_context(System(name, place)) for name in ALL]
        tasks = tasks_of(place)
        return _described(systems, image) | {
            "random": _interleaved(systems, lambda s: s.load(image, tasks, concurrency=8, seconds=5), rounds=2),
        }


def light(folder: Path) -> Raw:
    place, image = prepare(folder, LIGHT, 20), _image(folder, 32)
    with ExitStack() as stack:
        systems = [stack.enter_context(System(name, place)) for name in (*ALL, "fastapi")]
        tasks = tasks_of(place)
        raw = _described(systems[:-1], image)
        return raw | {
            "random": _interleaved(systems, lambda s: s.load(image, tasks, concurrency=16, seconds=4), rounds=3),
        }


def heavy(folder: Path) -> Raw:
    """The ViT-B route: every system, and our engine without HTTP in this process."""
    place, image = prepare(folder, HEAVY, 1), _image(folder, 224)
    route = _loaded(place).route("task-000")
    with ExitStack() as stack:
        systems = [stack.enter_context(System(name, place)) for name in ALL]
        raw = _described(systems, image)
        windows: Raw = {}
        for _ in range(5):  # of which the median counts: one disturbed window must not
            own = {"engine": [{"throughput": _engine_throughput(route, 4, seconds=6)}]}
            asked = _interleaved(systems, lambda s: s.load(image, ["task-000"], concurrency=4, seconds=6), rounds=1)
            for name, found in (own | asked).items():
                windows.setdefault(name, []).extend(found)
        return raw | {"hot": windows}


def chain(folder: Path) -> Raw:
    """A route through its subgraphs against the same route as one model, in this process, seconds a batch."""
    raw: Raw = {}
    for mix in (FIXED, LIGHT):
        place = prepare(folder, mix, 20)
        route = _loaded(place).route("task-000")
        whole = ort.InferenceSession(
            folder / "whole" / f"{place.store}-task-000.onnx",
            shared_threads_options(),
            providers=["CPUExecutionProvider"],
        )
        for size in (1, 8):
            images = _pixels(mix.image_size, size)
            feed = {whole.get_inputs()[0].name: images}
            rows = [Row(pixels, route) for pixels in images]
            expected = whole.run(None, feed)[0]
            assert np.abs(np.stack(engine.run(rows)) - expected).max() < TOLERANCE, "the answers differ"
            ours, theirs = _alternate(partial(engine.run, rows), partial(whole.run, None, feed), seconds=20)
            raw[f"{mix.name} batch {size}"] = {"subgraphs_s": ours, "whole_s": theirs}
    return raw


def on_gpu(folder: Path) -> Raw:
    """The bars of a GPU.

    Raises:
        InvalidConfig: there is none, or its libraries are missing.
    """
    runtime = start_runtime("cuda", 0)
    return gpu(runtime, make_store(folder, FIXED, BATCH), make_store(folder, FIXED, 5))


def int8_speed(folder: Path) -> Raw:
    """The ViT-B route through its int8 subgraphs against its float32 ones, images a second in this process."""
    place = prepare(folder, HEAVY, 1)
    store = lowered_copy(place.folder / place.store)
    runtime = start_runtime("cpu", 0)
    assert runtime.precision == "int8", "this processor's int8 overflows"
    release = store.current().release
    in_int8 = StagePool(runtime).load_release(store, release, []).route("task-000")
    in_float32 = StagePool(replace(runtime, precision=None)).load_release(store, release, []).route("task-000")
    raw: Raw = {}
    for size in (1, 4, 8):
        images = _pixels(224, size)
        rows = [[Row(pixels, loaded) for pixels in images] for loaded in (in_float32, in_int8)]
        float32_s, int8_s = _alternate(partial(engine.run, rows[0]), partial(engine.run, rows[1]), seconds=40)
        raw[f"batch {size}"] = {"float32_s": float32_s, "int8_s": int8_s}
    return raw | {"speedup": min(figure["float32_s"] / figure["int8_s"] for figure in raw.values())}


def _loaded(place: Place) -> LoadedRelease:
    store = Store.open(place.folder / place.store)
    return StagePool(start_runtime("cpu", 0)).load_release(store, store.current().release, [])


def _alternate(first: Callable[[], object], second: Callable[[], object], *, seconds: float) -> tuple[float, float]:
    """Return the median seconds of each, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call, taken in zip((first, second), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return float(np.median(times[0])), float(np.median(times[1]))


def _engine_throughput(route: LoadedRoute, batch: int, *, seconds: float) -> float:
    rows = [Row(pixels, route) for pixels in _pixels(route.route.image_size, batch)]
    engine.run(rows)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine.run(rows)
        done += batch
    return done / (time.perf_counter() - started)


def _described(systems: Sequence[System], image: Path) -> Raw:
    """Ask every task of every system once, hold the answers against ours, and weigh."""
    raw: Raw = {}
    expected: dict[str, list[float]] = {}
    for system in systems:
        difference = 0.0
        for task in tasks_of(system.place):
            found = system.logits(image, task)
            difference = max(difference, float(np.abs(np.subtract(found, expected.setdefault(task, found))).max()))
        if difference > TOLERANCE:
            raise SystemExit(f"{system.name} answers otherwise than {systems[0].name}: logits differ by {difference}")
        raw[system.name] = {
            "start_up_s": system.start_up_s,
            "memory_mib": system.memory_mib(),
            "largest_logit_difference": difference,
        }
    return {"systems": raw}


def _interleaved(systems: Sequence[System], make: Make, *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return the figures of each system's windows, the systems taking turns."""
    windows: dict[str, list[dict[str, float]]] = {system.name: [] for system in systems}
    for _ in range(rounds):
        for system in systems:
            windows[system.name].append(asdict(system.measure(make(system))))
    return windows


def _image(folder: Path, size: int) -> Path:
    path = folder / f"{size}.jpg"
    Image.fromarray(_pixels(size, 1)[0]).save(path)
    return path


def _pixels(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


PARTS: dict[str, Callable[[Path], Raw]] = {
    "empty": empty,
    "chain": chain,
    "light": light,
    "fixed-20": fixed_20,
    "fixed-100": fixed_100,
    "heavy": heavy,
    "gpu": on_gpu,
    "int8-speed": int8_speed,
    "int8-accuracy": int8_accuracy,
}
