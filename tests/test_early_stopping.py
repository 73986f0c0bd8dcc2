"""What is stopped early: the worse half of a generation, and what lies too far behind the best so far."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evolve.config import EvolveConfig
from evolve.early_stopping import needed_qualities, promising
from evolve.journal import CandidateRecord, Journal
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task, one_after_another
from evolve.population import Member, Population
from evolve.publish import create_store
from evolve.run import TaskRun
from evolve.task import Task, load_task
from models.errors import InvalidConfig
from models.names import TaskName
from models.root import load_root
from models.store import Store
from tests.conftest import GIVING_UP, TINY_CONFIG, TINY_ROOT


@pytest.fixture
def run(opened_store: Store, toy_task: Task) -> TaskRun:
    return TaskRun.begin(toy_task, opened_store, replace(TINY_CONFIG, validations=4, epochs=4.0), private=False)


def records_of(store: Store, task: Task, generations: int) -> list[list[CandidateRecord]]:
    journal = Journal(store, task.name, 1)
    return [list(journal.generation(number) or []) for number in range(generations)]


def test_what_is_needed_rises_to_the_best(run: TaskRun) -> None:
    plan = replace(run.plan(0), images=64, batch_size=8)
    # the standard error of .8 measured on 400 images is .02
    assert needed_qualities(0.8, 400, plan, 2.0) == pytest.approx((0.77, 0.78, 0.79, 0.8))
    assert needed_qualities(0.8, 400, plan, 0.0) == pytest.approx((0.8,) * 4)
    assert needed_qualities(0.0, 400, plan, 2.0) == (0,) * 4  # nothing is known yet
    few = replace(plan, images=plan.batch_size, validations=4)  # one step, so one validation
    assert needed_qualities(0.8, 400, few, 2.0) == (0.8,)


def test_who_goes_on(run: TaskRun) -> None:
    qualities = {0: 0.5, 1: 0.7, 2: 0.6, 3: 0.7}
    plan = run.plan(0)
    assert promising(qualities, 1, plan) == [0, 1, 2, 3]
    halving = replace(plan, halving=True, halving_from=2)
    assert promising(qualities, 1, halving) == [0, 1, 2, 3]
    assert promising(qualities, 2, halving) == [1, 3]
    giving_up = replace(plan, needed=(0.55, 0.65, 0.65, 0.65))
    assert promising(qualities, 1, giving_up) == [1, 2, 3]
    assert promising(qualities, 2, replace(giving_up, halving=True)) == [1, 3]
    assert promising({2: 0.6}, 2, giving_up) == []


@pytest.fixture
def noise(tmp_path: Path) -> Task:
    """A task that nobody can learn, so that children better their parents by luck alone."""
    rng = np.random.default_rng(0)
    for label in ("a", "b", "c"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for index in range(40):
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            image.save(tmp_path / "noise" / label / f"{index}.png")
    return load_task(TaskName("noise"), tmp_path / "noise", seed=0, cache_folder=tmp_path / "pixels")


def test_a_child_far_behind_the_best_is_given_up(opened_store: Store, noise: Task) -> None:
    config = replace(GIVING_UP, generations=9)
    outcome = evolve_task(noise, opened_store, config)
    first, *later = records_of(opened_store, noise, config.generations)
    assert [len(record.curve) for record in first] == [4, 4, 4]  # there was no best yet
    assert [len(records) for records in later] == [1] * 8
    plan = TaskRun.begin(noise, opened_store, config, private=False).plan(0)
    whole = list(first)
    last: list[bool] = []  # whether each of the later ones was trained to the end
    for (record,) in later:
        best = max(reversed(whole), key=lambda one: one.score)
        in_a_row = len(list(takewhile(lambda is_whole: not is_whole, reversed(last))))
        needed = needed_qualities(best.quality, len(noise.val), plan, 2.0**in_a_row)
        reached = [max(record.curve[:at]) >= needed[at - 1] for at in range(1, len(record.curve) + 1)]
        is_whole = len(record.curve) == 4
        assert all(reached[:-1])  # it went on as long as it did
        assert is_whole or not reached[-1]
        assert record.images == pytest.approx(plan.images * len(record.curve) / 4, abs=plan.batch_size)
        last.append(is_whole)
        if is_whole:
            whole.append(record)
    stopped = {record.candidate.name for (record,) in later} - {record.candidate.name for record in whole}
    assert stopped
    assert (outcome.candidates, outcome.stopped) == (11, len(stopped))
    assert outcome.route.lineage.candidate not in stopped
    assert stopped.isdisjoint(record.candidate.parent for (record,) in later)  # what was given up is no parent


def test_what_was_given_up_counts_as_no_child(run: TaskRun) -> None:
    root = run.nursery.root
    population = Population([replace(root, name="seed")])
    population.consider(Member(replace(root, name="best", parent="seed"), 0.8, 0.8))
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert population.sample_parent(rng).name == "best"
        child = Member(replace(root, name="child", parent="best"), 0.7, 0.7, is_given_up=True)
        assert not population.consider(child)
    chosen = [population.sample_parent(rng).name for _ in range(20)]
    assert set(chosen) == {"best", "seed"}  # these children count


def test_after_each_that_was_given_up_twice_as_far_behind_is_allowed(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, validations=4, epochs=4.0, give_up=0.5)
    run = TaskRun.begin(toy_task, opened_store, config, private=False)
    population = run.start_population()
    member = Member(replace(run.nursery.root, name="best", parent="root"), 0.8, 0.8)
    population.consider(member)
    for margin in (0.5, 1.0, 2.0, 4.0):
        plan = run.plan(1, population)
        assert plan.needed == needed_qualities(0.8, len(toy_task.val), plan, margin)
        behind = Member(replace(run.nursery.root, name="behind", parent="best"), 0.5, 0.5, is_given_up=True)
        population.consider(behind)
    population.consider(replace(behind, is_given_up=False))
    assert run.plan(1, population).needed == needed_qualities(0.8, len(toy_task.val), plan, 0.5)


def test_workers_give_up_the_same(tmp_path: Path, toy_task: Task) -> None:
    here = evolve_task(toy_task, create_store(tmp_path / "here", load_root(TINY_ROOT)), GIVING_UP)
    store = create_store(tmp_path / "side by side", load_root(TINY_ROOT))
    with LocalExecutor(workers=2, process_flops=0) as execute:
        assert evolve_task(toy_task, store, GIVING_UP, execute=execute).route_id == here.route_id


def test_the_plain_path_gives_nothing_up(opened_store: Store, toy_task: Task) -> None:
    with pytest.raises(InvalidConfig, match="give_up needs the fast path, which stops candidates: leave --plain out"):
        evolve_task(toy_task, opened_store, GIVING_UP, execute=one_after_another)
    assert Journal(opened_store, toy_task.name, 1).generation(0) is None  # said before anything was trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_children": 0}, "first_children = 0: use a whole number from 1"),
        ({"halving_from": 5}, "halving_from = 5: use a whole number from 1 to validations = 4"),
        ({"give_up": -1.0}, "give_up = -1.0: use a number from 0"),
        ({"rank_images": 1}, "rank_images = 1: use a whole number from 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        EvolveConfig(**settings)  # type: ignore[arg-type]


def test_candidates_are_counted_with_the_first_generations_own_number() -> None:
    config = EvolveConfig(generations=3, children_per_generation=2, first_children=5)
    assert [config.candidates(generations) for generations in range(4)] == [0, 5, 7, 9]
    assert replace(config, first_children=None).candidates(3) == 6
