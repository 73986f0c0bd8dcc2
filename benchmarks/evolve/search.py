"""evolve-3 and evolve-5: images seen until the plain search's final score is reached, and bytes a task adds.

After a stream of eight other tasks, evolved as the reference does it, each of seven is evolved from the same store: as
the reference does it, then with ranked children and early stopping, then with averaged weights as well; then one child
at a time with none of these, with ranked parents instead of children, and with one option alone. A generation of the
plain search has eight candidates, as in the paper's runs on ViT-B. The ranked one draws sixteen children for each that
it trains, and trains the one that promises most, as the journal of the stream tells; of two first children the worse is
stopped at the second of eight validations, and from then on it goes child after child until it has seen as many images
as the plain search. All take images of one size: what is counted is images, and one of twice the pixels costs twice as
much.

Of a ratio, both sides are summed over the seeds: when one search reaches its final score is much a matter of luck.

The seven are all of the shared data sets with 400 images to select on, since one image of 200 is half a point, and with
at most fifty classes, but for those of the stream. Among those are all that the options were tried on (chinese_mnist,
fashion_mnist, gtsrb, cifar10, kannada_mnist, each after a stream of the others).
"""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.evolve.data import real_store, real_task
from evolve.config import EvolveConfig
from evolve.journal import CandidateRecord, Journal
from evolve.loop import evolve_task
from evolve.run import Outcome
from models.cores import usable_cores
from models.names import TaskName
from models.route import component_usage
from models.store import Store

STREAM = (
    "flowers5", "kannada_mnist", "pacs_cartoon", "gtsrb", "chinese_mnist", "dtd10", "fashion_mnist", "cifar10"
)  # fmt: skip
TASKS = ("devanagari", "bangla", "sign_digits", "hoda_farsi", "notmnist", "mnist", "pneumonia_mnist")
CONFIG = EvolveConfig(
    generations=2,
    children_per_generation=8,
    epochs=2,
    batch_size=32,
    validations=8,
    image_size=32,
    min_image_size=32,
    max_image_size=32,
    depth=6,
    learning_rate=0.02,
    rank_images=64,  # where parents are ranked
)
HALVED = replace(CONFIG, halving=True, halving_from=2, children_per_generation=1)
RANKED = replace(HALVED, rank_children=16, first_children=2, generations=16)
IMAGES, VAL_IMAGES = 800, 400
PLAIN, AVERAGED = "plain", "average_weights"
RANKED_STOPPED, ALL_THREE = "ranked, stopped early", "ranked, stopped early, averaged"
WAYS = {
    PLAIN: CONFIG,
    RANKED_STOPPED: RANKED,
    ALL_THREE: replace(RANKED, average_weights=True),
    "one child at a time": replace(CONFIG, children_per_generation=1, generations=16),
    "rank_parents, four halved": replace(HALVED, rank_parents=True, first_children=4, generations=15),
    "rank_children": replace(CONFIG, rank_children=16),
    "rank_parents": replace(CONFIG, rank_parents=True),
    "probe_head": replace(CONFIG, probe_head=True),
    AVERAGED: replace(CONFIG, average_weights=True),
}
OFTEN, SELDOMER = (PLAIN, ALL_THREE, RANKED_STOPPED), (AVERAGED,)  # with all seeds, and with half of them
SEEDS = tuple(range(10))
FEWER_SEEDS, ABLATION_SEEDS = SEEDS[:5], SEEDS[:1]  # the latter of all other ways


class Search(NamedTuple):
    """One search for one task."""

    task: str
    way: str
    seed: int

    @property
    def key(self) -> str:
        return f"search {self.task} {self.way} seed {self.seed}"


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name: first what the bars need, then the ablation.

    As many searches as there are cores run at once: images are counted, and no time.
    """
    others = [way for way in WAYS if way not in (*OFTEN, *SELDOMER)]
    todo = [Search(task, way, seed) for way in OFTEN for seed in SEEDS for task in TASKS]
    todo += [Search(task, way, seed) for way in SELDOMER for seed in FEWER_SEEDS for task in TASKS]
    todo += [Search(task, way, seed) for seed in ABLATION_SEEDS for way in others for task in TASKS]
    started: dict[Search, Future[dict[str, Any]]] = {}
    cores = usable_cores()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:

        def measure(at: int) -> Callable[[], Any]:
            def searched() -> Any:
                stream = folder / "stream"
                if not stream.exists():
                    pool.submit(_stream, stream).result()
                for search in todo[at : at + cores]:
                    if search not in started:
                        started[search] = pool.submit(_searched, stream, folder / search.key, search)
                return started[todo[at]].result()

            return searched

        for at, search in enumerate(todo):
            yield search.key, measure(at)


def mean_ratio(raw: dict[str, Any], way: str, seeds: Sequence[int], *, base: str = PLAIN) -> float | None:
    """Return images until the base's final score, one way / the base's: the tasks' mean; None until all are in."""
    ratios = task_ratios(raw, way, seeds, base=base)
    return sum(ratios.values()) / len(TASKS) if len(ratios) == len(TASKS) else None


def table(raw: dict[str, Any]) -> str:
    """Return the ablation in Markdown."""
    rows = [(way, way, PLAIN) for way in WAYS if way != PLAIN]
    rows.append((f"{ALL_THREE}, over {AVERAGED} instead of plain", ALL_THREE, AVERAGED))
    lines = [
        f"| {name} | "
        + " | ".join(_shown(mean_ratio(raw, way, seeds, base=base)) for seeds in (ABLATION_SEEDS, FEWER_SEEDS, SEEDS))
        + " |"
        for name, way, base in rows
    ]
    counts = f"seed 0 | {len(FEWER_SEEDS)} seeds | {len(SEEDS)} seeds"
    head = f"| images until the plain search's final score, over those that it took | {counts} |"
    return "\n".join([head, "|---|---|---|---|", *lines])


def task_ratios(raw: dict[str, Any], way: str, seeds: Sequence[int], *, base: str = PLAIN) -> dict[str, float]:
    """Return the ratio for each task that was measured with all of `seeds`.

    A search that never reached the score counts with all its images, or with all of the base's if these are more.
    """
    ratios = {}
    for task in TASKS:
        keys = [(Search(task, base, seed).key, Search(task, way, seed).key) for seed in seeds]
        if any(key not in raw for pair in keys for key in pair):
            continue
        needed = seen = 0
        for reference, other in ((raw[one], raw[two]) for one, two in keys):
            most, target = reference["best_score_after"][-1]
            needed += _images_until(target, reference) or most
            seen += _images_until(target, other) or max(most, other["best_score_after"][-1][0])
        ratios[task] = seen / needed
    return ratios


def _shown(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _images_until(target: float, searched: dict[str, Any]) -> int | None:
    return next((images for images, score in searched["best_score_after"] if score >= target), None)


def bytes_ratio(raw: dict[str, Any]) -> float | None:
    """Return the bytes that all measured tasks added to their stores over those of their own components."""
    found = [one for key, one in raw.items() if key.startswith("search ")]
    return sum(one["bytes_added"] for one in found) / sum(one["own_bytes"] for one in found) if found else None


def _stream(folder: Path) -> None:
    store = real_store(folder)
    for name in STREAM:
        evolve_task(real_task(name, train=IMAGES, val=VAL_IMAGES), store, CONFIG)


def _searched(stream: Path, copy: Path, search: Search) -> dict[str, Any]:
    shutil.copytree(stream, copy)
    store = Store.open(copy)
    task = real_task(search.task, train=IMAGES, val=VAL_IMAGES)
    config = replace(WAYS[search.way], seed=search.seed)
    before = _kept_bytes(store)
    outcome = evolve_task(task, store, config)
    journal = Journal(store, TaskName(search.task), 1)
    generations = [journal.generation(number) or [] for number in range(config.generations)]
    found = {
        "best_score_after": _progress(generations, outcome.probed_images, config),
        "bytes_added": _kept_bytes(store) - before,
        "own_bytes": _own_bytes(store, outcome),
    }
    shutil.rmtree(copy)
    return found


def _progress(
    generations: Sequence[Sequence[CandidateRecord]], probed: int, config: EvolveConfig
) -> list[tuple[int, float]]:
    """Return the best score after so many images, those of probes and ranking included: where it rose, and at the end.

    Candidates train one after another; those of a halved generation take turns, from validation to validation.
    """
    seen, best = probed, 0.0
    points: list[tuple[int, float]] = []
    for records in generations:
        turns = [(at, record) for record in records for at in range(len(record.curve))]
        if config.halving:
            turns.sort(key=lambda turn: turn[0])
        for at, record in turns:
            seen += record.images // len(record.curve)
            score = record.curve[at] * record.score / record.quality
            if score > best or not points:
                best = score
                points.append((seen, round(best, 5)))
    return [*points, (seen, round(best, 5))]


def _kept_bytes(store: Store) -> int:
    """Return the size of all that stays: objects, releases and the journal, but no caches."""
    files = [path for part in ("objects", "releases", "journal") for path in (store.folder / part).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())


def _own_bytes(store: Store, outcome: Outcome) -> int:
    others = [route for task, route in store.routes(outcome.release).items() if task != outcome.route.task]
    shared = component_usage([*others, store.root()])
    own = [component for component in outcome.route.components if component.id not in shared]
    return sum((store.folder / "objects" / f"{component.id}.safetensors").stat().st_size for component in own)
