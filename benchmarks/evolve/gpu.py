"""evolve-6, where there is a GPU: candidates a minute, the best arrangement over one at a time in float32.

The mix of `clones`, from a random ViT-S of ImageNet's shape: speed does not depend on what the weights are.
The arrangement is bfloat16 products and as many candidates at once as the executor finds fastest. The share of the
GPU's bf16 rate counts the products of forward and backward passes against those of one large product.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evolve.clones import candidates_of
from benchmarks.evolve.data import real_task
from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.local_executor import LocalExecutor
from evolve.publish import create_store
from evolve.run import TaskRun
from evolve.train import TrainPlan
from models.root import load_root

ROOT = "random:embed_dim=384,depth=12,num_heads=6,patch_size=16,image_size=224"
CONFIG = EvolveConfig(epochs=8, validations=4, image_size=224, learning_rate=0.02)
SIDE, PRODUCTS = 8192, 20  # of the large products


def measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured, each with its name: nothing without a GPU."""
    if torch.cuda.is_available():
        yield "gpu one at a time", lambda: _timed(folder / "gpu one", workers=1, bf16_products=False)
        yield "gpu arranged", lambda: _timed(folder / "gpu arranged", workers=None, bf16_products=True)


def ratio(raw: dict[str, Any]) -> float | None:
    """Return the ratio of candidates a minute; None unless both were measured."""
    if not {"gpu one at a time", "gpu arranged"} <= raw.keys():
        return None
    return float(raw["gpu arranged"]["candidates_per_minute"] / raw["gpu one at a time"]["candidates_per_minute"])


def _timed(folder: Path, *, workers: int | None, bf16_products: bool) -> dict[str, Any]:
    task = real_task("sign_digits", train=512, val=128)
    run = TaskRun.begin(task, create_store(folder, load_root(ROOT)), CONFIG, private=False)
    plan = replace(run.plan(0), bf16_products=bf16_products, activation_bytes=0)  # every step computes all
    candidates = [*candidates_of(run, 0, CONFIG), *candidates_of(run, 1, CONFIG)]
    with LocalExecutor(workers, process_flops=0) as execute:
        list(execute(candidates, task, run.pool, replace(plan, images=plan.batch_size, validations=1)))  # warm
        started = time.perf_counter()
        list(execute(candidates, task, run.pool, plan))
        seconds = time.perf_counter() - started
    done = sum(_flops(candidate, plan) for candidate in candidates)
    return {
        "candidates_per_minute": round(60 * len(candidates) / seconds, 2),
        "share_of_bf16_rate": round(done / seconds / _bf16_rate(), 4),
    }


def _flops(candidate: Candidate, plan: TrainPlan) -> float:
    """Return the operations of the forward passes, and of those back to the first component that is trained."""
    first = next(at for at, part in enumerate(candidate.parts) if part.is_own)
    back = 1 - first / len(candidate.parts)
    return candidate.flops(plan.network) * plan.images * (1 + back)


def _bf16_rate() -> float:
    """Return the floating-point operations a second of one large product in bfloat16."""
    side = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
    for measured in (False, True):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(PRODUCTS if measured else 1):
            torch.mm(side, side)
        torch.cuda.synchronize()
    return 2 * SIDE**3 * PRODUCTS / (time.perf_counter() - started)
