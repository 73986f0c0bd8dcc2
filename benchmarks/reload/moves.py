"""What is done to the store while the server answers: forwards, backwards, and releases that must be refused."""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.reload.traffic import pictures
from models.names import RouteId, TaskName
from models.preprocess import load_pixels
from models.release import Release
from models.store import Store, object_name, route_objects
from tests.service_store import TaskPlan, route_logits, store_route

WAIT_S = 30.0
AFTERMATH_S = 0.2  # after a swap the old release is freed; requests of this time count as during the reload

# The routes that stay, from tiny to the whole ViT-Ti, sharing most blocks of the root.
STEADY_TASKS = (
    TaskPlan("tiny", depth=2, image_size=32, seed=1),
    TaskPlan("small", own_blocks=[1], depth=3, image_size=32, seed=2),
    TaskPlan("adapted", adapters={0: 8, 2: 16}, depth=4, image_size=64, seed=3),
    TaskPlan("middle", own_blocks=[4, 5], depth=6, image_size=64, seed=4),
    TaskPlan("wide", adapters={5: 32}, depth=6, image_size=96, num_classes=50, seed=5),
    TaskPlan("deep", own_blocks=[11], depth=12, image_size=64, seed=6),
    TaskPlan("whole", depth=12, image_size=224, num_classes=100, seed=7),
)
TRAFFIC = ("tiny", "small", "adapted", "middle", "wide", "deep") * 8 + ("whole",) * 2  # 2 in 50 are of the whole


@dataclass(frozen=True, slots=True)
class Move:
    """One reload: wanted of the server, and done or refused by it."""

    kind: str
    release: int
    asked_at: float
    settled_at: float
    refused: str | None  # the server's reason
    seconds: float  # that the server took, 0 if refused
    bytes_read: int
    task_bytes: int | None  # of the new objects and the release file, where one task was added


@dataclass
class Workload:
    """A store with the routes that stay, and the moves made on it."""

    store: Store
    client: httpx.Client
    moves: list[Move] = field(default_factory=list)
    tasks_of: dict[int, Mapping[TaskName, RouteId]] = field(default_factory=dict)
    expected: dict[RouteId, np.ndarray] = field(default_factory=dict)  # [images, classes], by torch
    new_bytes: dict[RouteId, int] = field(default_factory=dict)  # of the objects that came with a route
    _added: list[RouteId] = field(default_factory=list)
    _replaced: list[RouteId] = field(default_factory=list)
    _wrong: list[RouteId] = field(default_factory=list)
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def prepare(self, cycles: int) -> None:
        """Write all routes beforehand: what is measured is the server."""
        routes = {TaskName(plan.name): self.route(plan) for plan in STEADY_TASKS}
        self.remember(self.store.publish(lambda _: routes, reason="tasks that stay"))
        self._added = [self.route(TaskPlan("extra", own_blocks=[2], depth=4, image_size=64, seed=next(self._seeds)))
                       for _ in range(cycles)]  # fmt: skip
        self._replaced = [self.route(TaskPlan("small", own_blocks=[1], depth=3, image_size=32, seed=next(self._seeds)))
                          for _ in range(cycles)]  # fmt: skip
        self._wrong = [
            self.route(TaskPlan("wrong", own_blocks=[0], depth=2, image_size=32, seed=next(self._seeds),
                                golden_error=1.0 if kind == "golden" else 0.0))
            for _ in range(cycles) for kind in ("golden", "damaged", "missing")
        ]  # fmt: skip

    def route(self, plan: TaskPlan) -> RouteId:
        before = {info.name for info in self.store.files.infos("objects")}
        route_id = store_route(self.store, plan)
        self.new_bytes[route_id] = sum(
            info.size for info in self.store.files.infos("objects") if info.name not in before
        )
        route = self.store.route(route_id, needed_by="the benchmark")
        pixels = np.stack([load_pixels(image, route.image_size) for image in pictures()])
        self.expected[route_id] = route_logits(self.store, route, pixels)
        return route_id

    def remember(self, release: Release) -> Release:
        self.tasks_of[release.number] = release.tasks
        return release

    def publish(self, changes: Mapping[str, RouteId], reason: str) -> Release:
        return self.remember(self.store.publish(lambda tasks: {**tasks, **changes}, reason=reason))  # type: ignore[dict-item]

    def cycle(self, index: int) -> None:
        """Make 12 moves: 2 forwards, 2 backwards, 1 forwards again, 3 refused with a way back each, 1 removal."""
        base = self.store.current().release
        added = self._added[index]
        started = time.time()
        release = self.publish({"extra": added}, "a task added")
        size = self.new_bytes[added] + len(self.store.files.read(f"releases/{release.number:06d}.json"))
        self.settle("added", release.number, started, task_bytes=size)
        self.activate("back", base)
        self.activate("forwards again", release.number)
        self.resume()
        started = time.time()
        release = self.publish({"small": self._replaced[index]}, "a task replaced")
        self.settle("replaced", release.number, started)
        for kind, route_id in zip(
            ("golden", "damaged", "missing"), self._wrong[3 * index : 3 * index + 3], strict=True
        ):
            self.refuse(kind, route_id, way_back=release.number)
        started = time.time()
        removed = self.remember(self.store.remove_task("extra"))
        self.settle("removed", removed.number, started)

    def refuse(self, kind: str, route_id: RouteId, *, way_back: int) -> None:
        """Publish a release that the server must not take up, then go back to the one it answers from."""
        path = self._new_graph(route_id)
        content = path.read_bytes()
        if kind == "damaged":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif kind == "missing":
            path.unlink()
        started = time.time()
        release = self.publish({"wrong": route_id}, f"to be refused: {kind}")
        self.settle(f"refused: {kind}", release.number, started)
        path.write_bytes(content)
        self.activate("way back", way_back)
        self.resume()

    def _new_graph(self, route_id: RouteId) -> Path:
        route = self.store.route(route_id, needed_by="the benchmark")
        assert object_name(route.stages[1].subgraph, "onnx") in route_objects(route)
        return self.store.folder / object_name(route.stages[1].subgraph, "onnx")

    def activate(self, kind: str, number: int) -> None:
        started = time.time()
        self.client.post(f"/v1/releases/{number}/activate").raise_for_status()
        self.settle(kind, number, started)

    def resume(self) -> None:
        self.client.post("/v1/releases/resume").raise_for_status()

    def settle(self, kind: str, number: int, asked_at: float, *, task_bytes: int | None = None) -> None:
        """Wait until the server answers from release `number`, or says why not."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            state = self.client.get("/readyz").json()
            failure = state["failure"]
            if failure is not None and failure["release"] == number:
                self._note(kind, number, asked_at, failure["error"], task_bytes)
                return
            if state["release"] == number and not state["skewed"]:
                self._note(kind, number, asked_at, None, task_bytes)
                return
        raise AssertionError(f"release {number} neither live nor refused after {WAIT_S:g} s: {state}")

    def _note(self, kind: str, number: int, asked_at: float, refused: str | None, task_bytes: int | None) -> None:
        settled_at = time.time() + AFTERMATH_S
        last: dict[str, Any] = self.client.get("/v1/releases?limit=1").json()["last_reload"]
        done = refused is None and last["release"] == number
        self.moves.append(
            Move(kind, number, asked_at, settled_at, refused, last["seconds"] if done else 0.0,
                 last["bytes_read"] if done else 0, task_bytes)
        )  # fmt: skip
