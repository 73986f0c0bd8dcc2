"""Candidates as Ray tasks: what the local executor trains, whatever the number of workers."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evolve.executors import open_executor
from evolve.loop import evolve_task
from evolve.run import Outcome, Progress
from evolve.task import Task
from models.errors import InvalidConfig
from models.store import Store
from tests.conftest import TINY_CONFIG

pytest.importorskip("ray", reason="needs mu2net[ray]")

CONFIG = replace(TINY_CONFIG, generations=2, children_per_generation=4, epochs=4.0)


@pytest.fixture
def stores(opened_store: Store, tmp_path: Path) -> Iterator[Store]:
    """Copies of one store, one for each run that is compared."""

    def copies() -> Iterator[Store]:
        for number in range(9):
            yield Store.open(shutil.copytree(opened_store.folder, tmp_path / f"copy{number}"))

    return copies()


def told_by(task: Task, store: Store, execute: object) -> tuple[list[Progress], Outcome]:
    told: list[Progress] = []
    outcome = evolve_task(task, store, CONFIG, execute=execute, report=told.append)  # type: ignore[arg-type]
    return told, outcome


def weights(told: list[Progress]) -> list[tuple[str, ...]]:
    return [tuple(part.component.id for part in progress.record.candidate.parts) for progress in told]


@pytest.mark.slow  # Ray's processes take a minute to start
@pytest.mark.filterwarnings("default")  # it warns
def test_ray_trains_bit_by_bit_what_the_local_executor_trains(stores: Iterator[Store], toy_task: Task) -> None:
    from evolve.local_executor import LocalExecutor
    from evolve.ray_executor import RayExecutor

    with LocalExecutor(1) as execute:
        local, outcome = told_by(toy_task, next(stores), execute)
    for workers in (1, 2):
        with RayExecutor(workers=workers) as on_ray:
            told, found = told_by(toy_task, next(stores), on_ray)
        assert weights(told) == weights(local)
        assert found.route.lineage.candidate == outcome.route.lineage.candidate


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"^--ray-address goes with --executor ray: add that"):
        open_executor("local", workers=None, ray_address="auto", threads=1, device="cpu")
    with pytest.raises(InvalidConfig, match=r"leave it out with --ray-address$"):
        open_executor("ray", workers=2, ray_address="auto", threads=1, device="cpu")
