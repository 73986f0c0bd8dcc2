"""The worse half of a generation is stopped, from the first validation or a later one on."""

from dataclasses import replace

import pytest

from evolve.config import EvolveConfig
from evolve.halving import better_half
from evolve.journal import Journal
from evolve.loop import evolve_task
from evolve.run import TaskRun
from evolve.task import Task
from models.errors import InvalidConfig
from models.store import Store
from tests.support.tiny import HALVED


def test_the_better_half_goes_on_and_the_first_of_equals() -> None:
    assert better_half({0: 0.5, 1: 0.7, 2: 0.6, 3: 0.7}) == [1, 3]
    assert better_half({0: 0.5, 2: 0.5, 5: 0.5}) == [0, 2]
    assert better_half({4: 0.1}) == [4]


def test_a_larger_first_generation_is_halved_from_a_later_validation_on(opened_store: Store, toy_task: Task) -> None:
    outcome = evolve_task(toy_task, opened_store, HALVED)
    journal = Journal(opened_store, toy_task.name, 1)
    generations = [list(journal.generation(number) or []) for number in range(HALVED.generations)]
    assert [sorted(len(record.curve) for record in records) for records in generations] == [[2, 2, 3, 4], [4], [4]]
    first, *later = generations
    assert min(max(one.curve[:2]) for one in first if len(one.curve) > 2) >= max(
        max(one.curve) for one in first if len(one.curve) == 2
    )
    stopped = {record.candidate.name for record in first if len(record.curve) < 4}
    assert (outcome.candidates, outcome.stopped) == (6, len(stopped))
    assert outcome.route.lineage.candidate not in stopped
    assert stopped.isdisjoint(record.candidate.parent for (record,) in later)  # what was stopped is no parent
    plan = TaskRun.begin(toy_task, opened_store, HALVED, private=False).plan(0)
    for record in first:
        assert record.images == pytest.approx(plan.images * len(record.curve) / 4, abs=plan.batch_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_children": 0}, "first_children = 0: use a whole number from 1"),
        ({"halving_from": 5}, "halving_from = 5: use a whole number from 1 to validations = 4"),
        ({"halving_from": 2}, "halving_from = 2: use 1, or set halving = true as well"),
        ({"rank_images": 1}, "rank_images = 1: use a whole number from 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        EvolveConfig(**settings)  # type: ignore[arg-type]


def test_candidates_are_counted_with_the_first_generations_own_number() -> None:
    config = EvolveConfig(generations=3, children_per_generation=2, first_children=5)
    assert [config.candidates(generations) for generations in range(4)] == [0, 5, 7, 9]
    assert replace(config, first_children=None).candidates(3) == 6
