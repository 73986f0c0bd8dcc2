"""Trainings that take turns: as many at once as there are lanes, in order, each with its own result or error."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch

from evolve import device_memory, local_executor
from evolve.candidate import Candidate
from evolve.device_memory import Kept
from evolve.graphed_step import WARM_UP
from evolve.lanes import Lanes, Turns, complete
from evolve.local_executor import TRIAL_STEPS, LocalExecutor
from evolve.run import TaskRun
from evolve.task import Task
from models.store import Store
from tests.support.candidates import first_children
from tests.support.tiny import TINY_CONFIG


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
    for future in (first, second):
        with pytest.raises(CancelledError):
            future.result()
    assert lanes.submit(steps("third", 1, seen)).result() == "third"  # in the lane that is free again


def test_one_that_does_not_end_well_keeps_no_other_from_ending() -> None:
    seen: list[str] = []

    def stubborn() -> Turns[str]:
        try:
            yield
        finally:
            raise ValueError("stubborn")

    lanes = Lanes(2, "cpu")
    lanes.submit(stubborn())
    lanes.submit(steps("other", 9, seen))
    lanes.turn()
    with pytest.raises(ValueError, match="stubborn"):
        lanes.close()
    assert seen == ["other", "other ends"]


def test_an_interruption_is_passed_on_and_gives_no_result() -> None:
    def interrupted() -> Turns[str]:
        yield
        raise KeyboardInterrupt

    lanes = Lanes(1, "cpu")
    future = lanes.submit(interrupted())
    with pytest.raises(KeyboardInterrupt):
        future.result()
    with pytest.raises(CancelledError):
        future.result()


def test_work_that_is_completed_is_done_in_one_go() -> None:
    assert complete(steps("a", 3, []), "cpu") == "a"


@pytest.fixture
def run(opened_store: Store, toy_task: Task) -> TaskRun:
    return TaskRun.begin(toy_task, opened_store, replace(TINY_CONFIG, children_per_generation=3), private=False)


@pytest.mark.parametrize("halving", [False, True])
def test_candidates_that_take_turns_train_as_one_after_another(
    run: TaskRun, halving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = first_children(run)
    plan = replace(run.plan(0), halving=halving)
    alone = list(LocalExecutor(1)(candidates, run.task, run.pool, plan))
    monkeypatch.setattr(local_executor, "takes_turns", lambda plan: True)
    monkeypatch.setattr(local_executor, "fastest", lambda counts, seconds: 2)
    made: list[int] = []

    def counted(count: int, device: str) -> Lanes:
        made.append(count)
        return Lanes(count, device)

    monkeypatch.setattr(local_executor, "Lanes", counted)
    with LocalExecutor(None, process_flops=0) as execute:
        for _ in range(2):
            together = list(execute(candidates, run.task, run.pool, plan))
            assert [(one.candidate, one.curve) for one in together] == [(one.candidate, one.curve) for one in alone]
    assert execute.workers == 2
    assert made == [2]  # for both generations


@pytest.mark.parametrize("count", [1, 2, 5])  # five of three candidates: some take part twice
def test_a_trial_takes_its_steps_with_as_many_as_are_to_take_turns(
    run: TaskRun, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def training(candidate: Candidate, *_: object, **__: object) -> Turns[str]:
        return steps(candidate.name, 1000, seen)

    monkeypatch.setattr(local_executor, "train", training)
    candidates = first_children(run)
    took = local_executor._trial(candidates, run.task, run.pool, run.plan(0), count)
    assert took is not None
    assert took > 0
    stepped = [name for name in seen if not name.endswith(" ends")]
    assert len(stepped) == count * (WARM_UP + 2 + TRIAL_STEPS)
    assert set(stepped) == {candidate.name for candidate in candidates[:count]}
    assert len(seen) - len(stepped) == count  # none goes on


def test_what_the_trial_finds_fastest_is_how_many_take_turns(run: TaskRun, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float | None] = []

    def second(counts: Sequence[int], seconds: Callable[[int], float | None]) -> int:
        tried.extend(seconds(count) for count in counts[:2])
        return counts[1]

    monkeypatch.setattr(local_executor, "takes_turns", lambda plan: True)
    monkeypatch.setattr(local_executor, "fastest", second)
    with LocalExecutor(None, process_flops=0) as execute:
        list(execute(first_children(run), run.task, run.pool, run.plan(0)))
    assert execute.workers == 2
    assert all(took is not None and took > 0 for took in tried)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("wrong")])
def test_a_trial_that_does_not_fit_is_no_error_but_any_other_is(
    run: TaskRun, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training(*_: object, **__: object) -> Turns[None]:
        yield
        raise error

    monkeypatch.setattr(local_executor, "train", training)
    arguments = (first_children(run), run.task, run.pool, run.plan(0), 2)
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="wrong"):
            local_executor._trial(*arguments)
    else:
        assert local_executor._trial(*arguments) is None


def test_a_generation_that_is_given_up_ends_its_trainings(run: TaskRun, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = first_children(run)
    closed: list[int] = []
    monkeypatch.setattr("evolve.local_executor.Lanes.close", lambda lanes: closed.append(1))
    generation = LocalExecutor(1)(candidates, run.task, run.pool, run.plan(0))
    next(generation)
    assert not closed
    generation.close()  # type: ignore[attr-defined]
    assert closed


class Thing:
    """What can be kept."""


def test_what_was_used_least_lately_is_forgotten_first() -> None:
    kept: Kept[Thing] = Kept()
    made: list[str] = []

    def get(key: str, num_bytes: int = 4) -> Thing:
        def make() -> Thing:
            made.append(key)
            return Thing()

        return kept.get(key, make, num_bytes, most_bytes=10)

    for key in ("a", "b", "a", "c", "a"):
        get(key)
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 11)  # is not kept, nor in the way of others
    assert len(kept) == 2
    get("a")
    assert made == ["a", "b", "c", "b", "large"]
    kept.clear()
    get("a")
    assert made[5:] == ["a"]


def test_what_somebody_has_is_not_made_again() -> None:
    kept: Kept[Thing] = Kept()
    mine = [kept.get(key, Thing, 6, most_bytes=10) for key in "abab"]
    assert mine[0] is mine[2]
    assert mine[1] is mine[3]
    assert len(kept) == 1


def test_arrays_for_a_cpu_are_not_copied() -> None:
    values = torch.arange(3).numpy()
    assert device_memory.to_device(values, "cpu").data_ptr() == values.ctypes.data
