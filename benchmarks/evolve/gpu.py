"""evolve-6, where there is a GPU: candidates a minute, the best arrangement over one at a time.

The mix of `clones`, from a random ViT-S of ImageNet's shape: speed does not depend on what the weights are. One at a
time is the plain path, in float32. The arrangement is bfloat16 products, steps that are launched whole, and as many
candidates that take turns as the executor finds fastest. What each of these brings is measured beside it. The share of
the GPU's bf16 rate counts the products of forward and backward passes against those of one large product.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.evolve.clones import candidates_of, forget_activations
from benchmarks.evolve.data import real_task
from evolve import graphed_step
from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.local_executor import LocalExecutor
from evolve.loop import one_after_another
from evolve.publish import create_store
from evolve.run import TaskRun
from evolve.train import TrainPlan
from models.root import load_root

ROOT = "random:embed_dim=384,depth=12,num_heads=6,patch_size=16,image_size=224"
CONFIG = EvolveConfig(epochs=10, validations=4, image_size=224, learning_rate=0.02)
NEVER = 10**9  # steps until one is captured
SIDE, PRODUCTS = 8192, 20  # of the large products
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Way:
    """A way of training the candidates on a GPU."""

    name: str
    is_plain: bool = False
    workers: int | None = 1  # None: as many as are fastest
    bf16_products: bool = True
    is_captured: bool = True
    keeps_activations: bool = True


PLAIN = Way("one at a time, float32: the plain path", is_plain=True, bf16_products=False)
BEST = Way("as many as are fastest, bf16", workers=None)
WAYS = (
    PLAIN,
    Way("one at a time, float32", bf16_products=False),
    Way("one at a time, bf16, kernel by kernel", is_captured=False),
    Way("one at a time, bf16"),
    BEST,
    *(Way(f"{count} take turns, bf16", workers=count) for count in (2, 4)),
    Way("4 take turns, bf16, nothing kept", workers=4, keeps_activations=False),
)


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name: nothing without a GPU."""
    if not torch.cuda.is_available():
        return
    made: list[TaskRun] = []

    def measure(way: Way) -> Callable[[], Any]:
        def timed() -> Any:
            if not made:
                task = real_task("sign_digits", train=512, val=128)
                made.append(TaskRun.begin(task, create_store(folder / "gpu", load_root(ROOT)), CONFIG, private=False))
            return _timed(made[0], way)

        return timed

    for repeat in range(REPEATS):
        for way in WAYS:
            yield _key(way, repeat), measure(way)


def ratio(raw: dict[str, Any], way: Way = BEST) -> float | None:
    """Return the ratio of candidates a minute to those of the plain path; None unless both were measured."""
    both = [_rates(raw, one) for one in (way, PLAIN)]
    return both[0] / both[1] if all(both) else None


def table(raw: dict[str, Any]) -> str:
    """Return all ways in Markdown."""
    lines = ["| on the GPU | candidates a minute | over the first | share of the bf16 rate |", "|---|---|---|---|"]
    for way in WAYS:
        if rate := _rates(raw, way):
            share = _mean(raw, way, "share_of_bf16_rate")
            lines.append(f"| {way.name} | {rate:.1f} | {rate / _rates(raw, PLAIN):.2f} | {share:.2f} |")
    return "\n".join(lines)


def _rates(raw: dict[str, Any], way: Way) -> float:
    return _mean(raw, way, "candidates_per_minute")


def _mean(raw: dict[str, Any], way: Way, what: str) -> float:
    """Return the mean of a way's repeats; 0 unless all were measured."""
    found = [raw[_key(way, repeat)][what] for repeat in range(REPEATS) if _key(way, repeat) in raw]
    return float(sum(found) / REPEATS) if len(found) == REPEATS else 0.0


def _key(way: Way, repeat: int) -> str:
    return f"gpu {way.name}, repeat {repeat}"


def _timed(run: TaskRun, way: Way) -> dict[str, Any]:
    plan = replace(run.plan(0), bf16_products=way.bf16_products)
    if not way.keeps_activations:
        plan = replace(plan, activation_bytes=0)
    candidates = [*candidates_of(run, 0, CONFIG), *candidates_of(run, 1, CONFIG)]
    steps = graphed_step.WARM_UP if way.is_captured else NEVER
    with (
        patch.object(graphed_step, "WARM_UP", steps),
        LocalExecutor(way.workers, process_flops=0) as local,
    ):
        execute = one_after_another if way.is_plain else local
        few = replace(plan, images=8 * plan.batch_size, validations=1)
        list(execute(candidates, run.task, run.pool, few))  # warm
        forget_activations(run)
        torch.cuda.synchronize()
        started = time.perf_counter()
        trained = list(execute(candidates, run.task, run.pool, plan))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    done = sum(_flops(candidate, plan) for candidate in candidates)
    return {
        "candidates_per_minute": round(60 * len(candidates) / seconds, 2),
        "share_of_bf16_rate": round(done / seconds / _bf16_rate(), 4),
        "at_once": local.workers,
        "qualities": [one.quality for one in trained],
    }


def _flops(candidate: Candidate, plan: TrainPlan) -> float:
    """Return the operations of the forward passes, and of those back to the first component that is trained."""
    first = next(at for at, part in enumerate(candidate.parts) if part.is_own)
    back = 1 - first / len(candidate.parts)
    return candidate.flops(plan.network) * plan.images * (1 + back)


def _bf16_rate() -> float:
    """Return the floating-point operations a second of one large product in bfloat16."""
    side = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
    for measured in (False, True):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(PRODUCTS if measured else 1):
            torch.mm(side, side)
        torch.cuda.synchronize()
    return 2 * SIDE**3 * PRODUCTS / (time.perf_counter() - started)
