"""What is done to the store while the server answers: forwards, backwards, and releases that must be refused."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from benchmarks.reload.traffic import pictures
from models.names import RouteId, TaskName
from models.preprocess import load_pixels
from models.release import Release
from models.store import Store
from tests.support.stores import (
    WRONG,
    TaskPlan,
    damage,
    force_release,
    route_logits,
    store_route,
    store_wrong_route,
)

WAIT_S = 180.0  # a proof has the lowest priority
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
    refused: str | None  # the kind of the server's error
    seconds: float  # that the server took, 0 if refused
    bytes_read: int
    resident_bytes: int  # afterwards
    task_bytes: int | None  # of the new objects and the release file, where one task was added


@dataclass
class Workload:
    """A store with the routes that stay, and the moves made on it."""

    store: Store
    client: httpx.Client
    resident_bytes: Callable[[], int]  # of the server
    moves: list[Move] = field(default_factory=list)
    tasks_of: dict[int, Mapping[TaskName, RouteId]] = field(default_factory=dict)
    expected: dict[RouteId, np.ndarray] = field(default_factory=dict)  # [images, classes], by torch
    new_bytes: dict[RouteId, int] = field(default_factory=dict)  # of the objects that came with a route
    _added: list[RouteId] = field(default_factory=list)
    _replaced: list[RouteId] = field(default_factory=list)
    _wrong: list[dict[str, RouteId]] = field(default_factory=list)
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def prepare(self, cycles: int) -> None:
        """Write all routes beforehand: what is measured is the server."""
        routes = {TaskName(plan.name): self.route(plan) for plan in STEADY_TASKS}
        self.remember(self.store.publish(lambda _: routes, reason="tasks that stay"))
        for _ in range(cycles):
            extra = TaskPlan("extra", own_blocks=[2], depth=4, image_size=64, seed=next(self._seeds))
            small = TaskPlan("small", own_blocks=[1], depth=3, image_size=32, seed=next(self._seeds))
            self._added.append(self.route(extra))
            self._replaced.append(self.route(small))
            wrong = TaskPlan("wrong", own_blocks=[0], depth=2, image_size=32)
            self._wrong.append(
                {kind: store_wrong_route(self.store, replace(wrong, seed=next(self._seeds)), kind) for kind in WRONG}
            )

    def route(self, plan: TaskPlan) -> RouteId:
        """Store a route, and remember what it takes and what it must answer."""
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
        """Make 11 moves: forwards, back, forwards again, a task replaced, one refused of each kind, one taken up
        although the store was away for a moment, and a task removed.
        """
        base = self.store.current().release
        added = self._added[index]
        started = time.time()
        release = self.publish({"extra": added}, "a task added")
        size = self.new_bytes[added] + len(self.store.files.read(f"releases/{release.number:06d}.json"))
        self.settle("task added", release.number, started, task_bytes=size)
        self.activate("back", base)
        self.activate("forwards again", release.number)
        self.resume()
        started = time.time()
        release = self.publish({"small": self._replaced[index]}, "a task replaced")
        self.settle("task replaced", release.number, started)
        for kind, route_id in self._wrong[index].items():
            self.refuse(kind, route_id, way_back=release.number)
        self.lose_store()
        started = time.time()
        removed = self.remember(self.store.remove_task("extra"))
        self.settle("task removed", removed.number, started)

    def refuse(self, kind: str, route_id: RouteId, *, way_back: int) -> None:
        """Release what the server must not take up, then ask again for the release it answers from."""
        mend = damage(self.store, route_id, kind)
        started = time.time()
        release = self.remember(force_release(self.store, {"wrong": route_id}))
        self.settle(f"refused: {kind}", release.number, started)
        mend()
        self.client.post(f"/v1/releases/{way_back}/activate").raise_for_status()
        self.resume()

    def lose_store(self) -> None:
        """Take the store away, as a network does, while a release is published; the server must catch up."""
        folder, away = self.store.folder, self.store.folder.with_name("away")
        first = self.tasks_of[min(self.tasks_of)][TaskName("small")]
        started = time.time()
        folder.rename(away)
        try:
            release = Store.open(away).publish(lambda tasks: {**tasks, TaskName("small"): first}, reason="away")
            self._await("a failure to read the store", _store_is_away)
        finally:
            away.rename(folder)
        self.settle("after the store was away", self.remember(release).number, started)

    def activate(self, kind: str, number: int) -> None:
        started = time.time()
        self.client.post(f"/v1/releases/{number}/activate").raise_for_status()
        self.settle(kind, number, started)

    def resume(self) -> None:
        self.client.post("/v1/releases/resume").raise_for_status()

    def settle(self, kind: str, number: int, asked_at: float, *, task_bytes: int | None = None) -> None:
        """Wait until the server answers from release `number`, or says why not, and note it."""

        def has_settled(state: Mapping[str, Any]) -> bool:
            failure = state["failure"]
            return (failure is not None and failure["release"] == number) or (
                state["release"] == number and not state["skewed"]
            )

        state = self._await(f"release {number} live or refused", has_settled)
        refused = None if state["failure"] is None else state["failure"]["kind"]
        settled_at = time.time() + AFTERMATH_S
        time.sleep(AFTERMATH_S)  # what it cost is told a moment after the swap
        last: dict[str, Any] = self.client.get("/v1/releases?limit=1").json()["last_reload"]
        assert (refused is None) == (last["release"] == number), (refused, last)
        done = refused is None
        self.moves.append(
            Move(kind, number, asked_at, settled_at, refused, last["seconds"] if done else 0.0,
                 last["bytes_read"] if done else 0, self.resident_bytes(), task_bytes)
        )  # fmt: skip

    def _await(self, what: str, condition: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Ask /readyz until its answer meets the condition, and return it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            state: Mapping[str, Any] = self.client.get("/readyz").json()
            if condition(state):
                return state
        raise AssertionError(f"not {what} after {WAIT_S:g} s: {state}")


def _store_is_away(state: Mapping[str, Any]) -> bool:
    return state["failure"] is not None and state["failure"]["release"] is None
