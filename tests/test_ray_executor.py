"""Candidates as Ray tasks: what the local executor trains, whatever the number of workers, lost ones included."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from evolve.config import EvolveConfig
from evolve.executors import open_executor
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task
from evolve.run import Executor, Progress
from evolve.task import Task
from models.errors import InvalidConfig
from models.names import ComponentId
from models.store import Store
from tests.support.tiny import TINY_CONFIG

pytest.importorskip("ray", reason="needs mu2net[ray]")

CONFIG = replace(TINY_CONFIG, generations=2, children_per_generation=4, epochs=4.0)
HALVING = replace(CONFIG, halving=True, validations=3, average_weights=True)
LONG = replace(TINY_CONFIG, children_per_generation=4, epochs=200.0)  # a candidate is still training when it is lost
# a machine counts as lost after some seconds instead of half a minute
IMPATIENT = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def stores(opened_store: Store, tmp_path: Path) -> Iterator[Store]:
    """Copies of one store, one for each run that is compared."""

    def copies() -> Iterator[Store]:
        for number in range(9):
            yield Store.open(shutil.copytree(opened_store.folder, tmp_path / f"copy{number}"))

    return copies()


Result = tuple[list[tuple[ComponentId, ...]], str]  # the components of each candidate, and the winner's name


def result(task: Task, store: Store, config: EvolveConfig, execute: Executor) -> Result:
    told: list[Progress] = []
    outcome = evolve_task(task, store, config, execute=execute, report=told.append)
    found = [tuple(part.component.id for part in progress.record.candidate.parts) for progress in told]
    return found, outcome.route.lineage.candidate


@pytest.mark.slow  # Ray's processes take a minute to start
@pytest.mark.filterwarnings("default")  # it warns
def test_ray_trains_bit_by_bit_what_the_local_executor_trains(stores: Iterator[Store], toy_task: Task) -> None:
    from evolve.ray_executor import RayExecutor

    configs = (CONFIG, HALVING)
    with LocalExecutor(1) as execute:
        local = [result(toy_task, next(stores), config, execute) for config in configs]
    for workers in (1, 2):
        with RayExecutor(workers=workers) as on_ray:
            assert [result(toy_task, next(stores), config, on_ray) for config in configs] == local


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of real processes: a head that trains nothing, and two machines of one core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": IMPATIENT}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, wait=False)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def kill_while_it_trains(node: Any) -> None:
    """Kill all processes of a cluster's machine as soon as one of them trains a candidate."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    deadline = time.monotonic() + 120
    while not any("train_on_machine" in process.name() for process in raylet.children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow  # three machines' processes, and one that is lost is found out after some seconds
@pytest.mark.filterwarnings("default")  # it warns
def test_a_lost_machine_costs_only_its_candidates(stores: Iterator[Store], toy_task: Task, cluster: Any) -> None:
    from evolve.ray_executor import RayExecutor

    with LocalExecutor(1) as execute:
        local = result(toy_task, next(stores), LONG, execute)
    lost, kept = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
    killer = threading.Thread(target=kill_while_it_trains, args=(lost,))
    with RayExecutor(cluster.address) as on_ray:
        killer.start()
        assert result(toy_task, next(stores), LONG, on_ray) == local
        killer.join()
        alive = {node["NodeID"] for node in ray_nodes() if node["Alive"]}
    assert lost.node_id not in alive
    assert kept.node_id in alive


def ray_nodes() -> list[dict[str, Any]]:
    import ray

    return list(ray.nodes())


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"^--ray-address goes with --executor ray: add that"):
        open_executor("local", workers=None, ray_address="auto")
    with pytest.raises(InvalidConfig, match=r"leave it out with --ray-address$"):
        open_executor("ray", workers=2, ray_address="auto")
