"""On a GPU the fast path finds what the plain one finds there, however many candidates take turns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evolve.local_executor import LocalExecutor
from evolve.loop import one_after_another
from evolve.run import TaskRun
from evolve.task import Task
from evolve.train import Trained
from models.store import Store
from tests.support.candidates import first_children, own_weights
from tests.support.tiny import TINY_CONFIG

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def run(opened_store: Store, toy_task: Task) -> TaskRun:
    begun = TaskRun.begin(toy_task, opened_store, replace(TINY_CONFIG, epochs=8, learning_rate=0.05), private=False)
    assert begun.start.device == "cuda"
    return begun


def close(found: list[Trained], wanted: list[Trained], run: TaskRun) -> None:
    """Hold that the same candidates have nearly the same weights and momentum in all of their own parts."""
    for name, values, theirs in own_weights(found, wanted, run.pool):
        away, size = (float(np.linalg.norm(one)) for one in (values - theirs, theirs))
        assert away <= 1e-2 * max(size, 1e-3), name


@pytest.mark.parametrize("workers", [1, 3, None])
@pytest.mark.parametrize("activation_mib", [0, 64])
@pytest.mark.parametrize("average_weights", [False, True])
def test_the_fast_path_trains_as_the_plain_one(
    run: TaskRun, workers: int | None, activation_mib: int, average_weights: bool
) -> None:
    plan = replace(run.plan(0), activation_bytes=activation_mib * 2**20, average_weights=average_weights, validations=1)
    assert plan.steps > 8  # so that most of them are replayed
    candidates = first_children(run)
    wanted = list(one_after_another(candidates, run.task, run.pool, plan))
    with LocalExecutor(workers, process_flops=0) as execute:
        found = list(execute(candidates, run.task, run.pool, plan))
    close(found, wanted, run)


def test_halving_on_a_gpu_stops_the_same_candidates(run: TaskRun) -> None:
    plan = replace(run.plan(0), halving=True, validations=2)
    candidates = first_children(run)
    one = list(LocalExecutor(1)(candidates, run.task, run.pool, plan))
    three = list(LocalExecutor(3, process_flops=0)(candidates, run.task, run.pool, plan))
    assert [len(trained.curve) for trained in one] == [len(trained.curve) for trained in three]
    close(three, one, run)


def test_bfloat16_products_train_as_well(run: TaskRun) -> None:
    plan = run.plan(0)
    candidates = first_children(run)
    float32 = list(LocalExecutor(2, process_flops=0)(candidates, run.task, run.pool, plan))
    rounded = list(LocalExecutor(2, process_flops=0)(candidates, run.task, run.pool, replace(plan, bf16_products=True)))
    assert max(one.quality for one in rounded) == pytest.approx(max(one.quality for one in float32), abs=0.1)
