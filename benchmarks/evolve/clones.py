"""evolve-1 and evolve-2: candidates a minute on a fixed mix of clones, the fast path against the plain one.

The mix is what µ = 0.2 draws from the ViT-Ti root, drawn once: `clone_mix.json` says which of the embeddings
and blocks each candidate owns. The plain path trains one candidate after another with two threads; the fast
one has as many workers of one thread as there are cores, or on a GPU as many that take turns as are fastest. With
bf16 activations are kept in it, and where that is faster it is what matrices are multiplied in. All run the
same generations in turn, several times, each after some steps to warm up; the median time of each generation counts.
"""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evolve.data import real_store, real_task
from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.hparams import OptimiserHParams
from evolve.local_executor import LocalExecutor
from evolve.loop import one_after_another
from evolve.mutation import resized
from evolve.products import INTEL, cpu_words
from evolve.run import Executor, TaskRun

MIX = Path(__file__).with_name("clone_mix.json")
GENERATION = 4  # candidates, as many as the default configuration has
IMAGE_SIZE = 64
CONFIG = EvolveConfig(epochs=4, validations=4, image_size=IMAGE_SIZE, learning_rate=0.02)
SEEDS = (0, 1, 2)  # of the batches, for the spread of the final score
REPEATS = 3  # of the first seed, for the time


@dataclass(frozen=True, slots=True)
class Way:
    """A way of training a generation."""

    name: str
    execute: Executor
    threads: int
    dtype: str = "float32"
    multiplies_in_bf16: bool = False


def multiplies_bf16_faster() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32: a GPU, AMX, AMD's AVX-512 but not Intel's."""
    words = cpu_words()
    return torch.cuda.is_available() or "amx_bf16" in words or ("avx512_bf16" in words and INTEL not in words)


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name."""
    made: list[tuple[TaskRun, LocalExecutor]] = []

    def prepared() -> tuple[TaskRun, LocalExecutor]:
        if not made:
            task = real_task("sign_digits", train=256, val=128)
            run = TaskRun.begin(task, real_store(folder / "clones"), CONFIG, private=False)
            # processes from the start: they live as long as an evolution, so starting them is not measured
            execute = LocalExecutor(None, process_flops=0)
            few = replace(run.plan(0), images=64, validations=1)
            for warm, threads in ((one_after_another, 2), (execute, 1)):
                list(warm(candidates_of(run, 0, CONFIG), task, run.pool, replace(few, threads=threads)))
            made.append((run, execute))
        return made[0]

    def measure(way_name: str, generation: int, seed: int) -> Callable[[], Any]:
        def timed() -> Any:
            run, execute = prepared()
            ways = [
                Way("plain", one_after_another, threads=2),
                Way("float32", execute, threads=1),
                Way("bf16", execute, threads=1, dtype="bfloat16", multiplies_in_bf16=multiplies_bf16_faster()),
            ]
            way = next(way for way in ways if way.name == way_name)
            return _timed(run, way, generation, seed)

        return timed

    generations = range(len(json.loads(MIX.read_text())) // GENERATION)
    try:
        for repeat in range(REPEATS):
            for generation in generations:
                for way in ("plain", "float32", "bf16"):
                    yield _key(way, generation, SEEDS[0], repeat), measure(way, generation, SEEDS[0])
        for seed in SEEDS[1:]:
            for generation in generations:
                yield _key("float32", generation, seed), measure("float32", generation, seed)
    finally:
        for _, execute in made:
            execute.__exit__(None, None, None)


def ratios(raw: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the ratios of candidates a minute, None unless the outcome is what it has to be."""
    places = [
        (generation, repeat)
        for repeat in range(REPEATS)
        for generation in range(len(json.loads(MIX.read_text())) // GENERATION)
    ]
    plain, float32, bf16 = (
        [raw[key] for place, repeat in places if (key := _key(way, place, SEEDS[0], repeat)) in raw]
        for way in ("plain", "float32", "bf16")
    )
    if not len(plain) == len(float32) == len(bf16) == len(places):
        return None, None
    first = _ratio(plain, float32) if is_same_outcome(plain, float32) else None
    spread = _spread(raw, len(places) // REPEATS)
    is_within = spread is not None and abs(_best(bf16)[1] - _best(float32)[1]) <= spread
    return first, _ratio(plain, bf16) if is_within else None


def is_same_outcome(plain: list[dict[str, Any]], fast: list[dict[str, Any]]) -> bool:
    """Whether the winner is the same and all scores agree within 1e-5."""
    differences = [
        float(abs(mine - other))
        for one, two in zip(plain, fast, strict=True)
        for mine, other in zip(one["qualities"], two["qualities"], strict=True)
    ]
    return max(differences, default=0.0) <= 1e-5 and _best(plain)[0] == _best(fast)[0]


def _spread(raw: dict[str, Any], generations: int) -> float | None:
    """Return by how much the best score differs between seeds."""
    keys = [[_key("float32", generation, seed) for generation in range(generations)] for seed in SEEDS]
    if any(key not in raw for of_seed in keys for key in of_seed):
        return None
    bests = [_best([raw[key] for key in of_seed])[1] for of_seed in keys]
    return max(bests) - min(bests)


def _best(generations: list[dict[str, Any]]) -> tuple[int, float]:
    qualities = [quality for generation in generations for quality in generation["qualities"]]
    return max(enumerate(qualities), key=lambda pair: (pair[1], pair[0]))


def _ratio(plain: list[dict[str, Any]], fast: list[dict[str, Any]]) -> float:
    """Return the ratio of the times of all generations, each the median of its repeats: others may use the machine."""

    def seconds(runs: list[dict[str, Any]]) -> float:
        generations = len(runs) // REPEATS
        return sum(
            statistics.median(float(run["seconds"]) for run in runs[at::generations]) for at in range(generations)
        )

    return seconds(plain) / seconds(fast)


def _key(way: str, generation: int, seed: int, repeat: int = 0) -> str:
    return f"clones {way} generation {generation} seed {seed} repeat {repeat}"


def _timed(run: TaskRun, way: Way, generation: int, seed: int) -> dict[str, Any]:
    plan = run.plan(generation)
    plan = replace(
        plan,
        threads=way.threads,
        activation_dtype=way.dtype,
        bf16_products=way.multiplies_in_bf16,
        seed=(*plan.seed, seed),
    )
    candidates = candidates_of(run, generation, CONFIG)
    forget_activations(run)
    started = time.perf_counter()
    trained = list(way.execute(candidates, run.task, run.pool, plan))
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "candidates_per_minute": round(60 * len(trained) / seconds, 2),
        "images_per_second": round(sum(one.images for one in trained) / seconds, 1),
        "qualities": [one.quality for one in trained],
    }


def forget_activations(run: TaskRun) -> None:
    """Let nothing shared be there before what is timed."""
    shutil.rmtree(run.pool.folder / "activations", ignore_errors=True)


def candidates_of(run: TaskRun, generation: int, config: EvolveConfig) -> list[Candidate]:
    """Return a generation of the mix: children of the root that own the named places, final norm and head."""
    mix = json.loads(MIX.read_text())[generation * GENERATION :][:GENERATION]
    data = config.first_data(config.image_size or 0)
    root = resized(run.nursery.root, data, run.nursery)
    body = [part for part in root.parts if part.component.kind != "head"]
    norm = len(body) - 1
    candidates = []
    for place, owned in enumerate(mix):
        parts = [replace(part, is_own=at in {*owned, norm}) for at, part in enumerate(body)]
        parts.append(run.nursery.new_head())
        name = f"clones/1/{generation}/{place}"
        hparams = OptimiserHParams(learning_rate=config.learning_rate)
        candidates.append(Candidate(name, "root", tuple(parts), run.task.labels, hparams, data))
    return candidates
