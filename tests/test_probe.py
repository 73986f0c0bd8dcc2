"""Better candidates, fewer of them: ranked parents and heads that start from a probe."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolve.config import EvolveConfig
from evolve.hparams import DataHParams
from evolve.loop import evolve_task
from evolve.mutation import resized
from evolve.probe import fit_probe
from evolve.run import TaskRun
from evolve.task import Task
from models.store import Store
from tests.conftest import TINY_CONFIG

RANKED = replace(TINY_CONFIG, rank_parents=True)
PROBED = replace(TINY_CONFIG, probe_head=True)


def test_seeds_are_tried_in_the_order_of_their_probes(opened_store: Store, toy_task: Task) -> None:
    run = TaskRun.begin(toy_task, opened_store, RANKED, private=False)
    population = run.start_population()
    data = DataHParams(16)

    def accuracy(seed_name: str) -> float:
        seed = next(seed for seed in population.seeds if seed.name == seed_name)
        rng = np.random.default_rng(0)
        body = [part for part in resized(seed, data, run.nursery).parts if part.component.kind != "head"]
        return fit_probe(body, 16, toy_task, run.pool, run.plan(0), rng).accuracy

    names = [seed.name for seed in population.seeds]
    assert len(names) == 3
    assert accuracy(names[0]) >= accuracy(names[-1])
    # taken again and again, the first by half each time, and never sent to the end
    rng = np.random.default_rng(0)
    taken = [population.sample_parent(rng).name for _ in range(8)]
    assert taken[0] == names[0]
    assert taken.count(names[0]) >= taken.count(names[-1])


def test_a_probed_head_starts_where_the_probe_ended(opened_store: Store, toy_task: Task) -> None:
    run = TaskRun.begin(toy_task, opened_store, PROBED, private=False)
    population = run.start_population()
    child, *_ = run.sample_children(population, run.sample_data(population, 0), 0)
    head = run.pool.get(child.parts[-1].component.id)
    assert head["weight"].shape == (3, 16)
    assert np.abs(head["weight"]).max() > 0


@pytest.mark.parametrize("config", [RANKED, PROBED], ids=["ranked", "probed head"])
def test_the_same_seed_gives_the_same_winner(
    opened_store: Store, toy_task: Task, tmp_path: Path, config: EvolveConfig
) -> None:
    twin = Store.open(shutil.copytree(opened_store.folder, tmp_path / "twin"))
    outcomes = [evolve_task(toy_task, store, config) for store in (opened_store, twin)]
    assert outcomes[0].route_id == outcomes[1].route_id
    assert outcomes[0].probed_images > 0
    assert outcomes[0].probed_images == outcomes[1].probed_images
