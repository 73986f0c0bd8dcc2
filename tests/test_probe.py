"""Better candidates, fewer of them: ranked parents and heads that start from a probe."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.hparams import DataHParams
from evolve.loop import evolve_task
from evolve.mutation import resized
from evolve.probe import h_score, transferability
from evolve.run import TaskRun
from evolve.task import Task
from models.store import Store
from tests.support.tiny import TINY_CONFIG

RANKED = replace(TINY_CONFIG, rank_parents=True)
PROBED = replace(TINY_CONFIG, probe_head=True)


def test_only_the_seeds_that_suit_the_task_best_are_tried(opened_store: Store, toy_task: Task) -> None:
    run = TaskRun.begin(toy_task, opened_store, replace(RANKED, children_per_generation=2), private=False)
    every = TaskRun.begin(toy_task, opened_store, TINY_CONFIG, private=False).start_population().seeds
    assert len(every) == 3

    def suits(seed: Candidate) -> float:
        body = [part for part in resized(seed, DataHParams(16), run.nursery).parts if part.component.kind != "head"]
        rng = np.random.default_rng(0)  # the toy task has fewer images than are looked at: all of them
        score, images = transferability(body, 16, toy_task, run.pool, run.plan(0), rng, 128)
        assert images == len(toy_task.train)
        return score

    population = run.start_population()
    best = sorted(every, key=lambda seed: -suits(seed))[:2]
    assert [seed.name for seed in population.seeds] == [seed.name for seed in best]
    children = run.sample_children(population, DataHParams(16), 0)
    assert [child.parent for child in children] == [seed.name for seed in best]  # each once before any twice
    named = next(seed for seed in every if seed.name != "root")
    wanted = replace(RANKED, children_per_generation=1, parents=named.name.partition("@")[0])
    population = TaskRun.begin(toy_task, opened_store, wanted, private=False).start_population()
    others = max((seed for seed in every if seed.name != named.name), key=suits)
    assert [seed.name for seed in population.seeds] == [named.name, others.name]


def test_the_h_score_counts_what_lies_between_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    noise = rng.normal(size=(120, 200)).astype(np.float32)  # more features than images
    apart = noise.copy()
    apart[:, 0] += 20 * labels
    assert h_score(apart, labels) > h_score(noise, labels) > 0
    assert h_score(apart, rng.permutation(labels)) < h_score(apart, labels)
    assert h_score(3 * apart + 5, labels) == pytest.approx(h_score(apart, labels), rel=1e-4)
    assert h_score(np.ones((120, 200), np.float32), labels) == 0  # features that tell nothing apart


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
