"""Candidates a minute: one worker process, two, and Ray on this machine, on the same generations."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.online.job import TASK, make_store
from evolve.config import EvolveConfig
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task
from evolve.ray_executor import RayExecutor
from evolve.run import Executor, Progress
from evolve.task import load_task
from models.names import TaskName
from tests.shared_data import shared_folder

CONFIG = EvolveConfig(generations=4, children_per_generation=4, epochs=3.0, image_size=48, depth=4, learning_rate=0.02)
WAYS: dict[str, Callable[[], AbstractContextManager[Executor]]] = {
    "one worker": lambda: LocalExecutor(1),
    "two workers": lambda: LocalExecutor(2, process_flops=0),
    "ray": lambda: RayExecutor(workers=2),
}


def measure(folder: Path) -> dict[str, Any]:
    """Return candidates a minute of each way, after its first generation, in which processes start."""
    rates: dict[str, Any] = {}
    winners = set()
    for name, way in WAYS.items():
        told: list[Progress] = []
        store = make_store(folder / name / "store")
        data = shared_folder() / "datasets" / f"{TASK}.zip"
        task = load_task(TaskName(TASK), data, seed=0, cache_folder=folder / "pixels")
        with way() as execute:
            evolve_task(task, store, CONFIG, execute=execute, report=told.append)
        later = [progress.record for progress in told if progress.generation > 0]
        rates[name] = 60 * len(later) / sum(record.wall_seconds for record in later)
        winners.add(max(told, key=lambda progress: progress.record.score).record.candidate.name)
        print(name, rates[name], flush=True)
    return rates | {"same_winner": len(winners) == 1}
