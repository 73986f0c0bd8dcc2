"""evolve-3 and evolve-5: images seen until the plain search's final score is reached, and bytes a task adds.

After a stream of other tasks, each of seven is evolved from the same store: as the reference does it, then with
ranked parents and successive halving; then with heads that start from a probe as well, and with each of these alone.
A generation of the plain search has eight candidates, as in the paper's runs on ViT-B. A search that halves has three,
and so many more generations that it sees no more images: of eight, the first validations kept those that change little,
which start fast and end low.

The seven are all of the shared data sets with 400 images to select on, since one image of 200 is half a point, and with
at most fifty classes, but for the stream and for those that the options were tried on (chinese_mnist, fashion_mnist,
kannada_mnist, gtsrb, cifar10).
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.evolve.data import real_store, real_task
from evolve.config import EvolveConfig
from evolve.journal import CandidateRecord, Journal
from evolve.local_executor import LocalExecutor, default_workers
from evolve.loop import evolve_task
from evolve.run import Outcome
from models.names import TaskName
from models.route import component_usage
from models.store import Store

STREAM = ("flowers5", "pacs_cartoon", "dtd10")
TASKS = ("devanagari", "bangla", "sign_digits", "hoda_farsi", "notmnist", "mnist", "pneumonia_mnist")
CONFIG = EvolveConfig(
    generations=2,
    children_per_generation=8,
    epochs=2,
    batch_size=32,
    validations=8,
    image_size=32,
    depth=6,
    learning_rate=0.02,
)
STREAM_CONFIG = replace(CONFIG, generations=1, children_per_generation=4)
HALVING = replace(CONFIG, halving=True, validations=4, children_per_generation=3, generations=8)
IMAGES, VAL_IMAGES = 800, 400
WAYS = {
    "plain": CONFIG,
    "ranked and halved": replace(HALVING, rank_parents=True),
    "all": replace(HALVING, rank_parents=True, probe_head=True),
    "rank_parents": replace(CONFIG, rank_parents=True),
    "probe_head": replace(CONFIG, probe_head=True),
    "halving": HALVING,
}


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name: first what the bars need, then the ablation."""
    made: list[Path] = []

    def measure(task: str, way: str) -> Callable[[], Any]:
        def searched() -> Any:
            if not made:
                made.append(_stream(folder / "stream", execute))
            copy = folder / f"{task} {way}"
            shutil.copytree(made[0], copy)
            found = _searched(Store.open(copy), task, WAYS[way], execute)
            shutil.rmtree(copy)
            return found

        return searched

    with LocalExecutor(default_workers(threads=1, device="cpu")) as execute:
        for ways in (("plain", "ranked and halved"), ("halving", "all", "rank_parents", "probe_head")):
            for task in TASKS:
                for way in ways:
                    yield _key(task, way), measure(task, way)


def images_ratio(raw: dict[str, Any]) -> float | None:
    """Return images until the plain search's final score, ranked and halved / without; None until all are there."""
    ratios = task_ratios(raw, "ranked and halved")
    return sum(ratios.values()) / len(TASKS) if len(ratios) == len(TASKS) else None


def task_ratios(raw: dict[str, Any], way: str) -> dict[str, float]:
    """Return the ratio for each task that was measured.

    A search that never reached the score counts with all its images, or as 1 if these are fewer than the
    plain search's.
    """
    ratios = {}
    for task in TASKS:
        plain, other = raw.get(_key(task, "plain")), raw.get(_key(task, way))
        if plain and other:
            target = plain["best_score_after"][-1][1]
            needed = next(images for images, score in plain["best_score_after"] if score >= target)
            seen = [images for images, score in other["best_score_after"] if score >= target]
            ratios[task] = seen[0] / needed if seen else max(1.0, other["best_score_after"][-1][0] / needed)
    return ratios


def bytes_ratio(raw: dict[str, Any]) -> float | None:
    """Return the bytes that all measured tasks added to their stores over those of their own components."""
    found = [raw[key] for task in TASKS for way in WAYS if (key := _key(task, way)) in raw]
    return sum(one["bytes_added"] for one in found) / sum(one["own_bytes"] for one in found) if found else None


def _key(task: str, way: str) -> str:
    return f"search {task} {way}"


def _stream(folder: Path, execute: LocalExecutor) -> Path:
    store = real_store(folder)
    for name in STREAM:
        evolve_task(real_task(name, train=IMAGES, val=VAL_IMAGES), store, STREAM_CONFIG, execute=execute)
    return folder


def _searched(store: Store, name: str, config: EvolveConfig, execute: LocalExecutor) -> dict[str, Any]:
    task = real_task(name, train=IMAGES, val=VAL_IMAGES)
    before = _kept_bytes(store)
    outcome = evolve_task(task, store, config, execute=execute)
    generations = [Journal(store, TaskName(name), 1).generation(number) for number in range(config.generations)]
    throughput = outcome.throughput
    return {
        "best_score_after": _progress([records or [] for records in generations], outcome.probed_images, config),
        "bytes_added": _kept_bytes(store) - before,
        "own_bytes": _own_bytes(store, outcome),
        "candidates_per_minute": round(throughput.candidates_per_minute, 2),
        "images_per_second": round(throughput.images_per_second, 1),
    }


def _progress(
    generations: Sequence[Sequence[CandidateRecord]], probed: int, config: EvolveConfig
) -> list[tuple[int, float]]:
    """Return the best score after so many images, probes' included, at every validation.

    Candidates train one after another; those of a halved generation take turns, from validation to validation.
    """
    seen, best = probed, 0.0
    points = []
    for records in generations:
        turns = [(at, record) for record in records for at in range(len(record.curve))]
        if config.halving:
            turns.sort(key=lambda turn: turn[0])
        for at, record in turns:
            seen += record.images // len(record.curve)
            best = max(best, record.curve[at] * record.score / record.quality)
            points.append((seen, best))
    return points


def _kept_bytes(store: Store) -> int:
    """Return the size of all that stays: objects, releases and the journal, but no caches."""
    files = [path for part in ("objects", "releases", "journal") for path in (store.folder / part).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())


def _own_bytes(store: Store, outcome: Outcome) -> int:
    others = [route for task, route in store.routes(outcome.release).items() if task != outcome.route.task]
    shared = component_usage([*others, store.root()])
    own = [component for component in outcome.route.components if component.id not in shared]
    return sum((store.folder / "objects" / f"{component.id}.safetensors").stat().st_size for component in own)
