"""Trainings that take turns: as many at once as there are lanes, in order, each with its own result or error."""

from dataclasses import replace

import pytest
import torch

from evolve import device_memory
from evolve.device_memory import Kept
from evolve.lanes import Lanes, Turns, complete
from evolve.local_executor import LocalExecutor
from evolve.run import TaskRun
from evolve.task import Task
from models.store import Store
from tests.conftest import TINY_CONFIG


def steps(name: str, count: int, seen: list[str], *, fails: bool = False) -> Turns[str]:
    try:
        for _ in range(count):
            seen.append(name)
            yield
        if fails:
            raise ValueError(name)
    finally:
        seen.append(f"{name} ends")
    return name


def test_lanes_take_turns_and_the_next_in_line_gets_the_lane_that_is_free() -> None:
    seen: list[str] = []
    lanes = Lanes(2, "cpu")
    futures = [lanes.submit(steps(name, count, seen)) for name, count in (("a", 1), ("b", 3), ("c", 1))]
    assert seen == []
    assert futures[1].result() == "b"
    assert seen == ["a", "b", "a ends", "b", "b", "c", "b ends", "c ends"]
    assert [future.result() for future in futures] == ["a", "b", "c"]


def test_an_error_is_that_of_one_training() -> None:
    seen: list[str] = []
    lanes = Lanes(2, "cpu")
    bad, good = lanes.submit(steps("bad", 1, seen, fails=True)), lanes.submit(steps("good", 2, seen))
    with pytest.raises(ValueError, match="bad"):
        bad.result()
    assert good.result() == "good"


def test_closing_ends_what_runs_and_what_waits() -> None:
    seen: list[str] = []
    lanes = Lanes(1, "cpu")
    first, second = lanes.submit(steps("first", 9, seen)), lanes.submit(steps("second", 9, seen))
    lanes.turn()
    lanes.close()
    assert seen == ["first", "first ends"]
    assert not first.done()
    assert not second.done()


def test_work_that_is_completed_is_done_in_one_go() -> None:
    assert complete(steps("a", 3, []), "cpu") == "a"


@pytest.fixture
def run(opened_store: Store, toy_task: Task) -> TaskRun:
    return TaskRun.begin(toy_task, opened_store, replace(TINY_CONFIG, children_per_generation=3), private=False)


@pytest.mark.parametrize("halving", [False, True])
def test_candidates_that_take_turns_train_as_one_after_another(run: TaskRun, halving: bool) -> None:
    population = run.start_population()
    candidates = run.sample_children(population, run.sample_data(population, 0), 0)
    plan = replace(run.plan(0), halving=halving)
    alone = list(LocalExecutor(1)(candidates, run.task, run.pool, plan))
    with LocalExecutor(None, process_flops=0) as execute:
        together = list(execute(candidates, run.task, run.pool, plan))
    assert [(one.candidate, one.curve) for one in together] == [(one.candidate, one.curve) for one in alone]


def test_a_generation_that_is_given_up_ends_its_trainings(run: TaskRun, monkeypatch: pytest.MonkeyPatch) -> None:
    population = run.start_population()
    candidates = run.sample_children(population, run.sample_data(population, 0), 0)
    closed: list[int] = []
    monkeypatch.setattr("evolve.local_executor.Lanes.close", lambda lanes: closed.append(1))
    generation = LocalExecutor(1)(candidates, run.task, run.pool, run.plan(0))
    next(generation)
    assert not closed
    generation.close()  # type: ignore[attr-defined]
    assert closed


def test_what_was_used_least_lately_is_forgotten_first() -> None:
    kept: Kept[str] = Kept()
    made: list[str] = []

    def get(key: str, num_bytes: int = 4) -> str:
        def make() -> str:
            made.append(key)
            return key.upper()

        return kept.get(key, make, num_bytes, most_bytes=10)

    assert [get(key) for key in ("a", "b", "a", "c", "a")] == ["A", "B", "A", "C", "A"]
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 11)  # is not kept, nor in the way of others
    assert len(kept) == 2
    get("a")
    assert made == ["a", "b", "c", "b", "large"]


def test_arrays_for_a_cpu_are_not_copied() -> None:
    values = torch.arange(3).numpy()
    assert device_memory.to_device(values, "cpu").data_ptr() == values.ctypes.data
