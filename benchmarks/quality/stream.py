"""The stream in parts, each saved when it is done: a run that was stopped goes on with the next part."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.quality.plan import ROOT_SCALE, StreamPlan, TaskPlan
from benchmarks.results import commit
from evolve.baselines import Harness, parse_family
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task
from evolve.onnx_route import OnnxRoute
from evolve.publish import create_store
from evolve.task import Task, load_task
from models.cores import usable_cores
from models.figures import task_figures
from models.names import TaskName
from models.root import load_root
from models.route import Route
from models.store import Store

Part = dict[str, Any]


class Stream:
    """One seed's stream: its store in one folder, its saved parts, small files, in another."""

    def __init__(self, plan: StreamPlan, folder: Path, parts: Path, *, seed: int, console: Console) -> None:
        self._plan = plan
        self._folder = folder
        self._parts = parts
        self._seed = seed
        self._console = console
        self.store = self._opened()

    def run(self) -> Part:
        """Evolve every task, look whether any route answers otherwise in the end, and train every baseline."""
        evolved = [self._part(f"evolve-{task.name}", partial(self._evolve, task)) for task in self._plan.tasks]
        final = self._part("final", partial(self._final, [part["task"] for part in evolved]))
        baselines = self._baselines()
        return {"seed": self._seed, "evolved": evolved, "baselines": baselines, "final": final}

    def baseline(self, planned: TaskPlan, family: str) -> Part:
        """Tune and train a family of baselines on a task; nothing is published."""
        return self._part(f"{family.replace(':', '')}-{planned.name}", partial(self._baseline, planned, family))

    def _baselines(self) -> list[Part]:
        """Train the baselines side by side, one on each core: they depend on the plan alone."""
        workers = 1 if torch.cuda.is_available() else usable_cores()
        # the costly ones first, so that no core is left alone at the end
        todo = [(task, family) for family in self._plan.families for task in self._plan.tasks]
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
            parts = [
                processes.submit(_baseline_alone, self._plan, self._folder, self._parts, self._seed, task, family)
                for task, family in todo
            ]
            return [part.result() for part in parts]

    def _part(self, name: str, make: Callable[[], Part]) -> Part:
        path = self._path(name)
        if not path.exists():
            self._console.print(f"seed {self._seed}: {name}")
            started = time.perf_counter()
            part = make()
            part["seconds"] = round(time.perf_counter() - started, 1)
            part["commit"] = commit()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(part, indent=1) + "\n")
            temporary.replace(path)
        return dict(json.loads(path.read_text()))

    def _path(self, name: str) -> Path:
        return self._parts / f"{name}.json"

    def _opened(self) -> Store:
        location = self._folder / "store"
        if (location / "CURRENT").exists():
            return Store.open(location)
        is_random = self._plan.root.startswith("random")
        scale = None if is_random else ROOT_SCALE
        return create_store(location, load_root(self._plan.root, mean=scale, std=scale))

    def _task(self, task: TaskPlan) -> Task:
        archive = self._plan.data_folder / f"{task.name}.zip"
        source = archive if archive.exists() else self._plan.data_folder / task.name
        return load_task(TaskName(task.name), source, seed=self._seed, cache_folder=self._folder.parent / "pixels")

    def _evolve(self, planned: TaskPlan) -> Part:
        earlier = [task.name for task in self._plan.tasks[: self._plan.tasks.index(planned)]]
        gone = [name for name in earlier if name not in self.store.release().tasks]
        if gone:
            raise SystemExit(
                f"{self._parts} says that {gone[0]!r} was evolved, but the store in {self._folder} does not have it: "
                "go on where the store is, or delete those parts and begin anew"
            )
        task = self._task(planned)
        config = self._plan.config(planned, self._seed)
        with LocalExecutor(None) as side_by_side:
            outcome = evolve_task(task, self.store, config, execute=side_by_side)
        seen, most = outcome.trained_images + outcome.probed_images, self._plan.images(planned)
        assert seen <= most, f"{task.name}: {seen} images, more than the {most} that each baseline may see"
        route, quality = outcome.route, outcome.route.quality
        assert quality is not None, "a task's route has a quality"
        return {
            "task": task.name,
            "image_size": route.image_size,
            "depth": route.depth,
            "validation_accuracy": quality.validation_accuracy,
            "expected_accuracy": quality.expected_accuracy,
            "test_accuracy": quality.test_accuracy,
            "flops": route.flops,
            "images_seen": seen,
            "parent": route.lineage.parent,
            "test_logits": self._answers(task, route),
        }

    def _baseline(self, planned: TaskPlan, family: str) -> Part:
        name = TaskName(planned.name)
        harness = Harness(
            self.store,
            self._task(planned),
            image_sizes=planned.baseline_sizes,
            images=self._plan.images(planned),
            execute=LocalExecutor(),
            augmentation=planned.augmentation(),
            seed=self._seed,
        )
        return {"task": name, **asdict(harness.run(parse_family(family, self.store.root().depth)))}

    def _final(self, tasks: list[str]) -> Part:
        """Return costs as they are after the whole stream, and the answers of every route once more."""
        routes = self.store.routes(self.store.release())
        figures = task_figures(routes, self.store.root())
        planned = {task.name: task for task in self._plan.tasks}
        return {
            "accounted_parameters": {task: figures[TaskName(task)].accounted_parameters for task in tasks},
            "added_parameters": {task: figures[TaskName(task)].parameters_added for task in tasks},
            "root_parameters": self.store.root().parameters,
            "test_logits": {task: self._answers(self._task(planned[task]), routes[TaskName(task)]) for task in tasks},
        }

    def _answers(self, task: Task, route: Route) -> str:
        """Return a digest of the logits of all test images: equal digests are bit-identical answers."""
        assert task.test is not None, "all tasks of the stream have test images"
        logits = OnnxRoute(self.store, route.stages).logits(task.test.pixels(route.image_size))
        return hashlib.sha256(logits.tobytes()).hexdigest()


def _baseline_alone(plan: StreamPlan, folder: Path, parts: Path, seed: int, task: TaskPlan, family: str) -> Part:
    """Train a family in a process of its own."""
    return Stream(plan, folder, parts, seed=seed, console=Console(stderr=True)).baseline(task, family)
