"""Candidates on a Ray cluster: what the local executor trains, whatever the number of nodes and when one is lost."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evolve.loop import evolve_task
from evolve.run import Outcome, Progress
from evolve.task import Task
from models.errors import ClusterLost, InvalidConfig
from models.store import Store
from tests.conftest import TINY_CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's processes take a minute; it warns
ray = pytest.importorskip("ray", reason="needs mu2net[ray]")

CONFIG = replace(TINY_CONFIG, generations=2, children_per_generation=4, epochs=4.0)


@pytest.fixture
def stores(opened_store: Store, tmp_path: Path) -> Iterator[Store]:
    """Copies of one store, one for each run that is compared."""

    def copies() -> Iterator[Store]:
        for number in range(9):
            yield Store.open(shutil.copytree(opened_store.folder, tmp_path / f"copy{number}"))

    return copies()


def told_by(task: Task, store: Store, execute: object, config: object = CONFIG) -> tuple[list[Progress], Outcome]:
    told: list[Progress] = []
    outcome = evolve_task(task, store, config, execute=execute, report=told.append)  # type: ignore[arg-type]
    return told, outcome


def weights(told: list[Progress]) -> list[tuple[str, ...]]:
    return [tuple(part.component.id for part in progress.record.candidate.parts) for progress in told]


@pytest.mark.parametrize("halving", [False, True], ids=["whole", "halving"])
def test_ray_trains_bit_by_bit_what_the_local_executor_trains(
    stores: Iterator[Store], toy_task: Task, halving: bool
) -> None:
    from evolve.local_executor import LocalExecutor
    from evolve.ray_executor import RayExecutor

    config = replace(CONFIG, halving=halving)
    with LocalExecutor(1) as execute:
        local, outcome = told_by(toy_task, next(stores), execute, config)
    for workers in (1, 2):
        with RayExecutor(workers=workers) as on_ray:
            told, found = told_by(toy_task, next(stores), on_ray, config)
        assert weights(told) == weights(local)
        assert found.route.lineage.candidate == outcome.route.lineage.candidate


def test_a_lost_node_costs_only_its_candidates(stores: Iterator[Store], toy_task: Task) -> None:
    from ray.cluster_utils import Cluster

    from evolve.local_executor import LocalExecutor
    from evolve.ray_executor import RayExecutor

    config = replace(CONFIG, generations=3, epochs=40.0)
    with LocalExecutor(1) as execute:
        local, _ = told_by(toy_task, next(stores), execute, config)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        told: list[Progress] = []
        lost: list[object] = []

        def report(progress: Progress) -> None:
            told.append(progress)
            if progress.generation == 1 and not lost:  # the others of this generation are under way
                lost.append(nodes[0])
                cluster.remove_node(nodes[0], allow_graceful=False)

        with RayExecutor(cluster.address) as on_ray:
            evolve_task(toy_task, next(stores), config, execute=on_ray, report=report)
        assert lost
        assert weights(told) == weights(local)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_no_cluster_is_told() -> None:
    from evolve.executors import open_executor
    from evolve.ray_executor import RayExecutor

    with pytest.raises(ClusterLost, match=r"^there is no Ray cluster at '127\.0\.0\.1:1'"), RayExecutor("127.0.0.1:1"):
        pass
    with pytest.raises(InvalidConfig, match=r"^--ray-address goes with --executor ray: add that"):
        open_executor("local", workers=None, ray_address="auto", threads=1, device="cpu")
    with pytest.raises(InvalidConfig, match=r"leave it out with --ray-address$"):
        open_executor("ray", workers=2, ray_address="auto", threads=1, device="cpu")
